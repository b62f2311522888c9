"""Leases: how a live worker keeps its jobs, and how jobs of a dead one are found."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.queueing import LEASE, Queue
from tests.statements import explain, sent_statements

from fleek.core.ids import new_id
from fleek.core.job import Status
from fleek.db.session import Database
from fleek.jobs import leases, submissions
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.leases import Held, Lease

GRACE = timedelta(seconds=30)


async def renew(queue: Queue, *jobs: ClaimedJob, progress: float | None = None) -> list[leases.Renewal]:
    held = [Held(job.id, job.fence, progress) for job in jobs]
    renewals = await leases.renew(queue.database, held, LEASE)
    return [renewals[one.id, one.fence] for one in held]


async def end_past_deadline(queue: Queue) -> list[UUID]:
    return [job.id for job in await leases.end_past_deadline(queue.database, "too late")]


class TestRenew:
    async def test_a_renewal_extends_every_lease_from_now(self, queue: Queue) -> None:
        await queue.fill(3)
        jobs = await queue.claim(3)
        await queue.change("UPDATE jobs SET lease_expires_at = clock_timestamp() + interval '1 second'")

        renewals = await renew(queue, *jobs)

        rests = await queue.query("SELECT lease_expires_at - clock_timestamp() AS rest FROM jobs")
        assert [one.lease for one in renewals] == [Lease.RENEWED] * 3
        assert all(timedelta(seconds=25) < row.rest <= LEASE for row in rests)

    async def test_a_late_renewal_keeps_a_job_that_nobody_took(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.expire_lease(job.id)

        [renewal] = await renew(queue, job)

        assert renewal.lease is Lease.RENEWED
        assert await leases.list_expired(queue.database, GRACE) == []

    async def test_progress_is_written_along_and_stays_where_none_is_given(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()

        await renew(queue, job, progress=0.25)
        await renew(queue, job)

        assert (await queue.row(job.id)).progress == 0.25

    async def test_nobody_elses_job_is_touched(self, queue: Queue) -> None:
        await queue.fill(2)
        [mine], [other] = await queue.claim(1), await queue.claim(1, worker="worker-2")
        before = (await queue.row(other.id)).lease_expires_at

        await renew(queue, mine, progress=0.5)

        row = await queue.row(other.id)
        assert (row.lease_expires_at, row.progress) == (before, None)

    async def test_a_cancel_request_comes_back(self, queue: Queue) -> None:
        await queue.fill(2)
        first, second = await queue.claim(2)
        await queue.cancel(first.id)

        renewals = await renew(queue, first, second)

        assert [one.cancel_requested for one in renewals] == [True, False]
        assert [one.lease for one in renewals] == [Lease.RENEWED, Lease.RENEWED]

    async def test_a_job_that_was_deleted_is_lost(self, queue: Queue) -> None:
        renewals = await leases.renew(queue.database, [Held(gone := new_id(), 1)], LEASE)

        assert renewals[gone, 1] == leases.Renewal(Lease.LOST, cancel_requested=False)

    async def test_the_old_and_the_new_claim_of_one_job_are_told_apart(self, queue: Queue) -> None:
        old = await queue.accept_and_claim()
        await queue.put_back(old)
        new = await queue.claim_one()

        renewals = await renew(queue, old, new, progress=0.5)

        assert [one.lease for one in renewals] == [Lease.LOST, Lease.RENEWED]

    async def test_a_row_that_is_locked_at_the_moment_is_skipped_and_not_lost(self, queue: Queue) -> None:
        await queue.fill(2)
        first, second = await queue.claim(2)
        async with queue.database.begin() as other:
            await other.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": first.id})
            renewals = await asyncio.wait_for(renew(queue, first, second), timeout=1)

        assert [one.lease for one in renewals] == [Lease.SKIPPED, Lease.RENEWED]
        assert [one.lease for one in await renew(queue, first)] == [Lease.RENEWED]

    async def test_nothing_to_renew_is_no_error(self, queue: Queue) -> None:
        assert await leases.renew(queue.database, [], LEASE) == {}

    async def test_renewals_in_any_order_at_once_never_deadlock(self, queue: Queue, queue_url: str) -> None:
        await queue.fill(60)
        jobs = await queue.claim(60)
        others = [Database(queue_url) for _ in range(3)]
        databases = [queue.database, *others]

        async def renew_often(number: int) -> list[Lease]:
            held = [Held(job.id, job.fence, 0.5) for job in (jobs if number % 2 else jobs[::-1])]
            rounds = [await leases.renew(databases[number], held, LEASE) for _ in range(15)]
            return [renewal.lease for renewals in rounds for renewal in renewals.values()]

        outcomes = await asyncio.gather(*(renew_often(number) for number in range(4)))
        for database in others:
            await database.aclose()

        assert {lease for outcome in outcomes for lease in outcome} <= {Lease.RENEWED, Lease.SKIPPED}


class TestListExpired:
    async def test_a_live_lease_is_not_listed(self, queue: Queue) -> None:
        await queue.accept_and_claim()

        assert await leases.list_expired(queue.database, GRACE) == []

    async def test_an_expired_lease_is_listed_with_what_its_rescue_needs(self, queue: Queue) -> None:
        job = await queue.accept_and_claim(max_attempts=9)
        await queue.change("UPDATE jobs SET failures = 3, crashes = 1, deferrals = 2")
        await queue.expire_lease(job.id)

        [expired] = await leases.list_expired(queue.database, GRACE)

        assert (expired.id, expired.fence, expired.model, expired.queue) == (job.id, 1, "fake", "default")
        assert (expired.view.failures, expired.view.max_attempts) == (3, 9)
        assert (expired.view.deferrals, expired.view.crashes) == (2, 1)
        assert expired.view.deadline_at == job.view.deadline_at
        assert (expired.is_lease_expired, expired.has_open_order) == (True, False)

    @pytest.mark.parametrize(("resolution", "is_open"), [(None, True), ("failed", False)])
    async def test_an_open_order_is_seen(
        self, queue: Queue, resolution: str | None, *, is_open: bool
    ) -> None:
        job = await queue.accept_and_claim()
        ordinal = await queue.order(job, "h-1")
        if resolution is not None:
            await submissions.resolve(queue.database, job.id, ordinal, resolution)
        await queue.expire_lease(job.id)

        [expired] = await leases.list_expired(queue.database, GRACE)

        assert expired.has_open_order is is_open

    @pytest.mark.parametrize(("seconds_past", "listed"), [(0, False), (20, False), (31, True)])
    async def test_a_live_lease_is_listed_once_its_attempt_is_past_its_own_deadline_and_the_grace_time(
        self, queue: Queue, seconds_past: int, *, listed: bool
    ) -> None:
        await queue.accept_and_claim()
        await queue.change(
            "UPDATE attempts SET run_deadline_at = clock_timestamp() - make_interval(secs => :seconds)",
            seconds=seconds_past,
        )

        expired = await leases.list_expired(queue.database, GRACE)

        assert [one.is_lease_expired for one in expired] == ([False] if listed else [])

    async def test_the_search_reads_only_what_runs(self, queue: Queue) -> None:
        await queue.fill(3)
        await queue.claim(1)
        with sent_statements() as sent:
            await leases.list_expired(queue.database, GRACE)

        plan = await explain(queue.database, sent[0])
        assert "ix_jobs_processing" in plan


class TestDeadlines:
    async def test_a_waiting_job_past_its_deadline_ends(self, queue: Queue) -> None:
        jobs = [await queue.accept() for _ in range(2)]
        await queue.pass_deadline(jobs[0].id)

        assert await end_past_deadline(queue) == [jobs[0].id]

        row = await queue.row(jobs[0].id)
        assert (row.status, row.reason) == ("error", "deadline_passed")
        assert (row.error_code, row.error_message) == ("deadline_passed", "too late")
        assert (await queue.row(jobs[1].id)).status == Status.IN_QUEUE

    async def test_one_that_waits_for_a_retry_ends_too(self, queue: Queue) -> None:
        job = await queue.accept()
        await queue.change("UPDATE jobs SET available_at = clock_timestamp() + interval '1 hour'")
        await queue.pass_deadline(job.id)

        assert await end_past_deadline(queue) == [job.id]

    async def test_a_running_job_and_one_with_an_open_order_do_not(self, queue: Queue) -> None:
        resuming = await queue.accept_and_claim()
        await queue.order(resuming, "h-1")
        await queue.put_back(resuming)
        running = await queue.accept()
        [_] = [job for job in await queue.claim(2) if job.id == running.id]
        for job_id in (resuming.id, running.id):
            await queue.pass_deadline(job_id)

        assert await leases.end_past_deadline(queue.database, "too late") == []

    async def test_one_that_nobody_resumes_for_a_day_more_ends_and_its_order_is_unknown(
        self, queue: Queue
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-2")
        await queue.put_back(job)
        await queue.change("UPDATE jobs SET deadline_at = clock_timestamp() - interval '25 hours'")

        assert await end_past_deadline(queue) == [job.id]

        row = await queue.row(job.id)
        [order] = await queue.orders(job.id)
        assert (row.status, row.error_code, row.resuming) == ("error", "deadline_passed", False)
        assert order.resolution == "ambiguous"
        assert order.resolved_at is not None

    async def test_a_job_that_is_being_claimed_is_left_alone(self, queue: Queue) -> None:
        job = await queue.accept()
        await queue.pass_deadline(job.id)
        async with queue.database.begin() as other:
            await other.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": job.id})

            assert await asyncio.wait_for(leases.end_past_deadline(queue.database, "x"), timeout=1) == []

    async def test_one_worker_at_a_time_looks(self, queue: Queue) -> None:
        job = await queue.accept()
        await queue.pass_deadline(job.id)
        async with queue.database.begin() as other:
            await other.execute(leases._TRY_LOCK)
            while_another_looks = await leases.end_past_deadline(queue.database, "x")

        assert while_another_looks == []
        assert await end_past_deadline(queue) == [job.id]
