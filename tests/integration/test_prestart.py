"""`script/prestart`: waits for the database, migrates, and becomes the program that follows."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.middle import Middle

from fleek.db import migrate
from fleek.local.postgres import PostgresServer

SCRIPT = Path(__file__).parents[2] / "script" / "prestart"
PASSWORD = "hunter2-and-some-more"
BOUND = 60
"""Seconds that nothing here takes, on a slow machine either."""


class Prestart:
    """One run of the script, in a folder without any configuration."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def run(self, *command: str, url: str, wait: int = BOUND) -> tuple[int, str, str]:
        """Its exit code and what it said on both outputs."""
        process = await self.begin(*command, url=url, wait=wait)
        return await self.end(process)

    async def begin(self, *command: str, url: str, wait: int = BOUND) -> asyncio.subprocess.Process:
        """Start it."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        # In the image the programs are on the PATH; here they lie beside the interpreter of the tests.
        path = f"{Path(sys.executable).parent}:{plain['PATH']}"
        given = {"PATH": path, "FLEEK_DATABASE_URL": url, "PRESTART_WAIT": str(wait)}
        return await asyncio.create_subprocess_exec(
            SCRIPT,
            *command,
            cwd=self._folder,
            env=plain | given,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def end(self, process: asyncio.subprocess.Process) -> tuple[int, str, str]:
        """Wait for its end."""
        async with asyncio.timeout(BOUND):
            output, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), errors.decode()


@pytest.fixture
def prestart(tmp_path: Path) -> Prestart:
    """The script, and an empty folder to run it in."""
    return Prestart(tmp_path)


@pytest.fixture
def closed_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_it_migrates_and_becomes_the_program(
    prestart: Prestart, create_database: Callable[[str], str]
) -> None:
    url = create_database("template0")
    process = await prestart.begin("sh", "-c", 'echo "$$ $0 $1"', "first", "second word", url=url)
    code, output, _ = await prestart.end(process)

    assert code == 0
    assert output == f"{process.pid} first second word\n", "the same process, and only what the program says"
    assert await migrate.current(url) == migrate.head()


async def test_the_program_s_exit_code_is_its_own_and_a_second_run_changes_nothing(
    prestart: Prestart, database_url: str
) -> None:
    code, output, _ = await prestart.run("sh", "-c", "exit 7", url=database_url)

    assert (code, output) == (7, "")
    assert await migrate.current(database_url) == migrate.head()


async def test_without_a_program_it_ends_when_the_schema_is_there(
    prestart: Prestart, create_database: Callable[[str], str]
) -> None:
    url = create_database("template0")
    runs = await asyncio.gather(*(prestart.run(url=url) for _ in range(3)))

    assert [(code, output) for code, output, _ in runs] == [(0, "")] * 3
    assert await migrate.current(url) == migrate.head()


async def test_it_waits_for_a_database_that_begins_later(
    prestart: Prestart, postgres: PostgresServer, create_database: Callable[[str], str], closed_port: int
) -> None:
    name = create_database("template0").partition("?")[0].rpartition("/")[2]
    url = f"postgresql://fleek@127.0.0.1:{closed_port}/{name}"
    process = await prestart.begin("echo", "begun", url=url)
    assert process.stderr is not None
    async with asyncio.timeout(BOUND):
        said = await process.stderr.readline()
    middle = Middle(postgres.socket_dir / ".s.PGSQL.5432")
    server = await asyncio.start_server(middle.accept, "127.0.0.1", closed_port)
    code, output, _ = await prestart.end(process)
    server.close()
    await middle.aclose()

    assert f"127.0.0.1:{closed_port}/{name}, for up to {BOUND} s" in said.decode()
    assert (code, output) == (0, "begun\n")


async def test_it_gives_up_in_time_and_never_tells_the_password(prestart: Prestart, closed_port: int) -> None:
    url = f"postgresql://fleek:{PASSWORD}@127.0.0.1:{closed_port}/fleek?password={PASSWORD}"
    code, output, errors = await prestart.run("echo", "begun", url=url, wait=2)

    assert (code, output) == (3, "")
    assert f"Waiting for the database postgresql+asyncpg://fleek:***@127.0.0.1:{closed_port}/fleek," in errors
    assert "The database does not answer" in errors
    assert PASSWORD not in errors


async def test_a_database_that_refuses_is_not_waited_for(
    prestart: Prestart, postgres: PostgresServer
) -> None:
    begin = time.monotonic()
    code, _, errors = await prestart.run("echo", "begun", url=postgres.url("no_such_database"), wait=3600)

    assert code == 2
    assert "no_such_database" in errors
    assert time.monotonic() - begin < BOUND


async def test_a_wrong_url_is_told_at_once(prestart: Prestart) -> None:
    code, output, errors = await prestart.run("echo", "begun", url=f"mysql://fleek:{PASSWORD}@db/fleek")

    assert (code, output) == (2, "")
    assert "FLEEK_DATABASE_URL" in errors
    assert PASSWORD not in errors
