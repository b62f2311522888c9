"""The pool of connections: how PostgreSQL's troubles look from above, and that it heals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.cluster.proxy import FaultProxy
from tests.middle import middle_of
from tests.queueing import Queue, away
from tests.statements import sent_statements

from fleek.core.errors import DatabaseUnavailable
from fleek.db.session import Database, LockTimeoutError, PoolOptions, RolledBackError
from fleek.local.postgres import PostgresServer

ONE = text("SELECT 1 AS one")
LOCK_BOTH = text(
    """
WITH first AS MATERIALIZED (SELECT id FROM jobs WHERE id = :one FOR UPDATE),
    pause AS MATERIALIZED (SELECT pg_sleep(0.5) FROM first)
SELECT jobs.id FROM pause CROSS JOIN LATERAL (SELECT id FROM jobs WHERE id = :other FOR UPDATE) AS jobs
"""
)
"""Two rows, one after the other."""


@pytest.fixture
async def database(queue_url: str) -> AsyncIterator[Database]:
    """A pool of one connection."""
    database = Database(queue_url, PoolOptions(size=1, max_overflow=0, pool_timeout=0.2))
    yield database
    await database.aclose()


async def test_a_single_statement_is_one_round_trip(database: Database) -> None:
    with sent_statements() as sent:
        row = await database.fetch_one(ONE)

    assert row.one == 1
    assert [one.text for one in sent] == ["SELECT 1 AS one"]


async def test_what_is_asked_for_comes_in_its_form(database: Database) -> None:
    series = text("SELECT i FROM generate_series(1, :n) AS g (i)")

    assert [row.i for row in await database.fetch_all(series, {"n": 3})] == [1, 2, 3]
    assert await database.fetch_one(series, {"n": 0}) is None
    assert await database.fetch_rowcount(text("DELETE FROM lane_state WHERE false")) == 0


async def test_the_limits_hold_on_every_connection(queue_url: str) -> None:
    database = Database(
        queue_url,
        PoolOptions(statement_timeout=1.5, lock_timeout=0.25, idle_in_transaction_timeout=3),
        application="fleek test",
    )
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone", "jit")
    shown = [(await database.fetch_one(text(f"SHOW {name}")))[0] for name in (*names, "application_name")]
    await database.aclose()

    assert shown == ["1500ms", "250ms", "3s", "UTC", "off", "fleek test"]


class TestTransactions:
    async def test_a_block_that_ends_well_is_committed(self, queue: Queue, database: Database) -> None:
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO lane_state VALUES ('p', 'm', now(), 'x')"))

        assert len(await queue.query("SELECT * FROM lane_state")) == 1

    async def test_a_block_that_raises_is_rolled_back(self, queue: Queue, database: Database) -> None:
        async def fail() -> None:
            async with database.begin() as connection:
                await connection.execute(text("INSERT INTO lane_state VALUES ('p', 'm', now(), 'x')"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await queue.query("SELECT * FROM lane_state") == []


class TestTroubles:
    @pytest.mark.parametrize(
        "url",
        [
            "postgresql+asyncpg://fleek@/fleek?host=/no/such/folder",
            "postgresql+asyncpg://fleek@127.0.0.1:1/fleek",
        ],
    )
    async def test_a_server_that_is_not_there(self, url: str) -> None:
        database = Database(url, PoolOptions(connect_timeout=1))

        with pytest.raises(DatabaseUnavailable):
            await database.fetch_one(ONE)
        with pytest.raises(DatabaseUnavailable):
            await database.fetch_rowcount(ONE)
        await database.aclose()

    async def test_a_server_that_never_answers(self) -> None:
        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        database = Database(
            f"postgresql+asyncpg://fleek@127.0.0.1:{port}/fleek", PoolOptions(connect_timeout=0.2)
        )

        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(database.fetch_one(ONE), timeout=2)
        await database.aclose()
        server.close()

    async def test_a_pool_that_is_used_up(self, database: Database) -> None:
        async with database.connect():
            with pytest.raises(DatabaseUnavailable):
                await database.fetch_one(ONE)

        assert (await database.fetch_one(ONE)).one == 1

    async def test_a_statement_that_takes_too_long(self, queue_url: str) -> None:
        database = Database(queue_url, PoolOptions(statement_timeout=0.1))

        with pytest.raises(DatabaseUnavailable):
            await database.fetch_one(text("SELECT pg_sleep(5)"))
        assert (await database.fetch_one(ONE)).one == 1
        await database.aclose()

    async def test_a_lock_that_is_not_given_free(self, queue: Queue, queue_url: str) -> None:
        job = await queue.accept()
        impatient = Database(queue_url, PoolOptions(lock_timeout=0.1))
        async with queue.database.begin() as connection:
            await connection.execute(text("SELECT FROM jobs FOR UPDATE"))
            with pytest.raises(LockTimeoutError):
                await impatient.fetch_rowcount(text("UPDATE jobs SET n = 1 WHERE id = :id"), {"id": job.id})
        await impatient.aclose()

    async def test_a_database_that_may_only_be_read(self, database: Database) -> None:
        async with database.connect() as connection:
            await connection.execute(text("SET default_transaction_read_only = on"))
        with pytest.raises(DatabaseUnavailable):
            await database.fetch_rowcount(text("DELETE FROM lane_state"))

    @pytest.mark.parametrize("statement", ["SELECT 1 / 0", "SELECT no_such_column", "SELECT 'x'::int"])
    async def test_a_mistake_of_ours_is_no_trouble_of_the_server(
        self, database: Database, statement: str
    ) -> None:
        with pytest.raises(DBAPIError):
            await database.fetch_one(text(statement))
        assert (await database.fetch_one(ONE)).one == 1

    async def test_a_session_that_an_operator_ends(self, queue: Queue, database: Database) -> None:
        async def lose() -> None:
            async with database.connect() as connection:
                pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                await queue.query("SELECT pg_terminate_backend(:pid, 1000)", pid=pid)
                await connection.execute(ONE)

        with pytest.raises(DatabaseUnavailable):
            await lose()
        assert (await database.fetch_one(ONE)).one == 1

    async def test_one_of_two_that_wait_for_each_other(self, queue: Queue) -> None:
        await queue.fill(2)
        [first, second] = [row.id for row in await queue.query("SELECT id FROM jobs")]
        both = asyncio.Barrier(2)
        lock = text("SELECT id FROM jobs WHERE id = :id FOR UPDATE")

        async def take(*ids: object) -> None:
            async with queue.database.begin() as connection:
                await connection.execute(lock, {"id": ids[0]})
                await both.wait()
                await connection.execute(lock, {"id": ids[1]})

        ends = await asyncio.gather(take(first, second), take(second, first), return_exceptions=True)

        assert sorted(type(end).__name__ for end in ends) == ["NoneType", "RolledBackError"]

    async def test_two_statements_that_wait_for_each_other_are_both_done(self, queue: Queue) -> None:
        await queue.fill(2)
        [first, second] = [row.id for row in await queue.query("SELECT id FROM jobs")]

        rows = await asyncio.gather(
            queue.database.fetch_one(LOCK_BOTH, {"one": first, "other": second}),
            queue.database.fetch_one(LOCK_BOTH, {"one": second, "other": first}),
        )

        assert [row.id for row in rows] == [second, first]

    async def test_what_is_rolled_back_every_time_is_given_up(self, database: Database) -> None:
        rolled_back = text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")

        with sent_statements() as sent, pytest.raises(RolledBackError):
            await database.fetch_rowcount(rolled_back)

        assert len(sent) == 4


async def test_connections_to_a_machine_that_says_nothing_are_given_up_in_seconds_and_together(
    queue_url: str, postgres: PostgresServer
) -> None:
    socket = next(postgres.socket_dir.glob(".s.PGSQL.*[0-9]"))
    name = queue_url.partition("?")[0].rpartition("/")[2]
    loop = asyncio.get_running_loop()
    async with middle_of(socket) as (middle, port):
        database = Database(f"postgresql+asyncpg://fleek@127.0.0.1:{port}/{name}", PoolOptions(size=3))
        await asyncio.gather(*(database.fetch_one(text("SELECT pg_sleep(0.05)")) for _ in range(3)))
        middle.fall_silent()
        await asyncio.sleep(1.05)
        started = loop.time()
        rows = [await database.fetch_one(ONE) for _ in range(3)]
        seconds = loop.time() - started
        await database.aclose()

    assert [row.one for row in rows] == [1] * 3
    assert seconds < 4


async def test_statements_that_wait_for_a_machine_that_says_nothing_are_given_up_in_seconds(
    queue_url: str, postgres: PostgresServer
) -> None:
    socket = next(postgres.socket_dir.glob(".s.PGSQL.*[0-9]"))
    name = queue_url.partition("?")[0].rpartition("/")[2]
    loop = asyncio.get_running_loop()
    with FaultProxy(socket) as proxy:
        database = Database(f"postgresql+asyncpg://fleek@127.0.0.1:{proxy.port}/{name}", PoolOptions(size=3))
        await database.fetch_one(ONE)
        proxy.fall_silent()
        started = loop.time()
        outcomes = await asyncio.gather(*(outcome(database) for _ in range(3)))
        seconds = loop.time() - started
        proxy.heal()
        healed = await outcome(database)
        await database.aclose()

    assert outcomes == ["unavailable"] * 3
    assert healed == "ok"
    assert seconds < 9


async def test_a_pool_is_closed_in_seconds_though_its_server_says_nothing(
    queue_url: str, postgres: PostgresServer
) -> None:
    socket = next(postgres.socket_dir.glob(".s.PGSQL.*[0-9]"))
    name = queue_url.partition("?")[0].rpartition("/")[2]
    loop = asyncio.get_running_loop()
    with FaultProxy(socket) as proxy:
        database = Database(f"postgresql+asyncpg://fleek@127.0.0.1:{proxy.port}/{name}", PoolOptions(size=5))
        await asyncio.gather(*(database.fetch_one(text("SELECT pg_sleep(0.05)")) for _ in range(5)))
        proxy.fall_silent()
        started = loop.time()
        async with asyncio.timeout(60):
            await database.aclose()
        seconds = loop.time() - started

    assert seconds < 9


async def test_a_pool_is_closed_in_seconds_though_only_new_connections_are_answered(
    queue_url: str, postgres: PostgresServer
) -> None:
    socket = next(postgres.socket_dir.glob(".s.PGSQL.*[0-9]"))
    name = queue_url.partition("?")[0].rpartition("/")[2]
    loop = asyncio.get_running_loop()
    async with middle_of(socket) as (middle, port):
        database = Database(f"postgresql+asyncpg://fleek@127.0.0.1:{port}/{name}", PoolOptions(size=3))
        await asyncio.gather(*(database.fetch_one(text("SELECT pg_sleep(0.05)")) for _ in range(3)))
        middle.fall_silent()
        started = loop.time()
        async with asyncio.timeout(60):
            await database.aclose()
        seconds = loop.time() - started

    assert seconds < 9


async def test_a_slow_statement_of_a_server_that_answers_others_is_waited_for(queue_url: str) -> None:
    database = Database(queue_url, PoolOptions(size=1))
    row = await database.fetch_one(text("SELECT 1 AS one FROM pg_sleep(2.5)"))
    await database.aclose()

    assert row.one == 1


class TestRestart:
    async def test_an_idle_pool_heals_without_one_failed_statement(
        self, queue_url: str, postgres: PostgresServer
    ) -> None:
        database = Database(queue_url, PoolOptions(size=3))
        await asyncio.gather(*(database.fetch_one(text("SELECT pg_sleep(0.05)")) for _ in range(3)))
        async with away(postgres):
            pass
        await asyncio.sleep(1.05)

        rows = await asyncio.gather(*(database.fetch_one(ONE) for _ in range(6)))
        await database.aclose()

        assert [row.one for row in rows] == [1] * 6

    async def test_a_busy_pool_heals_within_one_failed_statement_a_connection(
        self, queue_url: str, postgres: PostgresServer
    ) -> None:
        database = Database(queue_url, PoolOptions(size=3, max_overflow=0))
        await asyncio.gather(*(database.fetch_one(text("SELECT pg_sleep(0.05)")) for _ in range(3)))
        async with away(postgres):
            pass

        outcomes = [await outcome(database) for _ in range(8)]
        await database.aclose()

        assert outcomes.count("unavailable") <= 3
        assert outcomes[-4:] == ["ok"] * 4

    async def test_while_it_is_away_every_statement_says_so_at_once(
        self, queue_url: str, postgres: PostgresServer
    ) -> None:
        database = Database(queue_url)
        await database.fetch_one(ONE)
        async with away(postgres):
            started = asyncio.get_running_loop().time()
            outcomes = [await outcome(database) for _ in range(5)]
            seconds = asyncio.get_running_loop().time() - started
        after = await outcome(database)
        await database.aclose()

        assert outcomes == ["unavailable"] * 5
        assert after == "ok"
        assert seconds < 2

    async def test_statements_that_are_cancelled_do_not_leak_connections(self, database: Database) -> None:
        for _ in range(20):
            statement = asyncio.create_task(database.fetch_one(text("SELECT pg_sleep(10)")))
            await asyncio.sleep(0.01)
            statement.cancel()
            with pytest.raises(asyncio.CancelledError):
                await statement

        assert (await database.fetch_one(ONE)).one == 1


async def outcome(database: Database) -> str:
    try:
        await database.fetch_one(ONE)
    except DatabaseUnavailable:
        return "unavailable"
    return "ok"
