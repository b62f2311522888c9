"""Log records as rows of a real PostgreSQL: stored in batches, and never in the way of anything."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from tests.cluster.proxy import FaultProxy
from tests.factories import make_completed_job, make_job
from tests.logged import logging_configured
from tests.queueing import Queue, wait_until
from tests.statements import sent_statements

from fleek.core.ids import new_id
from fleek.core.log_levels import LogLevel
from fleek.core.owner import LOCAL_OWNER
from fleek.db.session import Database, PoolOptions
from fleek.jobs import changes
from fleek.local.postgres import PostgresServer
from fleek.logs import repository
from fleek.logs.repository import EntryFilter, EntryRow
from fleek.logs.sink import DROPPED, LogSink, SinkLimits
from fleek.observability.records import Record

QUICK = SinkLimits(interval=0.05)
ALL = 1000


def record(event: str = "something_done", **overrides: Any) -> Record:
    fields: dict[str, Any] = {
        "at": datetime.now(UTC),
        "level": "info",
        "event": event,
        "job_id": None,
        "attempt": None,
        "request_id": None,
        "data": {},
    }
    return Record(**(fields | overrides))


@pytest.fixture
def process() -> str:
    """The name of a process that no other test uses."""
    return f"test-{uuid4().hex}"


@pytest.fixture
async def sink(queue: Queue, process: str) -> AsyncIterator[LogSink]:
    sink = LogSink(queue.database, process, QUICK)
    sink.start()
    yield sink
    await sink.aclose()


async def rows_of(queue: Queue, process: str) -> list[Any]:
    """The rows of a process, in the order of their ids."""
    return await queue.query(
        "SELECT * FROM log_entries WHERE process = :process ORDER BY id", process=process
    )


async def stored(sink: LogSink) -> None:
    """Wait until nothing waits."""
    await wait_until(lambda: sink.waiting == 0)


async def entries_of(queue: Queue, job_id: UUID, **wanted: Any) -> list[EntryRow]:
    found = await repository.list_entries(queue.database, LOCAL_OWNER, job_id, EntryFilter(**wanted), ALL)
    assert found is not None
    return found


async def test_a_record_becomes_a_row(queue: Queue, sink: LogSink, process: str) -> None:
    job = await make_job(queue.database)
    data = {"a": {"b": [1, None, "x\0y", float("nan")]}, "half": "\ud800"}
    given = record("something_odd", level="warning", job_id=job.id, attempt=3, request_id="r-1", data=data)
    sink.offer(given)
    await stored(sink)

    [row] = await rows_of(queue, process)
    assert (row.at, row.level, row.event) == (given.at, "warning", "something_odd")
    assert (row.job_id, row.attempt, row.request_id) == (job.id, 3, "r-1")
    assert row.data == {"a": {"b": [1, None, "x\ufffdy", None]}, "half": "?"}


async def test_records_keep_their_order_and_go_in_batches(queue: Queue, process: str) -> None:
    sink = LogSink(queue.database, process, SinkLimits(capacity=1000, batch=100, interval=0.05))
    for number in range(250):
        sink.offer(record(data={"number": number}))
    with sent_statements() as sent:
        sink.start()
        await stored(sink)
    await sink.aclose()

    assert [row.data["number"] for row in await rows_of(queue, process)] == list(range(250))
    assert sum("INTO log_entries" in one.text for one in sent) == 3


async def test_a_full_batch_does_not_wait_for_its_time(queue: Queue, process: str) -> None:
    sink = LogSink(queue.database, process, SinkLimits(batch=10, interval=60))
    sink.start()
    for _ in range(10):
        sink.offer(record())
    await stored(sink)
    await sink.aclose()

    assert len(await rows_of(queue, process)) == 10


async def test_records_of_many_threads_are_stored(queue: Queue, sink: LogSink, process: str) -> None:
    def offer() -> None:
        for _ in range(50):
            sink.offer(record())

    threads = [threading.Thread(target=offer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await stored(sink)

    assert len(await rows_of(queue, process)) == 200


async def test_what_waits_at_the_end_is_stored(queue: Queue, process: str) -> None:
    sink = LogSink(queue.database, process, SinkLimits(interval=60))
    sink.start()
    sink.offer(record())
    await sink.aclose(within=20)

    assert len(await rows_of(queue, process)) == 1


class TestAway:
    """The database does not take anything: the process goes on, and everything is accounted for."""

    @pytest.fixture
    async def locked_out(self, queue_url: str) -> AsyncIterator[Database]:
        """A pool whose statements wait for a lock only briefly."""
        database = Database(queue_url, PoolOptions(lock_timeout=0.1))
        yield database
        await database.aclose()

    async def test_too_many_records_are_dropped_and_counted_and_the_count_is_a_row(
        self, queue: Queue, locked_out: Database, process: str
    ) -> None:
        sink = LogSink(locked_out, process, SinkLimits(capacity=100, batch=30, interval=0.05))
        sink.start()
        with logging_configured() as written:
            async with queue.database.begin() as connection:
                await connection.execute(text("LOCK TABLE log_entries IN ACCESS EXCLUSIVE MODE"))
                for number in range(1000):
                    sink.offer(record(data={"number": number}))
                    if number % 100 == 0:
                        await asyncio.sleep(0.05)
                await wait_until(lambda: "log_store_away" in written.getvalue())
                assert (sink.waiting, sink.dropped) == (100, 900)
            await wait_until(lambda: sink.waiting == sink.dropped == 0, within=60)
            await sink.aclose()

        rows = await rows_of(queue, process)
        counts = [row for row in rows if row.event == DROPPED]
        assert [row.data["number"] for row in rows if row not in counts] == list(range(100))
        assert {row.level for row in counts} == {"warning"}
        assert sum(row.data["dropped"] for row in counts) == 900
        names = [event["event"] for event in written.events()]
        assert names == ["log_store_away", *[DROPPED] * len(counts)]

    async def test_a_silent_database_delays_neither_whoever_logs_nor_the_end(
        self, postgres: PostgresServer, queue_url: str, process: str
    ) -> None:
        url = make_url(queue_url)
        sockets = postgres.socket_dir / ".s.PGSQL.5432"
        with FaultProxy(sockets) as proxy, logging_configured() as written:
            near = url.set(host="127.0.0.1", port=proxy.port).difference_update_query(["host"])
            database = Database(near.render_as_string(hide_password=False))
            sink = LogSink(database, process, QUICK)
            sink.start()
            sink.offer(record())
            await stored(sink)
            proxy.fall_silent()
            began = time.monotonic()
            for _ in range(2000):
                sink.offer(record())
            took = time.monotonic() - began
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await sink.aclose(within=0.5)
            took_to_close = time.monotonic() - began
            proxy.heal()
            await database.aclose()

        assert took < 2
        assert took_to_close < 5
        assert written.events()[-1]["event"] == DROPPED
        assert written.events()[-1]["dropped"] == 2000

    async def test_records_that_are_refused_for_good_hold_up_no_others(
        self, queue: Queue, process: str
    ) -> None:
        sink = LogSink(queue.database, process, SinkLimits(batch=2, interval=0.05))
        sink.offer(record(level="no level"))
        sink.offer(record("with_the_refused"))
        sink.offer(record("behind_them"))
        with logging_configured() as written:
            sink.start()
            await wait_until(lambda: sink.waiting == sink.dropped == 0)
            await sink.aclose()

        rows = await rows_of(queue, process)
        assert [row.event for row in rows] == ["behind_them", DROPPED]
        assert rows[-1].data == {"dropped": 2}
        assert sink.lost == 2
        assert written.events()[0]["event"] == "log_entries_refused"

    async def test_nothing_is_taken_after_the_end(self, queue: Queue, process: str) -> None:
        sink = LogSink(queue.database, process, QUICK)
        sink.start()
        await sink.aclose()
        sink.offer(record())

        assert (sink.waiting, sink.dropped, sink.lost) == (0, 1, 1)


class TestJobs:
    """Entries belong to their job, and to its owner."""

    async def test_entries_of_a_job_are_listed_oldest_first_and_filtered(
        self, queue: Queue, sink: LogSink
    ) -> None:
        job, other = await make_job(queue.database), await make_job(queue.database)
        for number, level in enumerate(("info", "warning", "error"), start=1):
            sink.offer(record(level=level, job_id=job.id, attempt=number))
            sink.offer(record(level=level, job_id=other.id, attempt=number))
        await stored(sink)

        whole = await entries_of(queue, job.id)
        assert [entry.level for entry in whole] == ["info", "warning", "error"]
        assert [entry.level for entry in await entries_of(queue, job.id, level=LogLevel.WARNING)] == [
            "warning",
            "error",
        ]
        assert [entry.attempt for entry in await entries_of(queue, job.id, attempt=2)] == [2]
        assert await entries_of(queue, job.id, after=whole[0].id) == whole[1:]
        assert await entries_of(queue, job.id, after=2**64) == []

    async def test_a_job_of_somebody_else_and_no_job_at_all_look_the_same(
        self, queue: Queue, sink: LogSink
    ) -> None:
        theirs = await make_job(queue.database, owner_id="somebody else")
        sink.offer(record(job_id=theirs.id))
        await stored(sink)

        for job_id in (theirs.id, new_id()):
            found = await repository.list_entries(queue.database, LOCAL_OWNER, job_id, EntryFilter(), ALL)
            assert found is None

    async def test_what_others_asked_about_a_job_is_not_in_its_log(self, queue: Queue, sink: LogSink) -> None:
        job = await make_job(queue.database)
        sink.offer(record("ours", job_id=job.id, data={"owner": LOCAL_OWNER}))
        sink.offer(record("theirs", job_id=job.id, data={"owner": "somebody else"}))
        sink.offer(record("nobodys", job_id=job.id))
        await stored(sink)

        assert [entry.event for entry in await entries_of(queue, job.id)] == ["ours", "nobodys"]

    async def test_a_deleted_job_takes_its_entries_along_and_no_others(
        self, queue: Queue, sink: LogSink, process: str
    ) -> None:
        job, other = await make_completed_job(queue.database), await make_job(queue.database)
        for name, job_id in (("gone", job.id), ("kept", other.id), ("general", None)):
            sink.offer(record(name, job_id=job_id))
        await stored(sink)
        with sent_statements() as sent:
            assert await changes.delete(queue.database, LOCAL_OWNER, job.id) is not None

        assert len(sent) == 1
        assert [row.event for row in await rows_of(queue, process)] == ["kept", "general"]

    async def test_a_record_that_waited_while_its_job_was_deleted_is_not_stored(
        self, queue: Queue, process: str
    ) -> None:
        job = await make_completed_job(queue.database)
        sink = LogSink(queue.database, process, QUICK)
        sink.offer(record("late", job_id=job.id, data={"prompt": "a lighthouse"}))
        sink.offer(record("general"))
        await changes.delete(queue.database, LOCAL_OWNER, job.id)
        sink.start()
        await stored(sink)
        await sink.aclose()

        assert [row.event for row in await rows_of(queue, process)] == ["general"]

    async def test_whoever_reads_on_from_the_last_id_misses_nothing_of_any_process(
        self, queue: Queue, process: str
    ) -> None:
        job = await make_job(queue.database)
        seen: list[int] = []
        is_over = False

        async def write(number: int) -> None:
            for count in range(40):
                records = [record(job_id=job.id, data={"n": [number, count, each]}) for each in range(5)]
                await repository.add_entries(queue.database, f"{process}-{number}", records)

        async def read() -> None:
            while not is_over:
                news = await entries_of(queue, job.id, after=seen[-1] if seen else 0)
                seen.extend(entry.id for entry in news)

        reading = asyncio.create_task(read())
        await asyncio.gather(*(write(number) for number in range(4)))
        everything = [entry.id for entry in await entries_of(queue, job.id)]
        await wait_until(lambda: len(seen) >= len(everything) or reading.done())
        is_over = True
        await reading

        assert len(everything) == 800
        assert seen == everything


async def test_entries_are_deleted_by_age_in_batches(queue: Queue, process: str) -> None:
    now = datetime.now(UTC)
    ages = [timedelta(days=20)] * 7 + [timedelta(days=13)] * 3
    await repository.add_entries(queue.database, process, [record(at=now - age) for age in ages])
    with sent_statements() as sent:
        deleted = await repository.prune(queue.database, timedelta(days=14), batch=3)

    assert deleted >= 7
    assert len(sent) == deleted // 3 + 1
    assert len(await rows_of(queue, process)) == 3
    assert await repository.prune(queue.database, timedelta(days=14)) == 0
