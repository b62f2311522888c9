"""The rescuer: jobs of dead and wedged workers go back to the queue, and nobody else's."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from tests.queueing import Queue

from fleek.core.errors import DatabaseUnavailable
from fleek.core.job import Reason, Status
from fleek.db.session import Database, PoolOptions
from fleek.jobs import leases
from fleek.jobs.caretakers import DeadlineWatcher, Rescuer
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.leases import Held
from fleek.queue.base import Announcement
from fleek.testing import RecordingPubSub, RecordingWaker


class Rescue:
    """A rescuer with its recorded surroundings."""

    def __init__(self, queue: Queue, confirm_after: float = 0.0) -> None:
        self.waker = RecordingWaker()
        self.pubsub = RecordingPubSub()
        self.rescuer = Rescuer(
            queue.database,
            self.waker,
            self.pubsub,
            provider_of=lambda model: f"provider of {model}",
            confirm_after=confirm_after,
        )

    async def look(self) -> dict[str, int]:
        return await self.rescuer.run_once()


@pytest.fixture
def rescue(queue: Queue) -> Rescue:
    """A rescuer that is content with one look."""
    return Rescue(queue)


def counts(**expected: int) -> dict[str, int]:
    return {"suspected": 0, "rescued": 0} | expected


async def lost(queue: Queue, **overrides: Any) -> ClaimedJob:
    """A job whose worker is gone."""
    job = await queue.accept_and_claim(**overrides)
    await queue.expire_lease(job.id)
    return job


async def overrun(queue: Queue, seconds: int = 60) -> ClaimedJob:
    """A job whose worker renews, but ran past its attempt's own deadline."""
    job = await queue.accept_and_claim()
    await queue.change(
        "UPDATE attempts SET run_deadline_at = clock_timestamp() - make_interval(secs => :seconds)",
        seconds=seconds,
    )
    return job


async def test_a_healthy_queue_is_left_alone(queue: Queue, rescue: Rescue) -> None:
    await queue.accept_and_claim()
    await queue.accept()

    assert await rescue.look() == counts()
    assert (rescue.waker.woken, rescue.pubsub.announced) == ([], [])


async def test_a_lost_job_goes_back_to_the_queue_and_workers_are_woken(queue: Queue, rescue: Rescue) -> None:
    job = await lost(queue)

    assert await rescue.look() == counts(rescued=1)

    row = await queue.row(job.id)
    assert (row.status, row.reason, row.crashes, row.failures) == ("in_queue", "lease_expired", 1, 0)
    assert rescue.waker.woken == ["default"]
    assert rescue.pubsub.announced == [Announcement(job.id)]
    assert (await queue.claim_one()).fence == 2


async def test_many_lost_jobs_are_one_wake_up_a_queue(queue: Queue, rescue: Rescue) -> None:
    await queue.fill(3)
    await queue.fill(2, queue="gpu")
    await queue.claim(3)
    await queue.claimer().claim("gpu", 2)
    await queue.change("UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 second'")

    assert await rescue.look() == counts(rescued=5)
    assert sorted(rescue.waker.woken) == ["default", "gpu"]


class TestTwoLooks:
    async def test_one_look_takes_nothing(self, queue: Queue) -> None:
        rescue = Rescue(queue, confirm_after=10)
        await lost(queue)

        assert await rescue.look() == await rescue.look() == counts(suspected=1)

    async def test_the_second_look_comes_late_enough(self, queue: Queue) -> None:
        rescue = Rescue(queue, confirm_after=0.3)
        await lost(queue)

        early = [await rescue.look(), await rescue.look()]
        await asyncio.sleep(0.3)
        late = await rescue.look()

        assert early == [counts(suspected=1)] * 2
        assert late == counts(rescued=1)

    async def test_an_owner_that_renewed_between_the_looks_keeps_its_job_and_starts_afresh(
        self, queue: Queue
    ) -> None:
        rescue = Rescue(queue, confirm_after=0.2)
        job = await lost(queue)
        await rescue.look()
        await leases.renew(queue.database, [Held(job.id, job.fence)], timedelta(seconds=30))
        await asyncio.sleep(0.2)

        assert await rescue.look() == counts()

        await queue.expire_lease(job.id)
        assert await rescue.look() == counts(suspected=1)

    async def test_a_lost_connection_starts_all_looks_afresh(self, queue: Queue) -> None:
        rescue = Rescue(queue, confirm_after=0.2)
        await lost(queue)
        await rescue.look()
        await asyncio.sleep(0.2)

        away = Database("postgresql+asyncpg://fleek@/fleek?host=/no/such/folder")
        rescue.rescuer._database = away
        with pytest.raises(DatabaseUnavailable):
            await rescue.look()
        rescue.rescuer._database = queue.database
        await away.aclose()

        assert await rescue.look() == counts(suspected=1)

    async def test_the_next_claim_of_a_suspect_is_no_suspect(self, queue: Queue) -> None:
        rescue = Rescue(queue, confirm_after=0.2)
        job = await lost(queue)
        await rescue.look()
        await queue.rescue(job)
        again = await queue.claim_one()
        await queue.expire_lease(again.id)
        await asyncio.sleep(0.2)

        assert await rescue.look() == counts(suspected=1)

    async def test_an_owner_that_renews_between_the_list_and_the_taking_keeps_its_job(
        self, queue: Queue
    ) -> None:
        rescue = Rescue(queue)
        job = await lost(queue)
        expired = await leases.list_expired(queue.database, timedelta(seconds=30))
        await leases.renew(queue.database, [Held(job.id, job.fence)], timedelta(seconds=30))

        assert not await rescue.rescuer._rescue(expired[0])
        assert (await queue.row(job.id)).status == Status.PROCESSING

    async def test_two_rescuers_rescue_a_job_once(self, queue: Queue) -> None:
        for _ in range(5):
            job = await lost(queue)

            looks = await asyncio.gather(*(Rescue(queue).look() for _ in range(4)))

            assert sum(look["rescued"] for look in looks) == 1
            assert (await queue.row(job.id)).crashes == 1
            await queue.cancel(job.id)


class TestCrashes:
    async def test_the_third_crash_in_our_own_work_ends_the_job(self, queue: Queue, rescue: Rescue) -> None:
        job = await lost(queue)
        for crashes in (1, 2):
            assert await rescue.look() == counts(rescued=1)
            assert (await queue.row(job.id)).crashes == crashes
            await queue.claim_one()
            await queue.expire_lease(job.id)

        assert await rescue.look() == counts(rescued=1)

        row = await queue.row(job.id)
        assert (row.status, row.reason, row.error_code) == ("error", "crash_loop", "crash_loop")
        assert [attempt.outcome for attempt in await queue.attempts(job.id)] == [
            "lease_expired", "lease_expired", "crash_loop"
        ]  # fmt: skip

    async def test_a_worker_that_is_lost_while_an_order_is_open_is_no_crash_and_the_order_is_resumed(
        self, queue: Queue, rescue: Rescue
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")
        await queue.expire_lease(job.id)
        for _ in range(4):
            assert await rescue.look() == counts(rescued=1)
            row = await queue.row(job.id)
            assert (row.status, row.crashes, row.resuming) == ("in_queue", 0, True)
            again = await queue.claim_one()
            assert [order.ordinal for order in again.open_orders] == [1]
            await queue.expire_lease(job.id)

    async def test_a_client_that_canceled_meanwhile_gets_its_way(self, queue: Queue, rescue: Rescue) -> None:
        job = await lost(queue)
        await queue.cancel(job.id)

        assert await rescue.look() == counts(rescued=1)
        assert (await queue.row(job.id)).status == Status.CANCELED


class TestWedged:
    async def test_a_worker_that_renews_and_never_ends_loses_its_job(
        self, queue: Queue, rescue: Rescue
    ) -> None:
        job = await overrun(queue)

        assert await rescue.look() == counts(rescued=1)
        assert (await queue.row(job.id)).reason == Reason.LEASE_EXPIRED

    async def test_an_attempt_that_is_a_little_late_does_not(self, queue: Queue, rescue: Rescue) -> None:
        await overrun(queue, seconds=10)

        assert await rescue.look() == counts()

    async def test_renewing_does_not_help_it(self, queue: Queue, rescue: Rescue) -> None:
        job = await overrun(queue)
        await leases.renew(queue.database, [Held(job.id, job.fence)], timedelta(hours=1))

        assert await rescue.look() == counts(rescued=1)


class TestOneBadRow:
    async def test_a_row_that_somebody_holds_does_not_keep_the_others_from_their_rescue(
        self, queue: Queue, queue_url: str
    ) -> None:
        held, free = await lost(queue), await lost(queue)
        impatient = Database(queue_url, PoolOptions(lock_timeout=0.1))
        rescue = Rescue(Queue(impatient))
        async with queue.database.begin() as other:
            await other.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": held.id})
            counted = await rescue.look()
        again = await rescue.look()
        await impatient.aclose()

        assert counted["rescued"] == again["rescued"] == 1
        assert (await queue.row(free.id)).status == Status.IN_QUEUE

    async def test_nor_does_a_row_that_a_rescue_trips_over(self, queue: Queue, rescue: Rescue) -> None:
        odd, sound = await lost(queue), await lost(queue)
        await queue.change("UPDATE jobs SET crashes = 32767 WHERE id = :id", id=odd.id)

        assert (await rescue.look())["rescued"] == 1
        assert (await queue.row(sound.id)).status == Status.IN_QUEUE


class TestDeadlines:
    async def test_waiting_jobs_past_their_deadline_are_ended_and_announced(self, queue: Queue) -> None:
        pubsub = RecordingPubSub()
        watcher = DeadlineWatcher(queue.database, pubsub)
        job = await queue.accept()
        await queue.pass_deadline(job.id)

        assert [await watcher.run_once(), await watcher.run_once()] == [
            {"past_deadline": 1},
            {"past_deadline": 0},
        ]

        row = await queue.row(job.id)
        assert (row.status, row.error_code) == ("error", "deadline_passed")
        assert pubsub.announced == [Announcement(job.id)]
