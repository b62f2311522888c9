"""A home that is being filled from a backup: everything lies beside, until it is moved into place.

An interruption before that leaves the home as it was. One in the midst of the moves is seen by the next
restore, and by the next start: they do the rest of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from fleek.core.errors import ConfigurationError
from fleek.core.home import Home
from fleek.local.accounts import make_folder
from fleek.local.archive import SECRET_KEY, STORE
from fleek.local.postgres import FAST_STOP, PIDFILE
from fleek.local.process import stop_leftover


class Restoring:
    """The places beside a home; the caller holds the home's lock."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.unpacked = home.path / "restoring"
        """What came out of the archive."""
        self.postgres_data = home.path / "restoring-postgres"
        self._decided = home.path / "restoring.json"
        """There once the moves have begun: it names the folder that the old data goes to."""

    def is_occupied(self) -> bool:
        """Whether the home holds data that a restore would replace."""
        home = self._home
        has_results = home.media.is_dir() and any((home.media / "media").glob("*"))
        return home.postgres_data.exists() or has_results

    def prepare(self) -> None:
        """Forget what an interrupted restore left beside, its server too, and make room."""
        self._forget()
        make_folder(self.unpacked)

    def discard(self) -> None:
        """Remove what lies beside, unless it is on its way into place."""
        if not self._decided.exists():
            for folder in (self.unpacked, self.postgres_data):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(folder)

    def resume(self) -> bool:
        """Finish the moves of an interrupted restore; whether there was one. What came less far goes."""
        try:
            aside = Path(json.loads(self._decided.read_text())["aside"])
        except FileNotFoundError:
            if self.unpacked.exists() or self.postgres_data.exists():
                self._forget()
            return False
        try:
            self._move(aside, [])
        except OSError as error:
            message = f"A restore cannot be completed: {error.filename}: {error.strerror}"
            raise ConfigurationError(message) from error
        return True

    def put_in_place(self) -> Path | None:
        """Make the restored data the home's; the folder that its old data is in now, if it had any.

        Raises OSError where something cannot be moved, such as a mount point; the home is as it was then.
        """
        aside = self._home.path / f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        os.sync()
        draft = self._decided.with_suffix(".new")
        draft.write_text(json.dumps({"aside": str(aside)}))
        draft.replace(self._decided)
        moved: list[tuple[Path, Path]] = []
        try:
            self._move(aside, moved)
        except OSError:
            for source, target in reversed(moved):
                target.replace(source)
            with contextlib.suppress(FileNotFoundError):
                aside.rmdir()
            self._decided.unlink()
            raise
        return aside if aside.exists() else None

    def _forget(self) -> None:
        stop_leftover(self._home.run / PIDFILE, FAST_STOP)
        self.discard()

    def _move(self, aside: Path, moved: list[tuple[Path, Path]]) -> None:
        """The database last: without one nothing works with what is there. Safe to do again."""
        home = self._home
        for source, target in (
            (self.unpacked / SECRET_KEY, home.secret_key_file),
            (self.unpacked / STORE, home.media),
            (self.postgres_data, home.postgres_data),
        ):
            if source.exists():
                if target.exists():
                    make_folder(aside)
                    target.replace(aside / target.name)
                    moved.append((target, aside / target.name))
                source.replace(target)
                moved.append((source, target))
        os.sync()
        self._decided.unlink()
        self.discard()
