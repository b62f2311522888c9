"""What a client does while something else happens between two statements of the service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.executing import fake_model
from tests.queueing import Queue

from fleek.core import job as core
from fleek.core.cursor import CursorCodec
from fleek.core.errors import DatabaseUnavailable, IdempotencyInFlight, JobNotRetryable, WouldPayAgain
from fleek.core.job import ErrorCode, Status
from fleek.core.owner import LOCAL_OWNER
from fleek.core.urls import Urls
from fleek.db.session import Database
from fleek.jobs import submissions
from fleek.jobs.caretakers import Rescuer
from fleek.jobs.changes import Idempotency
from fleek.jobs.schemas import GenerateRequest, RetryRequest
from fleek.jobs.service import JobService
from fleek.providers.registry import Catalog
from fleek.testing import FakeProvider, RecordingPubSub, RecordingWaker

KEY = Idempotency("k", "f")
URLS = Urls("http://x")
Interlude = Callable[[], Awaitable[object]]


class Interrupted(Database):
    """A database on which something else happens once, just before or after a statement that holds a word."""

    before: tuple[str, Interlude] | None = None
    after: tuple[str, Interlude] | None = None

    async def fetch_one(self, statement: Any, parameters: Mapping[str, Any] | None = None) -> Any:
        if self.before is not None and self.before[0] in str(statement):
            interlude, self.before = self.before[1], None
            await interlude()
        row = await super().fetch_one(statement, parameters)
        if self.after is not None and self.after[0] in str(statement):
            interlude, self.after = self.after[1], None
            await interlude()
        return row

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        if self.before is not None and self.before[0] == "BEGIN":
            interlude, self.before = self.before[1], None
            await interlude()
        async with super().begin() as connection:
            yield connection


@pytest.fixture
async def database(queue_url: str) -> AsyncIterator[Interrupted]:
    database = Interrupted(queue_url)
    yield database
    await database.aclose()


@pytest.fixture
def waker() -> RecordingWaker:
    return RecordingWaker()


@pytest.fixture
def service(database: Interrupted, waker: RecordingWaker) -> JobService:
    catalog = Catalog([fake_model(FakeProvider())], {}, default="fake")
    return JobService(database, catalog, waker, RecordingPubSub(), CursorCodec(b"x"), forget)


async def forget(_keys: Sequence[str]) -> None:
    """Objects that nobody looks for."""


pytestmark = pytest.mark.usefixtures("queue")


async def test_a_key_whose_job_is_deleted_at_that_moment_can_be_sent_again(
    queue: Queue, database: Interrupted, service: JobService
) -> None:
    request = GenerateRequest(prompt="x")
    first = await service.accept(LOCAL_OWNER, request, URLS, idempotency=KEY)
    database.after = ("INSERT INTO jobs", lambda: queue.change("DELETE FROM jobs"))

    with pytest.raises(IdempotencyInFlight):
        await service.accept(LOCAL_OWNER, request, URLS, idempotency=KEY)
    again = await service.accept(LOCAL_OWNER, request, URLS, idempotency=KEY)

    assert not again.replayed
    assert again.job.id != first.job.id


async def test_of_two_retries_with_one_key_the_later_gets_the_answer_of_the_first(
    queue: Queue, database: Interrupted, service: JobService, waker: RecordingWaker
) -> None:
    job = await queue.accept_and_claim()
    await queue.apply(job, core.failed(ErrorCode.CONTENT_REFUSED, "no"))
    database.before = ("retried_by_client", lambda: queue.retry(job.id, KEY))

    late = await service.retry(LOCAL_OWNER, job.id, RetryRequest(), URLS, idempotency=KEY)

    assert (late.replayed, late.job.status) == (True, Status.IN_QUEUE)
    assert waker.woken == []


async def test_of_two_retries_with_different_keys_the_later_is_refused(
    queue: Queue, database: Interrupted, service: JobService
) -> None:
    job = await queue.accept_and_claim()
    await queue.apply(job, core.failed(ErrorCode.CONTENT_REFUSED, "no"))
    database.before = ("retried_by_client", lambda: queue.retry(job.id, Idempotency("other", "f")))

    with pytest.raises(JobNotRetryable):
        await service.retry(LOCAL_OWNER, job.id, RetryRequest(), URLS, idempotency=KEY)


async def test_a_job_that_loses_an_order_just_after_its_orders_were_counted_is_not_ordered_again(
    queue: Queue, database: Interrupted, service: JobService
) -> None:
    job = await queue.accept_and_claim()
    await queue.order(job)
    lost = core.failed(ErrorCode.AMBIGUOUS_SUBMISSION, "?")
    database.after = ("HAVING bool_or", lambda: queue.apply(job, lost))

    with pytest.raises(JobNotRetryable):
        await service.retry(LOCAL_OWNER, job.id, RetryRequest(), URLS)
    with pytest.raises(WouldPayAgain):
        await service.retry(LOCAL_OWNER, job.id, RetryRequest(), URLS)

    assert await queue.claim() == []


async def test_a_completed_job_whose_first_order_was_lost_is_refused_as_completed(
    queue: Queue, service: JobService
) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job)
    await submissions.resolve(queue.database, job.id, ordinal, "ambiguous")
    await queue.finish(job)

    with pytest.raises(JobNotRetryable):
        await service.retry(LOCAL_OWNER, job.id, RetryRequest(), URLS)


async def test_a_cancel_of_a_waiting_job_with_an_open_order_wakes_somebody_to_cancel_it(
    queue: Queue, service: JobService, waker: RecordingWaker
) -> None:
    job = await queue.accept_and_claim()
    await queue.order(job, "handle-1")
    await queue.put_back(job)

    changed = await service.cancel(LOCAL_OWNER, job.id, URLS)

    assert (changed.changed, changed.job.status) == (True, Status.IN_QUEUE)
    assert waker.woken == ["default"]
    assert (await queue.claim_one()).cancel_requested


async def test_a_database_that_goes_away_in_the_middle_of_a_rescue_forgets_what_was_suspected(
    queue: Queue, database: Interrupted, waker: RecordingWaker
) -> None:
    jobs = [await queue.accept_and_claim() for _ in range(2)]
    for job in jobs:
        await queue.expire_lease(job.id)
    rescuer = Rescuer(database, waker, RecordingPubSub(), provider_of=lambda _: "fake", confirm_after=0)

    async def vanish() -> None:
        raise DatabaseUnavailable

    database.before = ("BEGIN", vanish)
    with pytest.raises(DatabaseUnavailable):
        await rescuer.run_once()
    rows = await queue.query("SELECT status FROM jobs")
    afterwards = await rescuer.run_once()

    assert {row.status for row in rows} == {"processing"}
    assert afterwards["rescued"] == 2
