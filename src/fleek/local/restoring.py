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
        stop_leftover(self._home.run / PIDFILE, FAST_STOP)
        self.discard()
        make_folder(self.unpacked)

    def discard(self) -> None:
        """Remove what lies beside, unless it is on its way into place."""
        if not self._decided.exists():
            for folder in (self.unpacked, self.postgres_data):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(folder)

    def resume(self) -> bool:
        """Finish the moves of an interrupted restore; whether there was one."""
        try:
            aside = Path(json.loads(self._decided.read_text())["aside"])
        except FileNotFoundError:
            return False
        self._move(aside)
        return True

    def put_in_place(self) -> Path | None:
        """Make the restored data the home's; the folder that its old data is in now, if it had any."""
        aside = self._home.path / f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        os.sync()
        draft = self._decided.with_suffix(".new")
        draft.write_text(json.dumps({"aside": str(aside)}))
        draft.replace(self._decided)
        self._move(aside)
        return aside if aside.exists() else None

    def _move(self, aside: Path) -> None:
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
                source.replace(target)
        os.sync()
        self._decided.unlink()
        self.discard()
