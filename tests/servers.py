"""PostgreSQL and Valkey for tests: real ones, from the wheels, started once a session when a test asks.

- `database_url`: an empty, migrated database of its own for every test.
- `redis_url`: the session's Valkey, emptied before every test.
- `postgres`, `valkey`: the servers themselves; `create_database` for more databases, or for a bare one.

Under pytest-xdist every worker process has servers of its own, so nothing is shared and nothing needs a lock.
"""

from __future__ import annotations

import itertools
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleek.local.postgres import IMMEDIATE_STOP, PostgresServer
from fleek.local.valkey import ValkeyServer

_TEMPLATE = "migrated"
_TEST_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "file_copy_method": "clone",
}
"""What a power cut would do to a test's database does not matter; how transactions behave does not change."""


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """A folder that an unprivileged user may enter, with a path short enough for sockets.

    pytest's own `tmp_path` lies in a closed folder, and root's PostgreSQL does not run as root.
    """
    folder = Path(tempfile.mkdtemp(prefix="fleek-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[PostgresServer]:
    """The session's PostgreSQL; `.url(database)` is SQLAlchemy's URL of one of its databases."""
    server = PostgresServer(
        data=server_folder / "postgres",
        socket_dir=server_folder / "run" / "postgres",
        log=server_folder / "logs" / "postgres.log",
        options=_TEST_OPTIONS,
    )
    server.start()
    yield server
    server.stop(IMMEDIATE_STOP)


@pytest.fixture(scope="session")
def template_database(postgres: PostgresServer) -> str:
    """The name of a database that was migrated to head once, and is only ever copied."""
    from fleek.db.migrate import upgrade  # noqa: PLC0415  tests of other floors start faster without it

    postgres.query(f"CREATE DATABASE {_TEMPLATE}", "postgres")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(upgrade, postgres.url(_TEMPLATE)).result()
    postgres.query(f"ALTER DATABASE {_TEMPLATE} WITH ALLOW_CONNECTIONS false", "postgres")
    return _TEMPLATE


@pytest.fixture
def create_database(postgres: PostgresServer) -> Iterator[Callable[[str], str]]:
    """A function that copies a template (`template0`: bare) and gives the copy's URL, until the test ends."""
    created: list[str] = []

    def create(template: str) -> str:
        name = f"test_{next(_NUMBERS)}"
        postgres.query(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy", "postgres")
        created.append(name)
        return postgres.url(name)

    yield create
    for name in created:
        postgres.query(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
def database_url(create_database: Callable[[str], str], template_database: str) -> str:
    """SQLAlchemy's URL of a migrated, empty database that no other test uses."""
    return create_database(template_database)


@pytest.fixture(scope="session")
def valkey(server_folder: Path) -> Iterator[ValkeyServer]:
    """The session's Valkey."""
    server = ValkeyServer(
        socket=server_folder / "run" / "valkey" / "valkey.sock",
        log=server_folder / "logs" / "valkey.log",
        copies=server_folder / "programs",
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(valkey: ValkeyServer) -> str:
    """The URL of the session's Valkey, which holds nothing."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(valkey.socket))
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(64).startswith(b"+OK")
    return valkey.url()


_NUMBERS = itertools.count(1)
