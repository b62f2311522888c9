"""What clients do to jobs: accept, cancel, retry, delete, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.queueing import Queue, new_job, stored, wait_until

from fleek.core import job as core
from fleek.core.cursor import CursorCodec
from fleek.core.errors import IdempotencyInFlight
from fleek.core.events import EventKind
from fleek.core.job import ErrorCode, Reason, Status, Transition
from fleek.core.owner import LOCAL_OWNER
from fleek.core.urls import Urls
from fleek.db.session import Database, PoolOptions
from fleek.jobs import changes, submissions
from fleek.jobs.changes import Idempotency, LostOrders, Moved
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.schemas import RetryRequest
from fleek.jobs.service import Accepted, JobService
from fleek.providers.registry import Catalog
from fleek.testing import RecordingPubSub, RecordingWaker

KEY = Idempotency("key-1", "f" * 64)
RETRY_LATER = Transition(
    Status.IN_QUEUE,
    Reason.RETRY_SCHEDULED,
    delay=timedelta(hours=1),
    failures=1,
    error=core.JobError(ErrorCode.TRANSIENT, "busy"),
)


async def ended(queue: Queue, code: ErrorCode = ErrorCode.CONTENT_REFUSED) -> ClaimedJob:
    """A job that ended in error."""
    job = await queue.accept_and_claim()
    assert await queue.apply(job, core.failed(code, "no")) is Status.ERROR
    return job


class TestAccept:
    async def test_all_that_belongs_to_a_job_is_there_at_once(self, queue: Queue) -> None:
        job = await queue.accept(
            n=2, priority=3, prompt="é\n'\"\\ %s :x", metadata={"a": "b"}, input={"deep": [{"x": None}]}
        )

        row = await queue.row(job.id)
        media = await queue.media(job.id)
        [request] = await queue.query("SELECT * FROM job_requests WHERE job_id = :id", id=job.id)
        assert (row.status, row.reason, row.priority, row.n, row.event_sequence) == (
            "in_queue", "accepted", 3, 2, 1
        )  # fmt: skip
        assert row.available_at == row.created_at
        assert row.deadline_at - row.created_at == timedelta(seconds=job.deadline_seconds)
        assert [(one.id, one.index, one.seed) for one in media] == [
            (job.media_ids[0], 0, 7),
            (job.media_ids[1], 1, 8),
        ]
        assert all(one.key is None and one.created_at == row.created_at for one in media)
        assert (request.prompt, request.metadata, request.input) == (job.prompt, job.metadata, job.input)
        assert await queue.history(job.id) == [EventKind.ACCEPTED]

    async def test_the_answer_has_the_times_of_the_row(self, queue: Queue) -> None:
        job = new_job()

        accepted = await changes.accept(queue.database, job)

        row = await queue.row(job.id)
        assert accepted == changes.AcceptedAt(row.created_at, row.available_at, row.deadline_at)

    async def test_a_key_is_kept_with_its_body_and_its_job(self, queue: Queue) -> None:
        job = await queue.accept(idempotency=KEY)

        found = await changes.get_key_or_none(queue.database, LOCAL_OWNER, "generate", KEY.key)

        assert found == (KEY.fingerprint, job.id)

    async def test_a_key_that_is_taken_makes_no_second_job(self, queue: Queue) -> None:
        await queue.accept(idempotency=KEY)

        assert await changes.accept(queue.database, new_job(), KEY) is None
        assert await count(queue, "jobs") == await count(queue, "media") == 1

    @pytest.mark.parametrize("other", [{"owner": "ada"}, {"key": "key-2"}])
    async def test_a_key_belongs_to_its_owner(self, queue: Queue, other: dict[str, str]) -> None:
        await queue.accept(idempotency=KEY)
        key = Idempotency(other.pop("key", KEY.key), KEY.fingerprint)

        assert await changes.accept(queue.database, new_job(**other), key) is not None

    async def test_a_key_that_nobody_used_is_none(self, queue: Queue) -> None:
        assert await changes.get_key_or_none(queue.database, LOCAL_OWNER, "generate", "never") is None

    async def test_two_hundred_requests_with_one_key_make_one_job(self, queue: Queue, queue_url: str) -> None:
        processes = [Database(queue_url, PoolOptions(size=25, pool_timeout=10)) for _ in range(4)]
        jobs = [new_job(n=2) for _ in range(200)]

        answers = await asyncio.gather(
            *(changes.accept(processes[index % 4], job, KEY) for index, job in enumerate(jobs))
        )
        for process in processes:
            await process.aclose()

        [winner] = [job for job, answer in zip(jobs, answers, strict=True) if answer is not None]
        assert await count(queue, "jobs") == await count(queue, "idempotency_keys") == 1
        assert await count(queue, "media") == 2
        assert await changes.get_key_or_none(queue.database, LOCAL_OWNER, "generate", KEY.key) == (
            KEY.fingerprint, winner.id
        )  # fmt: skip

    async def test_a_request_waits_for_a_first_one_with_its_key_that_is_rolled_back(
        self, queue: Queue
    ) -> None:
        async with key_in_flight(queue) as first:
            second = asyncio.create_task(changes.accept(queue.database, new_job(), KEY))
            await wait_until(lambda: is_waiting(queue))
            await first.rollback()

            assert await second is not None

    async def test_a_first_request_that_does_not_end_is_not_waited_for_for_ever(
        self, queue: Queue, queue_url: str
    ) -> None:
        impatient = Database(queue_url, PoolOptions(lock_timeout=0.1))
        job = new_job()
        async with key_in_flight(queue):
            with pytest.raises(IdempotencyInFlight):
                await changes.accept(impatient, job, KEY)
        await impatient.aclose()

        assert not await queue.query("SELECT id FROM jobs WHERE id = :id", id=job.id)


class TestCancel:
    async def test_a_waiting_job_ends_at_once(self, queue: Queue) -> None:
        job = await queue.accept()

        assert await queue.cancel(job.id) == Moved(Status.CANCELED, "default", "fake")

        row = await queue.row(job.id)
        assert (row.status, row.reason) == ("canceled", "canceled")
        assert row.finished_at is not None
        assert await queue.history(job.id) == [EventKind.ACCEPTED, EventKind.CANCELED]

    async def test_a_job_that_waits_for_a_retry_in_the_future_ends_at_once(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.apply(job, RETRY_LATER)

        assert await queue.cancel(job.id) == Moved(Status.CANCELED, "default", "fake")

    async def test_a_job_with_an_open_order_is_woken_to_cancel_it_there(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")
        await queue.apply(job, RETRY_LATER)

        moved = await queue.cancel(job.id)

        row = await queue.row(job.id)
        assert moved == Moved(Status.IN_QUEUE, "default", "fake")
        assert row.resuming
        assert (await queue.claim_one()).cancel_requested

    async def test_the_worker_of_a_running_job_is_asked(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()

        moved = await queue.cancel(job.id)

        row = await queue.row(job.id)
        assert moved == Moved(Status.PROCESSING, "default", "fake")
        assert row.cancel_requested_at is not None
        assert (row.status, row.reason, row.fence) == ("processing", "claimed", 1)
        assert await queue.history(job.id) == [EventKind.ACCEPTED, EventKind.CLAIMED]

    async def test_asking_twice_changes_nothing_more(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.cancel(job.id)
        asked = (await queue.row(job.id)).cancel_requested_at

        assert await queue.cancel(job.id) == Moved(Status.PROCESSING, "default", "fake")
        assert (await queue.row(job.id)).cancel_requested_at == asked

    @pytest.mark.parametrize("with_order", [False, True])
    async def test_every_way_back_to_the_queue_sees_the_request(
        self, queue: Queue, *, with_order: bool
    ) -> None:
        for transition in (RETRY_LATER, core.released(), core.decide_after_crash(0, own_work=True)):
            job = await queue.accept_and_claim()
            if with_order:
                await queue.order(job, f"h-{job.id}")
            await queue.cancel(job.id)

            status = await queue.apply(job, transition)

            assert status is (Status.IN_QUEUE if with_order else Status.CANCELED)
            if with_order:
                again = await queue.claim_one()
                assert (again.id, again.cancel_requested) == (job.id, True)
                assert await queue.apply(again, core.canceled()) is Status.CANCELED

    async def test_a_request_outlives_the_worker_that_was_asked(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.cancel(job.id)
        await queue.expire_lease(job.id)

        assert await queue.rescue(job) is Status.CANCELED
        assert (await queue.attempts(job.id))[0].outcome == "canceled"

    async def test_a_completion_that_commits_first_wins(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.cancel(job.id)

        assert await queue.finish(job)
        assert await queue.cancel(job.id) is None
        assert (await queue.row(job.id)).status == Status.COMPLETED

    async def test_an_error_that_commits_first_wins(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.cancel(job.id)

        assert await queue.apply(job, core.failed(ErrorCode.CONTENT_REFUSED, "no")) is Status.ERROR
        assert await queue.cancel(job.id) is None

    async def test_somebody_elses_job_is_not_canceled(self, queue: Queue) -> None:
        job = await queue.accept(owner="ada")

        assert await queue.cancel(job.id) is None
        assert (await queue.row(job.id)).status == Status.IN_QUEUE


class TestRetry:
    async def test_a_new_chain_begins(self, queue: Queue) -> None:
        job = await queue.accept_and_claim(max_attempts=1, deadline_seconds=600)
        exhausted = core.failed(ErrorCode.ATTEMPTS_EXHAUSTED, "no", failures=1)
        await queue.apply(job, exhausted)
        await queue.change("UPDATE jobs SET deferrals = 5, crashes = 2, progress = 0.5")
        await queue.pass_deadline(job.id)

        assert await queue.retry(job.id) == Moved(Status.IN_QUEUE, "default", "fake")

        row = await queue.row(job.id)
        assert (row.status, row.reason) == ("in_queue", "retried_by_client")
        assert (row.failures, row.deferrals, row.crashes) == (0, 0, 0)
        assert (row.error_code, row.error_message, row.progress, row.finished_at) == (None, None, None, None)
        assert abs(row.deadline_at - row.available_at - timedelta(seconds=600)) < timedelta(seconds=1)
        assert (await queue.history(job.id))[-1] is EventKind.RETRIED
        assert (await queue.claim_one()).fence == 2

    async def test_a_retry_forgets_the_cancel_before_it(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.cancel(job.id)
        await queue.apply(job, core.canceled())

        await queue.retry(job.id)

        again = await queue.claim_one()
        assert not again.cancel_requested
        assert await queue.apply(again, core.released()) is Status.IN_QUEUE

    @pytest.mark.parametrize("state", ["waiting", "running", "completed", "unknown", "somebody else's"])
    async def test_only_error_and_canceled_can_be_retried(self, queue: Queue, state: str) -> None:
        job_id = await in_state(queue, state)

        assert await queue.retry(job_id) is None
        assert await queue.retry(job_id, KEY) is None
        assert await count(queue, "idempotency_keys") == 0

    async def test_a_key_makes_one_retry(self, queue: Queue) -> None:
        job = await ended(queue)

        first = await queue.retry(job.id, KEY)
        again = await queue.claim_one()
        await queue.apply(again, core.failed(ErrorCode.CONTENT_REFUSED, "no"))
        second = await queue.retry(job.id, KEY)

        operation = changes.retry_operation(job.id)
        used = await changes.get_key_or_none(queue.database, LOCAL_OWNER, operation, KEY.key)
        assert first is not None
        assert second is None
        assert used == (KEY.fingerprint, job.id)

    async def test_a_key_of_a_retry_is_apart_from_one_of_an_accept_and_of_another_job(
        self, queue: Queue
    ) -> None:
        jobs = [await ended(queue), await ended(queue)]
        await queue.accept(idempotency=KEY)

        for job in jobs:
            assert await queue.retry(job.id, KEY) is not None


class TestRepeatedRetry:
    async def test_a_key_is_replayed_whatever_the_retry_has_led_to_since(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job)
        await queue.apply(job, core.failed(ErrorCode.AMBIGUOUS_SUBMISSION, "?"))
        waker = RecordingWaker()
        service = JobService(
            queue.database,
            Catalog([], {}, default="demo"),
            waker,
            RecordingPubSub(),
            CursorCodec(b"x"),
            forget,
        )
        request = RetryRequest(max_paid_submissions=2)

        async def retry() -> Accepted:
            return await service.retry(LOCAL_OWNER, job.id, request, Urls("http://x"), idempotency=KEY)

        first = await retry()
        again = await queue.claim_one()
        await queue.order(again)
        await queue.apply(again, core.failed(ErrorCode.AMBIGUOUS_SUBMISSION, "?"))
        second = await retry()

        assert (first.replayed, first.job.status) == (False, Status.IN_QUEUE)
        assert (second.replayed, second.job.status) == (True, Status.ERROR)
        assert waker.woken == ["default"]


async def forget(_keys: Sequence[str]) -> None:
    """Objects that nobody looks for."""


class TestLostOrders:
    async def test_orders_of_an_output_are_counted_where_one_was_lost(self, queue: Queue) -> None:
        job = await queue.accept_and_claim(n=3)
        for index, resolutions in enumerate(
            [["failed", "failed", "failed"], ["rejected", "ambiguous", "failed"], ["ambiguous"]]
        ):
            for resolution in resolutions:
                ordinal = await queue.order(job, first_index=index)
                await submissions.resolve(queue.database, job.id, ordinal, resolution)
        await queue.apply(job, core.failed(ErrorCode.CONTENT_REFUSED, "no"))

        lost = await changes.get_lost_orders_or_none(queue.database, LOCAL_OWNER, job.id)
        assert lost == LostOrders(job.fence, job.model, paid=2)
        assert await changes.get_lost_orders_or_none(queue.database, "ada", job.id) is None

    async def test_orders_whose_end_is_known_do_not_count(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        ordinal = await queue.order(job)
        await submissions.resolve(queue.database, job.id, ordinal, "failed")
        await queue.apply(job, core.failed(ErrorCode.CONTENT_REFUSED, "no"))

        lost = await changes.get_lost_orders_or_none(queue.database, LOCAL_OWNER, job.id)
        assert lost == LostOrders(job.fence, job.model, paid=0)

    async def test_a_retry_that_was_decided_before_another_chain_ran_changes_nothing(
        self, queue: Queue
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.apply(job, core.failed(ErrorCode.AMBIGUOUS_SUBMISSION, "?"))
        seen = await changes.get_lost_orders_or_none(queue.database, LOCAL_OWNER, job.id)
        await queue.retry(job.id)
        again = await queue.claim_one()
        await queue.order(again)
        await queue.apply(again, core.failed(ErrorCode.AMBIGUOUS_SUBMISSION, "?"))

        assert seen is not None
        for key in (None, KEY):
            assert await changes.retry(queue.database, LOCAL_OWNER, job.id, seen.fence, key) is None
        assert await count(queue, "idempotency_keys") == 0


class TestDelete:
    async def test_nothing_is_left_but_the_keys_of_the_objects_are_told(self, queue: Queue) -> None:
        job = await queue.accept(n=2, idempotency=KEY)
        claimed = await queue.claim_one()
        await queue.order(claimed, "h-1")
        assert await queue.finish(claimed)

        keys = await changes.delete(queue.database, LOCAL_OWNER, job.id)

        assert sorted(keys or ()) == sorted(one.key for one in stored(claimed))
        for table in ("jobs", "job_requests", "attempts", "submissions", "media", "events"):
            assert await count(queue, table) == 0
        assert await changes.get_key_or_none(queue.database, LOCAL_OWNER, "generate", KEY.key) is None

    async def test_a_job_without_results_has_no_objects(self, queue: Queue) -> None:
        job = await queue.accept()
        await queue.cancel(job.id)

        assert await changes.delete(queue.database, LOCAL_OWNER, job.id) == []

    @pytest.mark.parametrize("state", ["waiting", "running", "unknown", "somebody else's"])
    async def test_what_is_not_finished_or_not_ones_own_stays(self, queue: Queue, state: str) -> None:
        job_id = await in_state(queue, state)
        before = await count(queue, "jobs")

        assert await changes.delete(queue.database, LOCAL_OWNER, job_id) is None
        assert await count(queue, "jobs") == before


async def in_state(queue: Queue, state: str) -> UUID:
    """The id of a job as it is called in these tests."""
    if state == "unknown":
        return new_job().id
    if state == "waiting":
        return (await queue.accept()).id
    job = await queue.accept_and_claim(owner="ada" if state == "somebody else's" else LOCAL_OWNER)
    if state == "completed":
        await queue.finish(job)
    elif state == "somebody else's":
        await queue.apply(job, core.failed(ErrorCode.CONTENT_REFUSED, "no"))
    return job.id


@asynccontextmanager
async def key_in_flight(queue: Queue) -> AsyncIterator[AsyncConnection]:
    """A request with KEY whose transaction has not ended; rolled back at the end, if not before."""
    job = await queue.accept()
    async with queue.database._engine.connect() as connection:
        await connection.execute(
            text("INSERT INTO idempotency_keys VALUES (:owner, 'generate', :key, 'x', :id)"),
            {"owner": LOCAL_OWNER, "key": KEY.key, "id": job.id},
        )
        yield connection
        await connection.rollback()


async def is_waiting(queue: Queue) -> bool:
    """Whether some session of this database waits for another one."""
    return bool(
        await queue.query(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    )


async def count(queue: Queue, table: str) -> int:
    [row] = await queue.query(f"SELECT count(*) FROM {table}")  # noqa: S608  a name of this module
    return int(row[0])
