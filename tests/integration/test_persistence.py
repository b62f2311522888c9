"""What must not be given up: results while PostgreSQL is away, and sections that nothing interrupts."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from tests.executing import Worker
from tests.queueing import Queue, away, wait_until

from fleek.core.errors import DatabaseUnavailable
from fleek.core.events import EventKind
from fleek.jobs.persistence import persistently, shielded
from fleek.local.postgres import PostgresServer
from fleek.testing import hold


@pytest.fixture
def worker(queue: Queue) -> Worker:
    """A worker over a provider that answers at once."""
    return Worker(queue)


class TestDatabaseAway:
    async def test_a_result_is_committed_once_although_postgresql_was_killed_meanwhile(
        self, queue: Queue, worker: Worker, postgres: PostgresServer
    ) -> None:
        gate = asyncio.Event()
        worker.provider.on_submit(hold(gate))
        job = await queue.accept_and_claim()
        _, running = worker.begin(job)
        await wait_until(lambda: worker.provider.vendor.creates)
        async with away(postgres):
            gate.set()
            await wait_until(lambda: worker.storage.puts)
            await asyncio.sleep(0.3)
        await asyncio.wait_for(running, timeout=10)

        assert (await queue.history(job.id)).count(EventKind.COMPLETED) == 1
        assert len(worker.provider.vendor.creates) == 1

    async def test_no_job_is_lost_or_completed_twice_while_postgresql_is_killed_again_and_again(
        self, queue: Queue, worker: Worker, postgres: PostgresServer
    ) -> None:
        await queue.fill(60)
        worker.provider.on_submit(*[partial(asyncio.sleep, 0.05)] * 500)
        stopping = asyncio.Event()

        async def work() -> None:
            while not stopping.is_set():
                try:
                    jobs = await queue.claim(10)
                except DatabaseUnavailable:
                    jobs = []
                await asyncio.gather(*(worker.execution(job).run() for job in jobs))
                await asyncio.sleep(0.02)

        working = asyncio.create_task(work())
        for _ in range(2):
            await asyncio.sleep(0.15)
            async with away(postgres):
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.3)
        await queue.rescue_all()
        await wait_until(lambda: all_completed(queue), within=15)
        stopping.set()
        await working

        assert len(await queue.query("SELECT job_id FROM events WHERE kind = 'completed'")) == 60

    async def test_a_database_that_stays_away_is_given_up(self) -> None:
        tries = 0

        async def statement() -> None:
            nonlocal tries
            tries += 1
            raise DatabaseUnavailable

        with pytest.raises(DatabaseUnavailable):
            await persistently(statement, give_up_after=0.3)
        assert tries == 3

    async def test_any_other_error_is_not_repeated(self) -> None:
        tries = 0

        async def statement() -> None:
            nonlocal tries
            tries += 1
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await persistently(statement)
        assert tries == 1


async def all_completed(queue: Queue) -> bool:
    return not await queue.query("SELECT id FROM jobs WHERE status <> 'completed'")


class TestShielded:
    async def test_a_section_gives_its_result(self) -> None:
        assert await shielded(asyncio.sleep(0, "result")) == "result"

    async def test_an_error_of_the_section_is_raised(self) -> None:
        async def section() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await shielded(section())

    @pytest.mark.parametrize("cancels", [1, 3])
    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_section_ends_before_its_caller_is_cancelled_however_often_that_is_asked(
        self, cancels: int, *, fails: bool
    ) -> None:
        gate, ended = asyncio.Event(), asyncio.Event()

        async def section() -> None:
            await gate.wait()
            ended.set()
            if fails:
                raise ValueError

        caller = asyncio.create_task(shielded(section()))
        for _ in range(cancels):
            await asyncio.sleep(0.01)
            caller.cancel()
        await asyncio.sleep(0.01)

        assert not caller.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert ended.is_set()

    async def test_a_section_that_is_cancelled_itself_cancels_its_caller(self) -> None:
        async def section() -> None:
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await shielded(section())

        caller = asyncio.create_task(shielded(asyncio.sleep(10)))
        await asyncio.sleep(0.01)
        [inner] = [task for task in asyncio.all_tasks() if task not in {caller, asyncio.current_task()}]
        caller.cancel()
        await asyncio.sleep(0)
        inner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
