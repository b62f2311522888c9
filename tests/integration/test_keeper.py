"""The keeper of leases: what it renews, when, and what it tells the executions."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from tests.queueing import Queue, wait_until
from tests.statements import sent_statements

from fleek.db.session import Database
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.keeper import LeaseKeeper, Stop

LEASE = timedelta(seconds=60)
AT_ONCE, MUCH_LATER = timedelta(0), timedelta(hours=1)


class Running:
    """An execution as the keeper sees it."""

    def __init__(self, job: ClaimedJob) -> None:
        self.job = job
        self.progress: float | None = None
        self.stops: list[Stop] = []

    def stop(self, why: Stop) -> None:
        self.stops.append(why)


def keeper_of(queue: Queue, interval: timedelta = AT_ONCE) -> LeaseKeeper:
    return LeaseKeeper(queue.database, lease=LEASE, interval=interval)


async def rest(queue: Queue, running: Running) -> timedelta:
    """How long the lease still holds."""
    [row] = await queue.query(
        "SELECT lease_expires_at - clock_timestamp() AS rest FROM jobs WHERE id = :id", id=running.job.id
    )
    return row.rest


async def start(queue: Queue, keeper: LeaseKeeper, count: int = 1) -> list[Running]:
    await queue.fill(count)
    executions = [Running(job) for job in await queue.claim(count)]
    for one in executions:
        keeper.add(one)
    return executions


async def test_a_process_with_nothing_to_keep_asks_nothing(queue: Queue) -> None:
    with sent_statements() as sent:
        assert await keeper_of(queue).run_once() == 0

    assert sent == []


async def test_all_leases_of_a_process_are_renewed_in_one_statement(queue: Queue) -> None:
    keeper = keeper_of(queue)
    executions = await start(queue, keeper, 5)

    with sent_statements() as sent:
        assert await keeper.run_once() == 5

    assert len(sent) == 1
    assert await rest(queue, executions[0]) > timedelta(seconds=50)
    assert all(one.stops == [] for one in executions)


async def test_a_lease_is_not_renewed_before_its_time(queue: Queue) -> None:
    keeper = keeper_of(queue, MUCH_LATER)
    [execution] = await start(queue, keeper)

    assert await keeper.run_once() == 0
    assert await rest(queue, execution) < timedelta(seconds=31)


async def test_new_progress_is_written_at_once_and_only_once(queue: Queue) -> None:
    keeper = keeper_of(queue, MUCH_LATER)
    [execution] = await start(queue, keeper)
    execution.progress = 0.5

    assert [await keeper.run_once(), await keeper.run_once()] == [1, 0]

    assert (await queue.row(execution.job.id)).progress == 0.5
    execution.progress = 0.75
    assert await keeper.run_once() == 1


async def test_a_removed_execution_is_not_renewed(queue: Queue) -> None:
    keeper = keeper_of(queue)
    [execution] = await start(queue, keeper)
    keeper.remove(execution)
    keeper.remove(execution)

    assert await keeper.run_once() == 0


async def test_an_execution_is_found_by_its_job(queue: Queue) -> None:
    keeper = keeper_of(queue)
    [execution] = await start(queue, keeper)

    assert keeper.find(execution.job.id) is execution

    keeper.remove(execution)
    assert keeper.find(execution.job.id) is None


async def test_the_end_of_an_old_attempt_does_not_stop_the_renewing_of_the_new_one(queue: Queue) -> None:
    keeper = keeper_of(queue)
    [old] = await start(queue, keeper)
    await queue.expire_lease(old.job.id)
    await queue.rescue(old.job)
    new = Running(await queue.claim_one())
    keeper.add(new)

    keeper.remove(old)

    assert keeper.find(new.job.id) is new
    assert await keeper.run_once() == 1


async def test_a_cancel_request_stops_the_execution_it_is_for(queue: Queue) -> None:
    keeper = keeper_of(queue)
    first, second = await start(queue, keeper, 2)
    await queue.cancel(first.job.id)

    await keeper.run_once()

    assert (first.stops, second.stops) == ([Stop.CANCEL], [])


async def test_a_lost_lease_stops_its_execution(queue: Queue) -> None:
    keeper = keeper_of(queue)
    lost, kept = await start(queue, keeper, 2)
    await queue.expire_lease(lost.job.id)
    await queue.rescue(lost.job)

    assert await keeper.run_once() == 1
    assert (lost.stops, kept.stops) == ([Stop.LOST], [])


async def test_a_row_that_is_locked_is_tried_again_soon_and_is_not_lost(queue: Queue) -> None:
    keeper = keeper_of(queue, MUCH_LATER)
    [execution] = await start(queue, keeper)
    execution.progress = 0.5
    async with queue.database.begin() as other:
        await other.execute(text("SELECT FROM jobs FOR UPDATE"))
        assert await keeper.run_once() == 0

    assert execution.stops == []
    assert await keeper.run_once() == 1


async def test_an_execution_that_ended_during_the_renewal_is_told_nothing(queue: Queue) -> None:
    keeper = keeper_of(queue)
    [execution] = await start(queue, keeper)
    await queue.cancel(execution.job.id)
    renewing = asyncio.create_task(keeper.run_once())
    await asyncio.sleep(0)
    keeper.remove(execution)

    await renewing

    assert execution.stops == []


async def test_it_goes_on_when_the_database_was_away(queue: Queue) -> None:
    away = Database("postgresql+asyncpg://fleek@/fleek?host=/no/such/folder")
    keeper = LeaseKeeper(away, lease=LEASE, interval=AT_ONCE)
    [execution] = await start(queue, keeper)
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.1)
    keeper._database = queue.database

    await wait_until(lambda: renewed(queue, execution), within=5)

    assert execution.stops == []
    assert not running.done()
    running.cancel()
    await away.aclose()


@pytest.mark.parametrize("progress", ["half", float("nan"), 7.0])
async def test_one_renewal_that_the_database_refuses_does_not_end_all_renewing(
    queue: Queue, progress: Any
) -> None:
    keeper = keeper_of(queue)
    broken, sound = await start(queue, keeper, 2)
    broken.progress = progress
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.1)
    keeper.remove(broken)

    await wait_until(lambda: renewed(queue, sound), within=5)

    assert not running.done()
    running.cancel()


async def renewed(queue: Queue, execution: Running) -> bool:
    return await rest(queue, execution) > timedelta(seconds=50)
