"""Many claims at once: caps hold, nobody gets a job twice, and a long queue costs nobody time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.queueing import FAKE, LEASE, TIMEOUT, Queue
from tests.statements import explain, sent_statements

from fleek.core.errors import DatabaseUnavailable
from fleek.db.session import Database, PoolOptions
from fleek.jobs.claim import Claimer, ServedModel

OTHER = ServedModel("other", "elsewhere", TIMEOUT)


def capped(limit: int, name: str = FAKE.name) -> ServedModel:
    return ServedModel(name, "fake", TIMEOUT, max_concurrency=limit)


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

        assert len(claimed) == 5

    async def test_a_backlog_of_uncapped_models_does_not_starve_a_capped_one(self, queue: Queue) -> None:
        await queue.fill(60)
        await queue.fill(1, model="other")
        claimer = queue.claimer(FAKE, capped(4, "other"))

        claimed = [one.model for _ in range(30) for one in await claimer.claim("default", 1)]

        assert "other" in claimed

    async def test_caps_cost_an_idle_worker_one_statement(self, queue: Queue) -> None:
        claimer = queue.claimer(FAKE, *(capped(5, f"model-{number}") for number in range(10)))
        await claimer.claim("default", 8)
        with sent_statements() as sent:
            assert await claimer.claim("default", 8) == []

        assert len(sent) == 1

    async def test_only_the_caps_of_models_with_due_work_are_counted(self, queue: Queue) -> None:
        claimer = queue.claimer(FAKE, *(capped(5, f"model-{number}") for number in range(10)))
        await queue.accept(model="model-3")
        later = await queue.accept(model="model-4")
        await queue.change(
            "UPDATE jobs SET available_at = clock_timestamp() + interval '1 hour' WHERE id = :id", id=later.id
        )
        with sent_statements() as sent:
            claimed = await claimer.claim("default", 8)

        assert [one.model for one in claimed] == ["model-3"]
        assert sum("pg_advisory_xact_lock" in one.text for one in sent) == 1

    async def test_resuming_jobs_are_claimed_while_every_cap_is_reached(self, queue: Queue) -> None:
        running, resuming = await queue.accept_and_claim(), await queue.accept_and_claim()
        await queue.order(resuming, "h-11")
        await queue.put_back(resuming)

        claimed = await queue.claimer(capped(1)).claim("default", 8)

        assert [one.id for one in claimed] == [resuming.id]
        assert (await queue.row(running.id)).status == "processing"

    async def test_resuming_jobs_are_exempt_from_the_cap(self, queue: Queue) -> None:
        await queue.fill(3)
        resuming = await queue.claim(2)
        for number, job in enumerate(resuming):
            await queue.order(job, f"h-9-{number}")
            await queue.put_back(job)

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
    @pytest.mark.parametrize("resuming", [True, False])
    async def test_a_job_that_somebody_holds_is_passed_over_and_not_waited_for(
        self, queue: Queue, *, resuming: bool
    ) -> None:
        held = await queue.accept_and_claim()
        if resuming:
            await queue.order(held, "h-1")
        await queue.put_back(held)
        free = await queue.accept()
        async with queue.database.begin() as other:
            await other.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": held.id})
            claimed = await asyncio.wait_for(queue.claim(8), timeout=1)

        assert [one.id for one in claimed] == [free.id]

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
        await queue.change(
            """
            INSERT INTO jobs (id, owner_id, queue, model, n, status, reason, max_attempts,
                available_at, deadline_at, finished_at, lease_expires_at)
            SELECT uuidv7(), 'owner-' || i % 20, 'default', CASE WHEN i % 3 = 0 THEN 'fake' ELSE 'other' END,
                1, status, 'accepted', 4, now() - make_interval(secs => i), now() + interval '1 day',
                CASE WHEN status = 'completed' THEN now() END,
                CASE WHEN status = 'processing' THEN now() END
            FROM generate_series(1, 50000) AS g (i), LATERAL (
                SELECT CASE WHEN i % 499 = 0 THEN 'processing' WHEN i % 2 = 0 THEN 'completed'
                    ELSE 'in_queue' END AS status
            ) AS s
            """
        )
        await queue.change("ANALYZE")
        yield queue
        await queue.database.aclose()

    async def test_no_statement_of_the_claim_reads_all_jobs(self, large: Queue) -> None:
        claimer = large.claimer(capped(2000), capped(2000, "other"))
        with sent_statements() as sent:
            await claimer.is_work_due("default")
            await claimer.claim("default", 4)
            await claimer.claim("default", 40)
        plans = {one.text: await explain(large.database, one) for one in sent if "jobs" in one.text}
        [claim] = [plan for text, plan in plans.items() if "SKIP LOCKED" in text]
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(10):
            await claimer.claim("default", 8)
        seconds = (loop.time() - started) / 10

        assert len(plans) == 3
        assert not [plan for plan in plans.values() if "Seq Scan on jobs" in plan]
        for index in ("ix_jobs_queue_due", "ix_jobs_queue_resuming", "ix_jobs_processing", "pk_jobs"):
            assert index in claim
        assert seconds < 0.1
