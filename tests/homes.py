"""Homes of a local Fleek that hold something, for tests of backups; and the commands on them.

- `full_home`: at head, with seven jobs and six pictures, not running; tests only read it.
- `backup_file`: a backup of it.
- `scratch`: a folder for files and homes of a test's own, with no setting of Fleek's in the environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleek.cli.exits import ExitCode
from fleek.cli.main import execute
from fleek.core.home import Home
from fleek.core.job import Status
from fleek.db import migrate
from fleek.db.session import Database
from fleek.local.instance import prepare_home
from fleek.local.postgres import PostgresServer
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner
from tests.factories import make_completed_job, make_job

TABLES = (
    "jobs",
    "job_requests",
    "attempts",
    "submissions",
    "media",
    "events",
    "log_entries",
    "alembic_version",
)
SECRET = "5" * 64


@contextmanager
def folder() -> Iterator[Path]:
    """One that an unprivileged user may enter, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="fleek-backup-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def server_of(home: Home) -> Iterator[PostgresServer]:
    """The home's PostgreSQL, as `fleek up` runs it."""
    prepare_home(home)
    server = PostgresServer(home.postgres_data, home.postgres_socket_dir, home.logs / "postgres.log")
    server.start()
    yield server
    server.stop()


def fill(server: PostgresServer, home: Home) -> None:
    """Jobs in every state; three of them with pictures."""

    async def make() -> None:
        database = Database(server.url())
        storage = open_storage(home.storage_url, signer=UrlSigner(b"0" * 32))
        for number in range(3):
            await make_completed_job(database, storage, prompt=f"picture {number} of 'x' \\ \u2603", n=2)
        for status in (Status.IN_QUEUE, Status.PROCESSING, Status.CANCELED):
            await make_job(database, status=status)
        await make_job(database, status=Status.ERROR, error_code="transient")
        await database.aclose()

    asyncio.run(make())
    home.secret_key_file.write_text(SECRET)


@pytest.fixture(scope="package")
def full_home() -> Iterator[Home]:
    """A home at head that holds seven jobs, not running; tests only read it."""
    with folder() as path:
        home = Home(path / "home")
        with server_of(home) as server:
            migrate.upgrade(server.url())
            fill(server, home)
        yield home


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for files and homes, with no setting of Fleek's in the environment."""
    for name in [name for name in os.environ if name.startswith("FLEEK_")]:
        monkeypatch.delenv(name)
    with folder() as path:
        monkeypatch.chdir(path)
        yield path


@pytest.fixture(scope="package")
def backup_file(full_home: Home) -> Iterator[Path]:
    """A backup of the full home; tests only read it."""
    with folder() as path:
        assert execute(["backup", str(path / "backup.tar"), "--home", str(full_home.path)]) == ExitCode.OK
        yield path / "backup.tar"


def contents(home: Home) -> dict[str, str]:
    """Every row of a home whose PostgreSQL runs, and every object's digest."""
    server = PostgresServer(home.postgres_data, home.postgres_socket_dir, home.logs / "postgres.log")
    server.find_programs()
    rows = {name: server.query(f"SELECT * FROM {name} AS t ORDER BY t::text") for name in TABLES}  # noqa: S608  names from above
    return rows | objects(home)


def objects(home: Home) -> dict[str, str]:
    files = (path for path in (home.media / "media").rglob("*") if path.is_file())
    return {
        path.relative_to(home.media).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def everything(home: Home) -> dict[str, str]:
    with server_of(home):
        return contents(home)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """What a command prints as JSON."""
    assert execute([*map(str, arguments), "--json"]) == ExitCode.OK
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """The problem that a command ends with."""
    assert execute([*map(str, arguments), "--json"]) != ExitCode.OK
    return dict(json.loads(capsys.readouterr().err))
