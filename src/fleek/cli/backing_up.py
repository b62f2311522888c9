"""The steps of a backup and of a restore.

The order is what makes a backup of a running Fleek whole: the database first, then the results. A result is
stored before its row names it, and never changed, so every row of the dump has its bytes, unless they
were deleted meanwhile; what was stored after the dump is an orphan at most.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from fleek import __version__
from fleek.cli.exits import usage_error
from fleek.cli.output import Output
from fleek.core.errors import Conflict, InvalidRequest
from fleek.core.home import Home
from fleek.db import migrate
from fleek.db.revisions import shipped_revisions
from fleek.local.archive import DUMP, STORE, Copied, Manifest, read_archive, write_archive
from fleek.local.dumps import dump, load
from fleek.local.instance import hold_home, prepare_home
from fleek.local.postgres import PostgresServer
from fleek.local.programs import POSTGRES_MAJOR
from fleek.local.restoring import Restoring
from fleek.settings import Settings

_REVISION = "SELECT version_num FROM alembic_version"
_JOBS = "SELECT count(*), count(*) FILTER (WHERE finished_at IS NULL) FROM jobs"
_STORED = "SELECT size_bytes, key FROM media WHERE key IS NOT NULL AND deleted_at IS NULL"
_QUERY_SECONDS = 600.0


class OnProgress(Protocol):
    """Told of each result."""

    def add(self, size: int) -> None:
        """One more, of so many bytes."""
        ...


def back_up(
    settings: Settings, target: IO[bytes], output: Output, progress: OnProgress
) -> tuple[Manifest, Copied]:
    """Write the archive, whether Fleek runs on the home or not."""
    home = settings.local
    if not home.postgres_data.is_dir():
        raise usage_error(f"{home.path} holds no database", "--home names another home")
    has_results = settings.resolved_storage_url == home.storage_url
    # Without a name: it is gone with this process, however that ends.
    with tempfile.TemporaryFile(dir=home.path) as database:
        created_at = datetime.now(UTC)
        with _running(home) as server:
            revision = server.query(_REVISION)
            output.note("Dumping the database")
            dump(server, database)
        manifest = Manifest(__version__, revision, POSTGRES_MAJOR, created_at.isoformat(), has_results)
        media = home.media if has_results else None
        return manifest, write_archive(target, manifest, database, home.secret_key_file, media, progress.add)


def bring_back(
    settings: Settings, source: IO[bytes], output: Output, progress: OnProgress, *, force: bool
) -> dict[str, Any]:
    """Fill the home. Raises Conflict where it is in use, or not empty and `force` does not say so."""
    home = settings.local
    prepare_home(home)
    with hold_home(home):
        restoring = Restoring(home)
        if restoring.resume():
            message = (
                "An earlier restore was interrupted at its last step. That step is done now: the home holds "
                "what was restored then"
            )
            raise Conflict(message)
        if restoring.is_occupied() and not force:
            message = f"{home.path} holds data; choose another --home, or --force, which keeps it beside"
            raise Conflict(message)
        restoring.prepare()
        try:
            _, copied = read_archive(source, restoring.unpacked, _accept, progress.add)
            output.note("Filling the database")
            found = _fill(home, restoring)
            replaced = restoring.put_in_place()
        finally:
            restoring.discard()
    return {
        "home": str(home.path),
        **found,
        "results": copied.results,
        "replaced": None if replaced is None else str(replaced),
    }


@contextmanager
def _running(home: Home) -> Iterator[PostgresServer]:
    """The home's PostgreSQL: that of the Fleek that runs, or started for as long as the block takes."""
    server = _server(home, home.postgres_data)
    prepare_home(home)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_home(home))
        except Conflict:
            server.find_programs()
            _require_data(server, home)
        else:
            stack.callback(server.stop)
            server.start()
        yield server


def _require_data(server: PostgresServer, home: Home) -> None:
    """Whoever has the home may be filling it from a backup: then another server has its socket."""
    if not Path(server.query("SHOW data_directory")).samefile(home.postgres_data):
        message = f"{home.path} is being restored"
        raise Conflict(message)


def _server(home: Home, data: Path) -> PostgresServer:
    return PostgresServer(data=data, socket_dir=home.postgres_socket_dir, log=home.logs / "postgres.log")


def _accept(manifest: Manifest) -> None:
    """Raises InvalidRequest for what a later release wrote: it cannot be brought back to this one."""
    if manifest.revision not in shipped_revisions().known or manifest.postgres > POSTGRES_MAJOR:
        message = (
            f"The backup was written by Fleek {manifest.fleek}, which is newer than this one "
            f"({__version__}); restore it with that release"
        )
        raise InvalidRequest(message)


def _fill(home: Home, restoring: Restoring) -> dict[str, Any]:
    """Make a new database beside, load the dump, bring its schema forward, and look what it names."""
    server = _server(home, restoring.postgres_data)
    server.start()
    try:
        load(server, restoring.unpacked / DUMP)
        migrate.upgrade(server.url())
        jobs, unfinished = server.query(_JOBS, timeout=_QUERY_SECONDS).split("|")
        missing = list(_list_missing(server, restoring.unpacked / STORE))
        revision = server.query(_REVISION)
    finally:
        server.stop()
    return {
        "revision": revision,
        "jobs": int(jobs),
        "unfinished": int(unfinished),
        "missing": len(missing),
        "first_missing": missing[0] if missing else None,
    }


def _list_missing(server: PostgresServer, store: Path) -> Iterator[str]:
    """Keys of live results that the archive had not, or not whole."""
    if not store.exists():
        return
    for line in server.query(_STORED, timeout=_QUERY_SECONDS).splitlines():
        size, _, key = line.partition("|")
        path = store / key
        if not path.is_file() or path.stat().st_size != int(size):
            yield key
