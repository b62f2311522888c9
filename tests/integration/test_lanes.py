"""A paused model: nothing new of it begins, what is under way goes on, and nobody loses an attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from tests.executing import fake_model
from tests.queueing import FAKE, Queue, wait_until

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.core.job import Reason, Status, Transition, decide_after_error
from fleek.db.session import Database, PoolOptions
from fleek.jobs import transitions
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.lanes import BY_OPERATOR, Lanes, Pause
from fleek.testing import FakeProvider, RecordingWaker

MODEL = fake_model(FakeProvider())
HOUR = timedelta(hours=1)


@pytest.fixture
def waker() -> RecordingWaker:
    return RecordingWaker()


@pytest.fixture
def lanes(queue: Queue, waker: RecordingWaker) -> Lanes:
    return Lanes(queue.database, waker)


@pytest.fixture
async def patient(queue_url: str) -> AsyncIterator[Database]:
    """Sessions that wait for a lock for as long as a test may take to arrange one."""
    database = Database(queue_url, PoolOptions(lock_timeout=20, statement_timeout=30))
    yield database
    await database.aclose()


def after(job: ClaimedJob, kind: ProviderErrorKind) -> Transition:
    """What follows such an error of a claim."""
    error = ProviderError(kind, "No")
    return decide_after_error(job.view, error, datetime.now(UTC), 0.5)


async def is_waiting(queue: Queue, count: int) -> bool:
    """Whether so many sessions wait for a lock."""
    rows = await queue.query(
        "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return len(rows) >= count


async def test_new_work_of_a_paused_model_is_not_claimed_until_it_is_resumed(
    queue: Queue, lanes: Lanes, waker: RecordingWaker
) -> None:
    await queue.accept()
    await lanes.pause(MODEL, None, None)
    paused = await queue.claim()

    await lanes.resume(MODEL)

    assert paused == []
    assert waker.woken == [MODEL.queue]
    assert len(await queue.claim()) == 1


async def test_a_pause_ends_by_itself(queue: Queue, lanes: Lanes) -> None:
    await queue.accept()
    await lanes.pause(MODEL, timedelta(microseconds=1), "a moment")

    assert await lanes.list_pauses() == {}
    assert len(await queue.claim()) == 1


async def test_an_open_order_is_followed_while_its_model_is_paused(queue: Queue, lanes: Lanes) -> None:
    job = await queue.accept_and_claim()
    await queue.order(job, "handle-1")
    await queue.put_back(job)
    await lanes.pause(MODEL, None, None)

    [resumed] = await queue.claim()

    assert resumed.open_orders[0].handle is not None


async def test_a_job_that_runs_when_its_model_is_paused_goes_on(queue: Queue, lanes: Lanes) -> None:
    job = await queue.accept_and_claim()
    await lanes.pause(MODEL, None, None)

    assert await queue.finish(job)


async def test_what_holds_is_told_with_its_reason(lanes: Lanes) -> None:
    await lanes.pause(MODEL, None, None)
    endless = await lanes.get_pause_or_none(MODEL)
    await lanes.pause(MODEL, HOUR, "the invoice")
    [bounded] = (await lanes.list_pauses()).values()
    await lanes.resume(MODEL)

    assert endless == Pause(None, BY_OPERATOR)
    assert bounded.reason == "the invoice"
    assert bounded.until is not None
    assert await lanes.get_pause_or_none(MODEL) is None


@pytest.mark.parametrize(
    ("length", "reason"),
    [(None, "closed"), (timedelta(days=1), "closed"), (timedelta(seconds=1), "throttled")],
)
async def test_a_429_neither_shortens_nor_relabels_a_longer_pause(
    queue: Queue, lanes: Lanes, length: timedelta | None, reason: str
) -> None:
    job = await queue.accept_and_claim()
    await lanes.pause(MODEL, length, "closed")

    await queue.apply(job, after(job, ProviderErrorKind.THROTTLED))

    found = await lanes.get_pause_or_none(MODEL)
    assert found is not None
    assert (found.reason, found.until is None) == (reason, length is None)


@pytest.mark.parametrize(
    "kind",
    [ProviderErrorKind.THROTTLED, ProviderErrorKind.PERMANENT_AUTH, ProviderErrorKind.QUOTA_EXHAUSTED],
)
async def test_what_a_pause_put_off_is_due_at_once_after_a_resume_and_lost_no_attempt(
    queue: Queue, lanes: Lanes, kind: ProviderErrorKind
) -> None:
    job = await queue.accept_and_claim()
    await queue.apply(job, after(job, kind))
    before = await queue.claim()

    due = await lanes.resume(MODEL)
    [claimed] = await queue.claim()

    assert (before, due) == ([], 1)
    assert (claimed.id, claimed.view.failures) == (job.id, 0)


async def test_a_job_that_is_put_off_while_its_model_is_resumed_is_due_at_once(
    queue: Queue, lanes: Lanes, patient: Database
) -> None:
    job = await queue.accept_and_claim()
    await lanes.pause(MODEL, timedelta(seconds=1), None)
    async with queue.database.begin() as holder:
        await holder.execute(text("SELECT FROM lane_state FOR UPDATE"))
        refused = asyncio.create_task(
            transitions.apply(
                patient, job.id, job.fence, after(job, ProviderErrorKind.PERMANENT_AUTH), provider="fake"
            )
        )
        await wait_until(lambda: is_waiting(queue, 1))
        resumed = asyncio.create_task(Lanes(patient, RecordingWaker()).resume(MODEL))
        await wait_until(lambda: is_waiting(queue, 2))
    await refused

    assert await resumed == 1
    assert await lanes.list_pauses() == {}
    assert len(await queue.claim()) == 1


async def test_a_resume_leaves_the_waits_of_other_jobs_alone(queue: Queue, lanes: Lanes) -> None:
    backing_off = await queue.accept_and_claim()
    await queue.apply(backing_off, after(backing_off, ProviderErrorKind.TRANSIENT))
    await queue.change("UPDATE jobs SET available_at = clock_timestamp() + interval '1 hour'")
    other = await queue.accept(model="other")
    await queue.change(
        "UPDATE jobs SET available_at = clock_timestamp() + interval '1 hour', reason = 'deferred',"
        " error_code = 'throttled' WHERE id = :id",
        id=other.id,
    )

    due = await lanes.resume(MODEL)

    assert due == 0
    assert await queue.claim() == []


async def test_pausing_and_resuming_may_be_asked_for_again(lanes: Lanes) -> None:
    for _ in range(2):
        await lanes.pause(MODEL, HOUR, "x")
    for _ in range(2):
        assert await lanes.resume(MODEL) == 0

    assert await lanes.list_pauses() == {}


async def test_a_deferral_of_a_paused_model_is_counted_apart(queue: Queue) -> None:
    job = await queue.accept_and_claim()

    status = await queue.apply(job, after(job, ProviderErrorKind.THROTTLED))

    row = await queue.row(job.id)
    assert status is Status.IN_QUEUE
    assert (row.reason, row.failures, row.deferrals) == (Reason.DEFERRED, 0, 1)
    assert FAKE.name == row.model
