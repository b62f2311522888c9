"""The claim: who gets which job, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from tests.queueing import FAKE, LEASE, PARAMETERS, TIMEOUT, Queue

from fleek.core.events import EventKind
from fleek.jobs.claim import Claimer, ServedModel
from fleek.providers.base import Handle

OTHER = ServedModel("other", "elsewhere", TIMEOUT)


class TestOneJob:
    async def test_a_claimed_job_brings_all_that_its_attempt_needs(self, queue: Queue) -> None:
        job = await queue.accept(
            n=3, prompt="two lighthouses", input={"steps": 4}, max_attempts=7, deadline_seconds=60
        )
        before = datetime.now(UTC)

        claimed = await queue.claim_one()

        assert (claimed.id, claimed.fence, claimed.model, claimed.n) == (job.id, 1, "fake", 3)
        assert (claimed.prompt, claimed.parameters, claimed.input) == (
            "two lighthouses", PARAMETERS, {"steps": 4}
        )  # fmt: skip
        assert claimed.media_ids == tuple(job.media_ids)
        assert (claimed.view.failures, claimed.view.max_attempts, claimed.view.deferrals) == (0, 7, 0)
        assert timedelta(seconds=50) < claimed.view.deadline_at - before < timedelta(seconds=60)
        assert abs(claimed.run_deadline_at - claimed.claimed_at - TIMEOUT) < timedelta(seconds=1)
        assert abs(claimed.claimed_at - before) < timedelta(seconds=5)
        assert claimed.open_orders == ()
        assert not claimed.cancel_requested

    async def test_a_claim_takes_a_lease_a_fence_an_attempt_and_an_event(self, queue: Queue) -> None:
        job = await queue.accept()

        [claimed] = await queue.claimer(worker="worker-9").claim("default", 1, celery_task_id="task-1")

        row = await queue.row(job.id)
        [attempt] = await queue.attempts(job.id)
        assert (row.status, row.reason, row.fence, row.worker) == ("processing", "claimed", 1, "worker-9")
        assert abs(row.lease_expires_at - claimed.claimed_at - LEASE) < timedelta(seconds=1)
        assert row.started_at is not None
        assert (attempt.number, attempt.worker, attempt.celery_task_id) == (1, "worker-9", "task-1")
        assert attempt.run_deadline_at == claimed.run_deadline_at
        assert await queue.history(job.id) == [EventKind.ACCEPTED, EventKind.CLAIMED]

    async def test_a_job_under_a_lease_is_not_claimed_again(self, queue: Queue) -> None:
        claimed = await queue.accept_and_claim()
        await queue.expire_lease(claimed.id)

        assert await queue.claim(8) == []

    async def test_every_claim_of_a_job_has_a_higher_fence_and_the_first_start_stays(
        self, queue: Queue
    ) -> None:
        first = await queue.accept_and_claim()
        started = (await queue.row(first.id)).started_at
        await queue.put_back(first)

        second = await queue.claim_one()

        assert (first.fence, second.fence) == (1, 2)
        assert (await queue.row(first.id)).started_at == started
        assert [attempt.number for attempt in await queue.attempts(first.id)] == [1, 2]

    async def test_open_orders_come_with_their_handles(self, queue: Queue) -> None:
        first = await queue.accept_and_claim(n=2)
        await queue.order(first, "h-1")
        await queue.order(first, first_index=1)
        await queue.put_back(first)

        again = await queue.claim_one()

        assert [(one.ordinal, one.first_index, one.count) for one in again.open_orders] == [
            (1, 0, 1),
            (2, 1, 1),
        ]
        assert [one.handle for one in again.open_orders] == [
            Handle("h-1", {"first": 0}),
            None,
        ]

    async def test_a_job_with_an_open_order_is_claimed_as_resumed(self, queue: Queue) -> None:
        first = await queue.accept_and_claim()
        await queue.order(first, "h-2")
        await queue.put_back(first)

        await queue.claim_one()

        assert (await queue.history(first.id))[-1] is EventKind.RESUMED
        assert not (await queue.row(first.id)).resuming

    async def test_a_cancel_request_comes_with_the_claim(self, queue: Queue) -> None:
        first = await queue.accept_and_claim()
        await queue.order(first, "h-3")
        await queue.put_back(first)
        await queue.cancel(first.id)

        assert (await queue.claim_one()).cancel_requested


class TestOrder:
    async def test_older_jobs_come_first(self, queue: Queue) -> None:
        jobs = [await queue.accept() for _ in range(4)]

        claimed = [await queue.claim_one() for _ in range(4)]

        assert [one.id for one in claimed] == [job.id for job in jobs]

    async def test_priority_orders_the_jobs_of_one_owner(self, queue: Queue) -> None:
        jobs = {priority: await queue.accept(priority=priority) for priority in (0, -10, 10, 3)}

        claimed = [await queue.claim_one() for _ in jobs]

        assert [one.id for one in claimed] == [jobs[priority].id for priority in (10, 3, 0, -10)]

    async def test_priority_of_one_owner_is_nothing_to_another(self, queue: Queue) -> None:
        first = await queue.accept(owner="ada", priority=-10)
        await queue.accept(owner="bob", priority=10)

        assert (await queue.claim_one()).id == first.id

    async def test_resuming_jobs_come_before_any_priority(self, queue: Queue) -> None:
        old = await queue.accept_and_claim(priority=-10)
        await queue.order(old, "h-4")
        await queue.put_back(old)
        await queue.accept(priority=10)

        assert (await queue.claim_one()).id == old.id

    async def test_a_resuming_job_takes_one_slot_of_a_claim(self, queue: Queue) -> None:
        old = await queue.accept_and_claim()
        await queue.order(old, "h-10")
        await queue.put_back(old)
        await queue.accept()
        await queue.accept()

        assert len(await queue.claim(3)) == 3

    async def test_the_owner_with_fewer_running_jobs_comes_first(self, queue: Queue) -> None:
        await queue.fill(10, owner="ada")
        await queue.fill(3, owner="bob", seconds_ago=30)

        owners = [(await queue.row((await queue.claim_one()).id)).owner_id for _ in range(6)]

        assert owners[0] == "ada"
        assert Counter(owners) == {"ada": 3, "bob": 3}

    async def test_running_jobs_of_an_owner_count_whatever_their_model(self, queue: Queue) -> None:
        await queue.accept(owner="ada", model="other")
        [_] = await queue.claimer(OTHER).claim("default", 1)
        await queue.accept(owner="ada")
        second = await queue.accept(owner="bob")

        assert (await queue.claim_one()).id == second.id

    async def test_a_claim_fills_its_slots_from_several_owners_and_models(self, queue: Queue) -> None:
        for owner in ("ada", "bob"):
            for model in (FAKE.name, OTHER.name):
                await queue.accept(owner=owner, model=model)

        claimed = await queue.claimer(FAKE, OTHER).claim("default", 10)

        assert Counter(one.model for one in claimed) == {"fake": 2, "other": 2}

    async def test_a_claim_takes_no_more_than_its_slots(self, queue: Queue) -> None:
        first = await queue.accept_and_claim()
        await queue.order(first, "h-5")
        await queue.put_back(first)
        await queue.fill(20, owner="ada")
        await queue.fill(20, owner="bob")

        claimed = await queue.claim(7)

        assert len(claimed) == 7
        assert first.id in {one.id for one in claimed}

    async def test_every_model_gives_its_attempt_its_own_time(self, queue: Queue) -> None:
        slow = ServedModel("slow", "fake", timedelta(hours=1))
        await queue.accept()
        await queue.accept(model="slow")

        claimed = await queue.claimer(FAKE, slow).claim("default", 2)

        times = {one.model: one.run_deadline_at - one.claimed_at for one in claimed}
        assert abs(times["fake"] - TIMEOUT) < timedelta(seconds=1)
        assert abs(times["slow"] - timedelta(hours=1)) < timedelta(seconds=1)


class TestNotDue:
    @pytest.fixture
    async def nothing_due(self, queue: Queue) -> AsyncIterator[Queue]:
        """Whatever the test arranges: no claim of FAKE gets it, and no worker is told of work."""
        yield queue

        assert await queue.claim(8) == []

    async def test_an_empty_queue_gives_nothing(self, nothing_due: Queue) -> None:
        assert not await nothing_due.claimer().is_work_due("default")

    async def test_a_job_whose_time_has_not_come(self, nothing_due: Queue) -> None:
        job = await nothing_due.accept()
        await nothing_due.change(
            "UPDATE jobs SET available_at = clock_timestamp() + interval '1 minute' WHERE id = :id", id=job.id
        )

        assert not await nothing_due.claimer().is_work_due("default")

    async def test_a_resuming_job_whose_time_has_not_come(self, nothing_due: Queue) -> None:
        job = await nothing_due.accept_and_claim()
        await nothing_due.order(job, "h-6")
        await nothing_due.put_back(job)
        await nothing_due.change(
            "UPDATE jobs SET available_at = clock_timestamp() + interval '1 minute' WHERE id = :id", id=job.id
        )

    async def test_a_job_of_a_model_that_is_not_served_here(self, nothing_due: Queue) -> None:
        await nothing_due.accept(model="other")

        assert not await nothing_due.claimer().is_work_due("default")
        assert await nothing_due.claimer(OTHER).is_work_due("default")

    async def test_a_resuming_job_of_a_model_that_is_not_served_here(self, nothing_due: Queue) -> None:
        await nothing_due.accept(model="other")
        [job] = await nothing_due.claimer(OTHER).claim("default", 1)
        await nothing_due.order(job, "h-7")
        await nothing_due.put_back(job)

    async def test_a_job_of_another_queue(self, nothing_due: Queue) -> None:
        await nothing_due.accept(queue="gpu")

        assert not await nothing_due.claimer().is_work_due("default")

    @pytest.mark.parametrize("status", ["canceled", "error", "completed"])
    async def test_a_finished_job(self, queue: Queue, status: str) -> None:
        job = await queue.accept()
        await queue.change(
            """
            WITH e AS (
                INSERT INTO events (job_id, sequence, kind)
                SELECT :id, s, k FROM (VALUES (2, 'claimed'), (3, CAST(:kind AS text))) AS t (s, k)
            )
            UPDATE jobs SET status = :status, reason = 'failed', finished_at = clock_timestamp(),
                error_code = 'x', event_sequence = 3 WHERE id = :id
            """,
            id=job.id,
            status=status,
            kind={"error": "failed"}.get(status, status),
        )

        assert await queue.claim(8) == []
        assert not await queue.claimer().is_work_due("default")

    async def test_a_worker_without_models_claims_nothing(self, queue: Queue) -> None:
        await queue.accept()
        claimer = Claimer(queue.database, worker="w", lease=LEASE, models=[])

        assert await claimer.claim("default", 8) == []
        assert not await claimer.is_work_due("default")

    async def test_a_job_that_waits_for_its_time_does_not_hide_one_that_is_due(self, queue: Queue) -> None:
        waiting = await queue.accept(priority=10)
        await queue.change(
            "UPDATE jobs SET available_at = clock_timestamp() + interval '1 hour' WHERE id = :id",
            id=waiting.id,
        )
        due = await queue.accept(priority=-10)

        assert [one.id for one in await queue.claim(8)] == [due.id]


class TestPausedLane:
    async def pause(self, queue: Queue, seconds: float, provider: str = "fake", model: str = "fake") -> None:
        await queue.change(
            "INSERT INTO lane_state VALUES (:provider, :model, clock_timestamp()"
            " + make_interval(secs => :seconds), 'throttled')",
            provider=provider,
            model=model,
            seconds=seconds,
        )

    async def test_new_work_of_a_paused_lane_waits(self, queue: Queue) -> None:
        await queue.accept()
        await self.pause(queue, 60)

        assert await queue.claim(8) == []

    async def test_resuming_work_of_a_paused_lane_does_not_wait(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-8")
        await queue.put_back(job)
        await self.pause(queue, 60)

        assert [one.id for one in await queue.claim(8)] == [job.id]

    @pytest.mark.parametrize(
        ("seconds", "provider", "model"),
        [(-1, "fake", "fake"), (60, "elsewhere", "fake"), (60, "fake", "other")],
    )
    async def test_a_pause_that_is_over_or_of_another_lane_stops_nothing(
        self, queue: Queue, seconds: float, provider: str, model: str
    ) -> None:
        await queue.accept()
        await self.pause(queue, seconds, provider, model)

        assert len(await queue.claim(8)) == 1

    async def test_a_paused_lane_stops_no_other_one(self, queue: Queue) -> None:
        await queue.fill(50)
        other = await queue.accept(model="other")
        await self.pause(queue, 60)

        claimed = await queue.claimer(FAKE, OTHER).claim("default", 8)

        assert [one.id for one in claimed] == [other.id]


class TestUndeclaredModels:
    """A worker whose catalog is open serves models that it learns of from the queue."""

    def claimer(self, queue: Queue) -> Claimer:
        def serve(name: str) -> ServedModel | None:
            return ServedModel(name, "gallery", TIMEOUT) if "/" in name else None

        return Claimer(queue.database, worker="w", lease=LEASE, models=[FAKE], serve=serve)

    async def test_a_model_that_is_accepted_is_claimed(self, queue: Queue) -> None:
        await queue.accept(model="owner/one")
        await queue.accept(model="owner/two")
        await queue.accept()

        claimed = await self.claimer(queue).claim("default", 8)

        assert sorted(one.model for one in claimed) == ["fake", "owner/one", "owner/two"]

    async def test_a_model_that_nobody_accepts_waits(self, queue: Queue) -> None:
        await queue.accept(model="nobody knows")

        assert await self.claimer(queue).claim("default", 8) == []
        assert not await self.claimer(queue).is_work_due("default")

    async def test_work_is_due_when_a_model_that_is_accepted_waits(self, queue: Queue) -> None:
        await queue.accept(model="owner/one")

        assert await self.claimer(queue).is_work_due("default")
        assert not await queue.claimer().is_work_due("default")

    async def test_a_job_that_resumes_is_claimed_too(self, queue: Queue) -> None:
        await queue.accept(model="owner/one")
        [job] = await self.claimer(queue).claim("default", 1)
        await queue.order(job, "h-12")
        await queue.put_back(job)

        [again] = await self.claimer(queue).claim("default", 1)

        assert (again.id, len(again.open_orders)) == (job.id, 1)
