"""What processes say of themselves, and what a start makes of the schema, as an operator sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy.engine import make_url
from tests.middle import Middle
from tests.queueing import PARAMETERS, Queue, wait_until
from tests.workers import CELERY, START

from fleek.core.errors import ConfigurationError, DatabaseReadOnly, DatabaseUnavailable, SchemaOutdated
from fleek.db.migrate import upgrade
from fleek.db.revisions import Revisions, shipped_revisions
from fleek.db.schema import Schema, SchemaState
from fleek.db.session import Database
from fleek.local.postgres import PostgresServer

API = (sys.executable, "-m", "fleek.cli.main", "api")
WORKER = (sys.executable, "-m", "fleek.cli.main", "worker")
UVICORN = (sys.executable, "-m", "uvicorn", "fleek.main:app")
HEAD = shipped_revisions().head


class Program:
    """One process on settings of its own, with ports that are free."""

    def __init__(self, command: tuple[str, ...], folder: Path, database_url: str, redis_url: str) -> None:
        self.port = _free_port()
        settings = {
            "home": str(folder / "home"),
            "secret_key": secrets.token_hex(16),
            "database_url": database_url,
            "redis_url": redis_url,
            "storage_url": (folder / "media").as_uri(),
            "port": str(self.port),
            **({"worker_port": str(self.port)} if command == CELERY else {}),
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        self._environment = plain | {f"FLEEK_{name.upper()}": value for name, value in settings.items()}
        takes_a_flag = command in {UVICORN, WORKER}
        self._command = (*command, "--port", str(self.port)) if takes_a_flag else command
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        """With these settings beside the usual ones."""
        given = {f"FLEEK_{name.upper()}": value for name, value in settings.items()}
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                self._command, env=self._environment | given, stdout=file, stderr=file, cwd=self._log.parent
            )

    async def end(self) -> int:
        """The exit code, once it has ended by itself."""
        process = self._process
        assert process is not None
        await wait_until(lambda: process.poll() is not None, within=3 * START)
        return int(process.returncode)

    @property
    def said(self) -> str:
        """All of it."""
        return self._log.read_text()

    async def answers(self, path: str, status: int) -> httpx2.Response:
        """The answer, once it has this status."""
        found: list[httpx2.Response] = []

        async def is_there() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
                    found.append(await client.get(f"http://127.0.0.1:{self.port}{path}"))
            return bool(found) and found[-1].status_code == status

        try:
            await wait_until(is_there, within=3 * START)
        except TimeoutError:
            raise AssertionError(f"no {status} from {path}: {self.said}") from None
        return found[-1]

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """At the end of a test."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


Prepare = Callable[[tuple[str, ...], str], Program]


@pytest.fixture
def prepare(redis_url: str, tmp_path: Path) -> Iterator[Prepare]:
    """A function that makes a program for a database; killed after the test."""
    made: list[Program] = []

    def make(command: tuple[str, ...], database_url: str) -> Program:
        made.append(Program(command, tmp_path, database_url, redis_url))
        return made[-1]

    yield make
    for program in made:
        program.kill()


@pytest.fixture
def empty_url(create_database: Callable[[str], str]) -> str:
    return create_database("template0")


@pytest.mark.parametrize(
    ("command", "code"),
    [(API, 2), (WORKER, 2), (CELERY, 2), (UVICORN, 3)],
    ids=["fleek api", "fleek worker", "celery", "uvicorn"],
)
async def test_an_empty_database_stops_the_start_and_names_the_remedy(
    prepare: Prepare, empty_url: str, command: tuple[str, ...], code: int
) -> None:
    program = prepare(command, empty_url)
    program.start()

    assert await program.end() == code, program.said
    assert "`fleek db upgrade`" in program.said
    assert "FLEEK_WAIT_FOR_SCHEMA" in program.said
    assert "Traceback" not in program.said


@pytest.mark.parametrize("command", [API, WORKER], ids=["api", "worker"])
async def test_a_start_that_waits_is_not_ready_until_somebody_has_migrated(
    prepare: Prepare, empty_url: str, command: tuple[str, ...]
) -> None:
    program = prepare(command, empty_url)
    program.start(wait_for_schema="true")
    waiting = await program.answers("/readyz", 503)
    alive = await program.answers("/livez", 200)
    await asyncio.to_thread(upgrade, empty_url)
    await program.answers("/readyz", 200)

    assert "fleek db upgrade" in waiting.json()["detail"]
    assert alive.status_code == 200


@pytest.mark.parametrize("command", [API, WORKER], ids=["api", "worker"])
async def test_the_schema_of_a_later_release_stops_nothing(
    prepare: Prepare, database_url: str, postgres: PostgresServer, command: tuple[str, ...]
) -> None:
    _set_revision(postgres, database_url, "of_next_year")
    program = prepare(command, database_url)
    program.start(log_format="json")
    await program.answers("/readyz", 200)

    assert '"schema_newer"' in program.said


@pytest.mark.parametrize("command", [API, WORKER], ids=["api", "worker"])
async def test_a_database_that_is_away_stops_no_start_and_is_used_once_it_answers(
    prepare: Prepare, database_url: str, postgres: PostgresServer, command: tuple[str, ...]
) -> None:
    port = _free_port()
    program = prepare(command, _over_tcp(database_url, port))
    program.start()
    away = await program.answers("/readyz", 503)
    alive = await program.answers("/livez", 200)
    async with _leading_to(postgres, port):
        await program.answers("/readyz", 200)

    assert "does not answer" in away.json()["detail"]
    assert alive.status_code == 200


async def test_a_database_that_refuses_us_stops_the_start(prepare: Prepare, database_url: str) -> None:
    program = prepare(WORKER, make_url(database_url).set(database="of_nobody").render_as_string())
    program.start()

    assert await program.end() == 2, program.said
    assert "FLEEK_DATABASE_URL: the database refuses us" in program.said
    assert "of_nobody" in program.said
    assert "Traceback" not in program.said


async def test_a_worker_whose_database_goes_away_is_not_ready_until_it_is_back(
    prepare: Prepare, database_url: str, postgres: PostgresServer
) -> None:
    port = _free_port()
    program = prepare(WORKER, _over_tcp(database_url, port))
    async with _leading_to(postgres, port):
        program.start()
        await program.answers("/readyz", 200)
    away = await program.answers("/readyz", 503)
    alive = await program.answers("/livez", 200)
    async with _leading_to(postgres, port):
        await program.answers("/readyz", 200)

    assert "does not answer" in away.json()["detail"]
    assert alive.status_code == 200


async def test_a_worker_that_stops_says_so_until_its_jobs_have_ended(
    prepare: Prepare, database_url: str
) -> None:
    program = prepare(WORKER, database_url)
    program.start(shutdown_grace="60")
    await program.answers("/readyz", 200)
    queue = Queue(Database(database_url))
    job = await queue.accept(
        model="demo", parameters=PARAMETERS | {"width": 64, "height": 64}, input={"delay_seconds": 300}
    )

    async def is_running() -> bool:
        return bool((await queue.row(job.id)).status == "processing")

    await wait_until(is_running, within=3 * START)
    program.send(signal.SIGTERM)
    stopping = await program.answers("/readyz", 503)
    alive = await program.answers("/livez", 200)
    await queue.database.aclose()

    assert "stops" in stopping.json()["detail"]
    assert alive.status_code == 200


async def test_a_worker_whose_port_is_taken_says_so_and_ends(prepare: Prepare, database_url: str) -> None:
    program = prepare(CELERY, database_url)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        program.start(worker_port=str(port))
        code = await program.end()

    assert code == 2, program.said
    assert f"FLEEK_WORKER_PORT: port {port} is busy on 127.0.0.1" in program.said
    assert "Traceback" not in program.said


class TestSchema:
    """What is found out, and what it means."""

    @pytest.mark.parametrize(
        ("revision", "state"),
        [("a", SchemaState.OLDER), ("b", SchemaState.CURRENT), ("z", SchemaState.NEWER)],
    )
    async def test_a_revision_is_older_current_or_newer(
        self, database_url: str, postgres: PostgresServer, revision: str, state: SchemaState
    ) -> None:
        _set_revision(postgres, database_url, revision)
        async with _opened(database_url, Revisions(frozenset({"a", "b"}), "b")) as schema:
            found = await schema.look()

        assert (found, schema.revision) == (state, revision)
        assert schema.is_usable is (state is not SchemaState.OLDER)

    @pytest.mark.parametrize("is_there", [True, False])
    async def test_no_revision_is_an_empty_database(
        self, empty_url: str, postgres: PostgresServer, *, is_there: bool
    ) -> None:
        if is_there:
            create = "CREATE TABLE alembic_version (version_num text)"
            postgres.query(create, str(make_url(empty_url).database))
        async with _opened(empty_url) as schema:
            with pytest.raises(SchemaOutdated):
                await schema.probe()

        assert schema.state is SchemaState.EMPTY

    async def test_a_schema_that_is_older_by_a_step_stops_a_start_that_may_not_wait(
        self, database_url: str, postgres: PostgresServer
    ) -> None:
        (older, *_) = shipped_revisions().known - {HEAD}
        _set_revision(postgres, database_url, older)
        async with _opened(database_url, may_wait=True) as patient:
            await patient.check()
        async with _opened(database_url) as schema:
            with pytest.raises(ConfigurationError, match=f"has the schema {older}, and .* needs {HEAD}"):
                await schema.check()

        assert patient.state is SchemaState.OLDER

    async def test_a_database_that_takes_no_writes_is_told_from_one_that_is_away(
        self, database_url: str, postgres: PostgresServer
    ) -> None:
        name = make_url(database_url).database
        postgres.query(f"ALTER DATABASE {name} SET default_transaction_read_only = on", "postgres")
        async with _opened(database_url) as schema:
            with pytest.raises(DatabaseReadOnly):
                await schema.probe()
        async with _opened("postgresql+asyncpg://fleek@127.0.0.1:1/fleek") as nowhere:
            with pytest.raises(DatabaseUnavailable) as away:
                await nowhere.probe()

        assert not isinstance(away.value, DatabaseReadOnly)

    async def test_one_that_may_not_look_is_told_what_the_database_said(
        self, database_url: str, postgres: PostgresServer
    ) -> None:
        role, url = f"guest_{secrets.token_hex(4)}", make_url(database_url)
        postgres.query(f"CREATE ROLE {role} LOGIN", "postgres")
        async with _opened(url.set(username=role).render_as_string()) as schema:
            with pytest.raises(ConfigurationError, match="permission denied for table alembic_version"):
                await schema.look()
        postgres.query(f"DROP ROLE {role}", "postgres")

    async def test_waiting_for_it_ends_when_it_is_there(self, empty_url: str) -> None:
        async with _opened(empty_url) as schema:
            waiting = asyncio.create_task(schema.until_usable())
            await asyncio.sleep(0.1)
            was_over = waiting.done()
            await asyncio.to_thread(upgrade, empty_url)
            async with asyncio.timeout(20):
                await waiting

        assert not was_over
        assert schema.state is SchemaState.CURRENT


@asynccontextmanager
async def _opened(
    url: str, revisions: Revisions | None = None, *, may_wait: bool = False
) -> AsyncIterator[Schema]:
    database = Database(url)
    yield Schema(database, revisions or shipped_revisions(), may_wait=may_wait)
    await database.aclose()


def _set_revision(postgres: PostgresServer, url: str, revision: str) -> None:
    change = f"UPDATE alembic_version SET version_num = '{revision}'"  # noqa: S608  a name of these tests
    postgres.query(change, str(make_url(url).database))


def _over_tcp(url: str, port: int) -> str:
    plain = make_url(url).set(host="127.0.0.1", port=port, query={})
    return plain.render_as_string(hide_password=False)


@asynccontextmanager
async def _leading_to(postgres: PostgresServer, port: int) -> AsyncIterator[None]:
    """A port behind which the database answers from now on."""
    (path,) = postgres.socket_dir.glob(".s.PGSQL.*[0-9]")
    middle = Middle(path)
    server = await asyncio.start_server(middle.accept, "127.0.0.1", port)
    yield
    server.close()
    await middle.aclose()
