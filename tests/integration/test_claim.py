"""The claim: who gets which job, in which order, and that nobody gets one twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from fleek.core.errors import DatabaseUnavailable
from fleek.core.events import EventKind
from fleek.core.job import Reason, Status
from fleek.db.session import Database, PoolOptions
from fleek.jobs import submissions
from fleek.jobs.claim import ClaimedJob, Claimer, ServedModel
from fleek.providers.base import GenerationRequest, Handle
from tests.queueing import FAKE, LEASE, PARAMETERS, TIMEOUT, Queue
from tests.statements import explain, sent_statements

OTHER = ServedModel("other", "elsewhere", TIMEOUT)


def capped(limit: int, name: str = FAKE.name) -> ServedModel:
    return ServedModel(name, "fake", TIMEOUT, max_concurrency=limit)


async def order(queue: Queue, job: ClaimedJob, handle: Handle | None = None, first_index: int = 0) -> int:
    """Place an order as an attempt does."""
    request = GenerationRequest("fake", "fake", "x", seed=7, first_index=first_index)
    placed = await submissions.intend(queue.database, job.id, job.fence, request, "fake")
    if handle is not None:
        await submissions.record(queue.database, job.id, job.fence, placed.ordinal, handle)
    return placed.ordinal


async def put_back(queue: Queue, job_id: UUID) -> None:
    """Put a job into the queue again as its rescue would, and make it due."""
    await queue.expire_lease(job_id)
    await queue.change(
        """
        WITH moved AS (
            UPDATE jobs SET status = 'in_queue', reason = 'lease_expired', lease_expires_at = NULL,
                worker = NULL, available_at = clock_timestamp(), event_sequence = event_sequence + 1,
                resuming = EXISTS (SELECT FROM submissions WHERE job_id = jobs.id AND resolved_at IS NULL)
            WHERE id = :id RETURNING id, fence, event_sequence
        ),
        attempt AS (
            UPDATE attempts SET finished_at = clock_timestamp(), outcome = 'lease_expired'
            FROM moved WHERE attempts.job_id = moved.id AND attempts.number = moved.fence
        )
        INSERT INTO events (job_id, sequence, kind) SELECT id, event_sequence, 'deferred' FROM moved
        """,
        id=job_id,
    )


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
        await put_back(queue, first.id)

        second = await queue.claim_one()

        assert (first.fence, second.fence) == (1, 2)
        assert (await queue.row(first.id)).started_at == started
        assert [attempt.number for attempt in await queue.attempts(first.id)] == [1, 2]

    async def test_open_orders_come_with_their_handles(self, queue: Queue) -> None:
        first = await queue.accept_and_claim(n=2)
        await order(queue, first, Handle("h-1", {"url": "https://example.com"}))
        await order(queue, first, None, first_index=1)
        await put_back(queue, first.id)

        again = await queue.claim_one()

        assert [(one.ordinal, one.first_index, one.count) for one in again.open_orders] == [
            (1, 0, 1),
            (2, 1, 1),
        ]
        assert [one.handle for one in again.open_orders] == [
            Handle("h-1", {"url": "https://example.com"}),
            None,
        ]

    async def test_a_job_with_an_open_order_is_claimed_as_resumed(self, queue: Queue) -> None:
        first = await queue.accept_and_claim()
        await order(queue, first, Handle("h-2"))
        await put_back(queue, first.id)

        await queue.claim_one()

        assert (await queue.history(first.id))[-1] is EventKind.RESUMED
        assert not (await queue.row(first.id)).resuming

    async def test_a_cancel_request_comes_with_the_claim(self, queue: Queue) -> None:
        first = await queue.accept_and_claim()
        await order(queue, first, Handle("h-3"))
        await put_back(queue, first.id)
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
        await order(queue, old, Handle("h-4"))
        await put_back(queue, old.id)
        await queue.accept(priority=10)

        assert (await queue.claim_one()).id == old.id

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
        await order(queue, first, Handle("h-5"))
        await put_back(queue, first.id)
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
        await order(nothing_due, job, Handle("h-6"))
        await put_back(nothing_due, job.id)
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
        await order(nothing_due, job, Handle("h-7"))
        await put_back(nothing_due, job.id)

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
        await order(queue, job, Handle("h-8"))
        await put_back(queue, job.id)
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


class TestCaps:
    async def test_a_cap_bounds_the_running_jobs_of_its_model(self, queue: Queue) -> None:
        await queue.fill(10)
        claimer = queue.claimer(capped(3))

        first, second = await claimer.claim("default", 2), await claimer.claim("default", 8)

        assert (len(first), len(second)) == (2, 1)
        assert await claimer.claim("default", 8) == []

    async def test_a_full_model_does_not_stop_the_others(self, queue: Queue) -> None:
        await queue.fill(5)
        await queue.fill(5, model="other")
        claimer = queue.claimer(capped(1), OTHER)

        claimed = await claimer.claim("default", 8)

        assert Counter(one.model for one in claimed) == {"other": 5, "fake": 1}

    async def test_slots_that_are_used_up_are_not_exceeded_by_capped_models(self, queue: Queue) -> None:
        await queue.fill(5)
        await queue.fill(5, model="other")

        claimed = await queue.claimer(capped(4), OTHER).claim("default", 5)

        assert Counter(one.model for one in claimed) == {"other": 5}

    async def test_resuming_jobs_are_exempt_from_the_cap(self, queue: Queue) -> None:
        await queue.fill(3)
        resuming = await queue.claim(2)
        for number, job in enumerate(resuming):
            await order(queue, job, Handle(f"h-9-{number}"))
            await put_back(queue, job.id)

        claimed = await queue.claimer(capped(1)).claim("default", 8)

        assert {one.id for one in claimed} == {job.id for job in resuming}

    async def test_a_cap_that_cannot_be_counted_now_does_not_lose_what_was_claimed_before(
        self, queue: Queue, queue_url: str
    ) -> None:
        await queue.fill(1)
        await queue.fill(1, model="other")
        impatient = Database(queue_url, PoolOptions(lock_timeout=0.2))
        claimer = Claimer(impatient, worker="w", lease=LEASE, models=[OTHER, capped(5)])

        async with queue.database.begin() as connection:
            await connection.exec_driver_sql(
                "SELECT pg_advisory_xact_lock(hashtextextended('fleek model fake', 0))"
            )
            claimed = await claimer.claim("default", 8)
            with pytest.raises(DatabaseUnavailable):
                await claimer.claim("default", 8)
        await impatient.aclose()

        assert [one.model for one in claimed] == ["other"]

    async def test_twenty_claimers_never_exceed_a_cap(self, queue: Queue) -> None:
        await queue.fill(400)
        claimers = [queue.claimer(capped(7), worker=f"worker-{number}") for number in range(20)]

        for _ in range(30):
            batches = await asyncio.gather(*(claimer.claim("default", 3) for claimer in claimers))
            claimed = [one.id for batch in batches for one in batch]
            [running] = await queue.query("SELECT count(*) FROM jobs WHERE status = 'processing'")
            assert len(claimed) == len(set(claimed)) == running[0] == 7
            await finish(queue, claimed)


async def finish(queue: Queue, ids: list[UUID]) -> None:
    """End jobs in one statement, as quickly as can be."""
    await queue.change(
        """
        WITH moved AS (
            UPDATE jobs SET status = 'completed', reason = 'completed', lease_expires_at = NULL,
                finished_at = clock_timestamp(), event_sequence = event_sequence + 1
            WHERE id = ANY(CAST(:ids AS uuid[])) RETURNING id, fence, event_sequence
        ),
        attempt AS (
            UPDATE attempts SET finished_at = clock_timestamp(), outcome = 'completed'
            FROM moved WHERE job_id = id AND number = fence
        )
        INSERT INTO events (job_id, sequence, kind) SELECT id, event_sequence, 'completed' FROM moved
        """,
        ids=ids,
    )


class TestManyAtOnce:
    async def test_a_crowd_of_claimers_empties_a_long_queue_without_an_empty_hand_or_a_double(
        self, queue: Queue
    ) -> None:
        jobs, claimers, batch = 2900, 16, 16
        await queue.fill(jobs // 2, owner="ada")
        await queue.fill(jobs // 2, owner="bob")
        claimed: list[UUID] = []
        left_at_an_empty_hand: list[int] = []

        async def work(claimer: Claimer) -> None:
            while found := await claimer.claim("default", batch):
                claimed.extend(one.id for one in found)
            left_at_an_empty_hand.append(jobs - len(claimed))

        await asyncio.gather(*(work(queue.claimer(worker=f"w-{number}")) for number in range(claimers)))

        assert len(claimed) == len(set(claimed)) == jobs
        assert max(left_at_an_empty_hand) <= claimers * batch

    async def test_one_job_and_many_claimers_have_one_winner(self, queue: Queue) -> None:
        for _ in range(10):
            job = await queue.accept()

            batches = await asyncio.gather(*(queue.claim(4) for _ in range(12)))

            assert [one.id for batch in batches for one in batch] == [job.id]


class TestPlans:
    """At 50,000 rows every statement of the claim finds its rows by an index, and quickly."""

    @pytest.fixture
    async def large(self, database_url: str) -> AsyncIterator[Queue]:
        queue = Queue(Database(database_url))
        for number in range(20):
            await queue.fill(1250, owner=f"owner-{number}")
            await queue.fill(1250, owner=f"owner-{number}", model="other", seconds_ago=600)
        await queue.change(
            """
            UPDATE jobs SET status = 'completed', finished_at = now() WHERE id IN (
                SELECT id FROM jobs TABLESAMPLE BERNOULLI (50) REPEATABLE (7)
            )
            """
        )
        await queue.change("ANALYZE")
        yield queue
        await queue.database.aclose()

    async def test_no_statement_of_the_claim_reads_all_jobs(self, large: Queue) -> None:
        claimer = large.claimer(FAKE, capped(2000, "other"))
        with sent_statements() as sent:
            await claimer.is_work_due("default")
            await claimer.claim("default", 4)
            await claimer.claim("default", 40)
        plans = {one.text: await explain(large.database, one) for one in sent if "jobs" in one.text}
        [claim] = [plan for text, plan in plans.items() if "FOR UPDATE" in text]
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(10):
            assert len(await claimer.claim("default", 8)) == 8
        seconds = (loop.time() - started) / 10

        assert len(plans) == 3
        assert not [plan for plan in plans.values() if "Seq Scan on jobs" in plan]
        for index in ("ix_jobs_queue_due", "ix_jobs_queue_resuming", "ix_jobs_processing", "pk_jobs"):
            assert index in claim
        assert seconds < 0.1
