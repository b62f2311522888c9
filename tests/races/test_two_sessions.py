"""Two sessions that want the same job at the same moment: exactly one of them gets its way.

A third session holds the row while both begin, so that which of them comes first is known; and the same
pairs run unstaged, many times. Every history is checked at the end (`queue`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.queueing import FAKE, Queue, retry_job, stored, wait_until

from fleek.core import job as core
from fleek.core.job import ErrorCode, Status
from fleek.core.owner import LOCAL_OWNER
from fleek.db.session import Database, PoolOptions
from fleek.jobs import changes, claim, leases, submissions, transitions
from fleek.jobs.changes import Idempotency
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.leases import Held, Lease
from fleek.jobs.transitions import Moved
from fleek.providers.base import Handle

ROUNDS = 12
Side = Callable[[Database, ClaimedJob], Awaitable[Any]]


@pytest.fixture
async def sessions(queue_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two processes."""
    patient = PoolOptions(lock_timeout=20, statement_timeout=30)
    first, second = Database(queue_url, patient), Database(queue_url, patient)
    yield first, second
    await first.aclose()
    await second.aclose()


def status_of(moved: Moved | None) -> Status | None:
    return None if moved is None else moved.status


async def finish(database: Database, job: ClaimedJob) -> bool:
    return await transitions.finish(database, job.id, job.fence, stored(job), metrics={}) is not None


async def fail(database: Database, job: ClaimedJob) -> Status | None:
    refused = core.failed(ErrorCode.CONTENT_REFUSED, "no")
    return status_of(await transitions.apply(database, job.id, job.fence, refused, provider="fake"))


async def release(database: Database, job: ClaimedJob) -> Status | None:
    return status_of(await transitions.apply(database, job.id, job.fence, core.released(), provider="fake"))


async def rescue(database: Database, job: ClaimedJob) -> Status | None:
    crash = core.decide_after_crash(0, own_work=True)
    return status_of(
        await transitions.apply(
            database, job.id, job.fence, crash, provider="fake", only_if_abandoned=timedelta(seconds=30)
        )
    )


async def renew(database: Database, job: ClaimedJob) -> Lease:
    renewals = await leases.renew(database, [Held(job.id, job.fence)], timedelta(seconds=30))
    return renewals[job.id, job.fence].lease


async def cancel(database: Database, job: ClaimedJob) -> Status | None:
    moved = await changes.cancel(database, LOCAL_OWNER, job.id)
    return None if moved is None else moved.status


async def retry(database: Database, job: ClaimedJob) -> Status | None:
    moved = await retry_job(database, job.id)
    return None if moved is None else moved.status


async def delete(database: Database, job: ClaimedJob) -> bool:
    return await changes.delete(database, LOCAL_OWNER, job.id) is not None


async def intend(database: Database, job: ClaimedJob) -> int:
    return await Queue(database).order(job)


async def record(database: Database, job: ClaimedJob) -> None:
    await submissions.record(database, job.id, job.fence, 1, Handle(f"h-{job.id}"))


async def give_up(database: Database, job: ClaimedJob) -> bool:
    return await submissions.give_up(database, job.id, job.fence, ordinal=1)


async def is_waiting(queue: Queue, count: int) -> bool:
    """Whether so many sessions wait for a lock."""
    rows = await queue.query(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return len(rows) >= count


@asynccontextmanager
async def row_held(queue: Queue, job: ClaimedJob) -> AsyncIterator[None]:
    """Nobody else can change the job inside."""
    async with queue.database.begin() as connection:
        await connection.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": job.id})
        yield


async def in_turn(
    queue: Queue, job: ClaimedJob, sessions: tuple[Database, Database], first: Side, second: Side
) -> tuple[Any, Any]:
    """Both have begun before either ends, and `first` reaches the row before `second` does."""
    async with row_held(queue, job):
        one = asyncio.create_task(first(sessions[0], job))
        await wait_until(lambda: is_waiting(queue, 1))
        other = asyncio.create_task(second(sessions[1], job))
        await wait_until(lambda: is_waiting(queue, 2))
    return await one, await other


async def at_once(
    sessions: tuple[Database, Database], job: ClaimedJob, first: Side, second: Side
) -> tuple[Any, Any]:
    """Both begin at the same moment; who comes first is left to chance."""
    barrier = asyncio.Barrier(2)

    async def side(act: Side, database: Database) -> Any:
        await barrier.wait()
        return await act(database, job)

    one, other = await asyncio.gather(side(first, sessions[0]), side(second, sessions[1]))
    return one, other


class TestCancelAgainstFinish:
    async def test_a_cancel_that_comes_first_is_a_request_and_the_completion_stands(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await queue.accept_and_claim()

        assert await in_turn(queue, job, sessions, cancel, finish) == (Status.PROCESSING, True)
        assert (await queue.row(job.id)).status == Status.COMPLETED

    async def test_a_completion_that_comes_first_leaves_nothing_to_cancel(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await queue.accept_and_claim()

        assert await in_turn(queue, job, sessions, finish, cancel) == (True, None)
        assert (await queue.row(job.id)).cancel_requested_at is None


class TestCancelAgainstRelease:
    async def test_a_cancel_that_comes_first_ends_the_released_job(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await queue.accept_and_claim()

        assert await in_turn(queue, job, sessions, cancel, release) == (Status.PROCESSING, Status.CANCELED)

    async def test_a_cancel_that_comes_second_ends_the_waiting_job(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await queue.accept_and_claim()

        assert await in_turn(queue, job, sessions, release, cancel) == (Status.IN_QUEUE, Status.CANCELED)

    @pytest.mark.parametrize("acts", [(cancel, release), (release, cancel)])
    async def test_with_an_open_order_either_way_leads_to_a_claim_that_cancels_there(
        self, queue: Queue, sessions: tuple[Database, Database], acts: tuple[Side, Side]
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")

        await in_turn(queue, job, sessions, *acts)

        again = await queue.claim_one()
        assert (again.cancel_requested, len(again.open_orders)) == (True, 1)

    async def test_an_order_that_is_placed_during_the_cancel_is_not_forgotten(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await queue.accept_and_claim()

        assert await in_turn(queue, job, sessions, intend, cancel) == (1, Status.PROCESSING)
        assert await release(queue.database, job) is Status.IN_QUEUE
        assert (await queue.row(job.id)).resuming


class Within(Database):
    """A database whose statements belong to one transaction that is open already."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        yield self._connection

    begin = connect


class TestCancelAgainstAnOrder:
    async def test_an_order_that_is_placed_before_the_release_is_not_lost_by_a_cancel_that_waited(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await queue.accept_and_claim()
        async with sessions[0].begin() as connection:
            await intend(Within(connection), job)
            canceling = asyncio.create_task(cancel(sessions[1], job))
            await wait_until(lambda: is_waiting(queue, 1))
            await release(Within(connection), job)

        assert await canceling is Status.IN_QUEUE
        again = await queue.claim_one()
        assert (again.cancel_requested, len(again.open_orders)) == (True, 1)


class TestClaimAgainstCancel:
    @asynccontextmanager
    async def claiming(self, queue: Queue, database: Database) -> AsyncIterator[list[ClaimedJob]]:
        """A claim that has happened, and is not committed yet."""
        async with database.begin() as connection:
            claimer = queue.claimer()
            wanted = claim._Wanted("default", 1, [FAKE], None)
            parameters = claimer._parameters(wanted, [FAKE])
            yield await claim._run_claim(connection, parameters)

    async def test_a_claim_that_comes_first_is_asked_to_cancel(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        await queue.accept()
        async with self.claiming(queue, sessions[0]) as [job]:
            canceling = asyncio.create_task(cancel(sessions[1], job))
            await wait_until(lambda: is_waiting(queue, 1))

        assert await canceling is Status.PROCESSING
        assert (await queue.row(job.id)).cancel_requested_at is not None

    async def test_a_job_that_is_being_canceled_is_not_claimed(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        accepted = await queue.accept()
        async with sessions[0].begin() as connection:
            await connection.execute(changes._CANCEL, {"id": accepted.id, "owner": LOCAL_OWNER})
            assert await queue.claim(8) == []

        assert await queue.claim(8) == []
        assert (await queue.row(accepted.id)).status == Status.CANCELED

    async def test_a_claim_that_is_rolled_back_leaves_the_job_to_the_cancel(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        accepted = await queue.accept()
        canceling = None
        with suppress(ZeroDivisionError):
            async with self.claiming(queue, sessions[0]) as [job]:
                canceling = asyncio.create_task(cancel(sessions[1], job))
                await wait_until(lambda: is_waiting(queue, 1))
                raise ZeroDivisionError

        assert canceling is not None
        assert await canceling is Status.CANCELED
        assert await queue.attempts(accepted.id) == []

    async def test_a_job_that_is_being_claimed_is_not_claimed_again(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        await queue.accept()
        async with (
            self.claiming(queue, sessions[0]) as first,
            self.claiming(queue, sessions[1]) as second,
        ):
            assert (len(first), len(second)) == (1, 0)

        assert await queue.claim(8) == []

    async def test_unstaged(self, queue: Queue, sessions: tuple[Database, Database]) -> None:
        for _ in range(ROUNDS):
            job = await queue.accept()
            claimed, moved = await asyncio.gather(
                Queue(sessions[0]).claim(1), changes.cancel(sessions[1], LOCAL_OWNER, job.id)
            )
            assert moved is not None
            if claimed:
                assert moved.status is Status.PROCESSING
                assert await release(sessions[0], claimed[0]) is Status.CANCELED
            assert (await queue.row(job.id)).status == Status.CANCELED


class TestRescueAgainstItsOwner:
    async def expired(self, queue: Queue) -> ClaimedJob:
        job = await queue.accept_and_claim()
        await queue.expire_lease(job.id)
        return job

    @pytest.mark.parametrize(
        ("act", "won"), [(finish, True), (fail, Status.ERROR), (release, Status.IN_QUEUE)]
    )
    async def test_an_owner_that_comes_first_keeps_its_end(
        self, queue: Queue, sessions: tuple[Database, Database], act: Side, won: Any
    ) -> None:
        job = await self.expired(queue)

        assert await in_turn(queue, job, sessions, act, rescue) == (won, None)
        assert (await queue.row(job.id)).crashes == 0

    @pytest.mark.parametrize(("act", "lost"), [(finish, False), (fail, None), (release, None)])
    async def test_an_owner_that_comes_second_changes_nothing(
        self, queue: Queue, sessions: tuple[Database, Database], act: Side, lost: Any
    ) -> None:
        job = await self.expired(queue)

        assert await in_turn(queue, job, sessions, rescue, act) == (Status.IN_QUEUE, lost)
        assert (await queue.row(job.id)).reason == "lease_expired"

    async def test_a_renewal_that_is_not_committed_yet_is_waited_for_and_kept(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await self.expired(queue)
        parameters = {"ids": [job.id], "fences": [1], "progress": [None], "lease": timedelta(seconds=30)}
        async with sessions[0].begin() as connection:
            await connection.execute(leases._RENEW, parameters)
            rescuing = asyncio.create_task(rescue(sessions[1], job))
            await wait_until(lambda: is_waiting(queue, 1))

        assert await rescuing is None
        assert (await queue.row(job.id)).status == Status.PROCESSING

    async def test_a_renewal_during_a_rescue_is_put_off_and_then_finds_the_lease_lost(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await self.expired(queue)
        async with row_held(queue, job):
            rescuing = asyncio.create_task(rescue(sessions[0], job))
            await wait_until(lambda: is_waiting(queue, 1))
            during = await renew(sessions[1], job)
        await rescuing

        assert during is Lease.SKIPPED
        assert await renew(sessions[1], job) is Lease.LOST

    async def test_an_owner_that_places_an_order_during_the_rescue_keeps_its_job(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await self.expired(queue)

        assert await in_turn(queue, job, sessions, intend, rescue) == (1, None)
        assert (await queue.row(job.id)).status == Status.PROCESSING
        assert len(await queue.orders(job.id)) == 1

    async def test_a_handle_that_the_owner_records_during_the_rescue_is_kept(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        for acts in ((record, rescue), (rescue, record)):
            job = await queue.accept_and_claim()
            await queue.order(job)
            await queue.expire_lease(job.id)

            await in_turn(queue, job, sessions, *acts)

            again = await queue.claim_one()
            assert again.open_orders[0].handle == Handle(f"h-{job.id}")
            await finish(queue.database, again)

    @pytest.mark.parametrize("act", [finish, fail, release, renew])
    async def test_unstaged(self, queue: Queue, sessions: tuple[Database, Database], act: Side) -> None:
        for _ in range(ROUNDS):
            job = await self.expired(queue)
            rescued, own = await at_once(sessions, job, rescue, act)
            if act is renew:
                assert (rescued is None) == (own is Lease.RENEWED)
            else:
                assert bool(rescued) != bool(own)
            await queue.change("DELETE FROM jobs")


class TestRescueAgainstRescue:
    async def test_one_of_two_rescuers_wins(self, queue: Queue, sessions: tuple[Database, Database]) -> None:
        job = await queue.accept_and_claim()
        await queue.expire_lease(job.id)

        assert await in_turn(queue, job, sessions, rescue, rescue) == (Status.IN_QUEUE, None)
        assert (await queue.row(job.id)).crashes == 1


class TestFinishAgainstFinish:
    @pytest.mark.parametrize("other", [finish, fail, release])
    async def test_one_end_of_an_attempt_wins(
        self, queue: Queue, sessions: tuple[Database, Database], other: Side
    ) -> None:
        job = await queue.accept_and_claim()

        results = await in_turn(queue, job, sessions, finish, other)

        assert results[0]
        assert not results[1]


class TestHandleAgainstGivingUp:
    async def test_an_order_whose_handle_is_being_recorded_is_not_given_up(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job)

        assert await in_turn(queue, job, sessions, record, give_up) == (None, False)
        [order] = await queue.orders(job.id)
        assert (order.handle_id, order.resolution) == (f"h-{job.id}", None)


class TestRetryAgainstRetry:
    async def ended(self, queue: Queue) -> ClaimedJob:
        job = await queue.accept_and_claim()
        await fail(queue.database, job)
        return job

    async def test_one_of_two_retries_wins(self, queue: Queue, sessions: tuple[Database, Database]) -> None:
        job = await self.ended(queue)

        assert await in_turn(queue, job, sessions, retry, retry) == (Status.IN_QUEUE, None)

    async def test_one_of_two_retries_with_one_key_wins_and_the_key_is_kept_once(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        for _ in range(ROUNDS):
            job = await self.ended(queue)
            key = Idempotency("k", "f")

            async def keyed(database: Database, job: ClaimedJob, key: Idempotency = key) -> Any:
                return await retry_job(database, job.id, key)

            results = await at_once(sessions, job, keyed, keyed)

            assert sorted(result is None for result in results) == [False, True]
            await cancel(queue.database, job)

    async def test_a_retry_and_a_delete_exclude_each_other(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        assert await in_turn(queue, await self.ended(queue), sessions, retry, delete) == (
            Status.IN_QUEUE, False
        )  # fmt: skip
        await queue.change("DELETE FROM jobs")
        assert await in_turn(queue, await self.ended(queue), sessions, delete, retry) == (True, None)

    async def test_unstaged(self, queue: Queue, sessions: tuple[Database, Database]) -> None:
        for _ in range(ROUNDS):
            job = await self.ended(queue)
            assert sorted(map(str, await at_once(sessions, job, retry, retry))) == ["None", "in_queue"]
            await cancel(queue.database, job)


class TestDeadlineAgainstClaim:
    async def test_a_job_ends_by_its_deadline_or_is_claimed_and_never_both(
        self, queue: Queue, sessions: tuple[Database, Database]
    ) -> None:
        for _ in range(ROUNDS):
            job = await queue.accept()
            await queue.pass_deadline(job.id)
            claimed, ended = await asyncio.gather(
                Queue(sessions[0]).claim(1), leases.end_past_deadline(sessions[1], "late")
            )
            assert len(claimed) + len(ended) <= 1
            await queue.change("DELETE FROM jobs")
