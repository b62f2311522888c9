"""Guarded changes of running jobs: all of it moves under the claim's fence, or nothing does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.queueing import Queue, stored

from fleek.core import job as core
from fleek.core.errors import LeaseLost, ProviderError, ProviderErrorKind
from fleek.core.events import EventKind
from fleek.core.job import ErrorCode, JobError, Reason, Status, Transition
from fleek.jobs import leases, submissions
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.leases import Held, Lease

RETRY = Transition(
    Status.IN_QUEUE,
    Reason.RETRY_SCHEDULED,
    delay=timedelta(seconds=40),
    failures=1,
    error=JobError(ErrorCode.TRANSIENT, "busy"),
)
DEFERRED = Transition(
    Status.IN_QUEUE,
    Reason.DEFERRED,
    delay=timedelta(seconds=40),
    deferrals=1,
    error=JobError(ErrorCode.THROTTLED, "busy"),
    pause_lane=timedelta(seconds=30),
)
REFUSED = core.failed(ErrorCode.CONTENT_REFUSED, "no")
CRASHED = core.decide_after_crash(0, own_work=True)
LOOPED = core.decide_after_crash(2, own_work=True)

Act = Callable[[Queue, ClaimedJob], Awaitable[Any]]
LATE_ACTS: dict[str, Act] = {
    "finish": lambda queue, job: queue.finish(job),
    "retry": lambda queue, job: queue.apply(job, RETRY),
    "defer": lambda queue, job: queue.apply(job, DEFERRED),
    "fail": lambda queue, job: queue.apply(job, REFUSED),
    "release": lambda queue, job: queue.apply(job, core.released()),
    "cancel": lambda queue, job: queue.apply(job, core.canceled()),
    "rescue": lambda queue, job: queue.rescue(job),
}


async def everything(queue: Queue) -> dict[str, list[Any]]:
    """Every row of the tables that a transition touches."""
    tables = ("jobs", "attempts", "submissions", "media", "events", "lane_state")
    return {table: await queue.query(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables}  # noqa: S608  names above


@pytest.fixture(params=["in the queue", "under another lease", "completed", "canceled"])
async def lost(request: pytest.FixtureRequest, queue: Queue) -> ClaimedJob:
    """A claim whose job has moved on without its worker."""
    job = await queue.accept_and_claim()
    await queue.order(job, "h-1")
    if request.param == "completed":
        assert await queue.finish(job)
        return job
    await queue.put_back(job)
    if request.param != "in the queue":
        again = await queue.claim_one()
        if request.param == "canceled":
            await queue.apply(again, core.canceled())
    return job


class TestGuard:
    @pytest.mark.parametrize("act", LATE_ACTS.values(), ids=LATE_ACTS)
    async def test_a_late_worker_changes_no_row(self, queue: Queue, lost: ClaimedJob, act: Act) -> None:
        before = await everything(queue)

        assert not await act(queue, lost)
        assert await everything(queue) == before

    async def test_a_late_worker_renews_nothing(self, queue: Queue, lost: ClaimedJob) -> None:
        before = await everything(queue)

        renewals = await leases.renew(queue.database, [Held(lost.id, lost.fence, 0.9)], timedelta(seconds=99))

        assert renewals[lost.id, lost.fence].lease is Lease.LOST
        assert await everything(queue) == before

    async def test_a_late_worker_places_no_order(self, queue: Queue, lost: ClaimedJob) -> None:
        before = await everything(queue)

        with pytest.raises(LeaseLost):
            await queue.order(lost, first_index=5)
        assert await everything(queue) == before

    @pytest.mark.parametrize("act", [a for name, a in LATE_ACTS.items() if name != "rescue"])
    async def test_an_expired_lease_is_still_its_owners_until_somebody_takes_it(
        self, queue: Queue, act: Act
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.expire_lease(job.id)

        assert await act(queue, job)

    async def test_a_second_end_of_the_same_attempt_changes_nothing(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.apply(job, RETRY)
        before = await everything(queue)

        assert await queue.apply(job, RETRY) is None
        assert await everything(queue) == before


class TestApply:
    async def test_a_retry_moves_the_job_its_attempt_and_its_history(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await leases.renew(queue.database, [Held(job.id, 1, 0.5)], timedelta(seconds=30))

        assert await queue.apply(job, RETRY, metrics={"gpu": 1}) is Status.IN_QUEUE

        row = await queue.row(job.id)
        [attempt] = await queue.attempts(job.id)
        [event] = await queue.query("SELECT * FROM events WHERE sequence = 3")
        assert (row.status, row.reason, row.failures, row.deferrals) == ("in_queue", "retry_scheduled", 1, 0)
        assert (row.error_code, row.error_message) == ("transient", "busy")
        assert (row.lease_expires_at, row.worker, row.progress, row.finished_at) == (None, None, None, None)
        assert not row.resuming
        assert (
            timedelta(seconds=38) < row.available_at - event.at + timedelta(seconds=1) < timedelta(seconds=42)
        )
        assert (attempt.outcome, attempt.error_code, attempt.error_message) == (
            "retry_scheduled", "transient", "busy"
        )  # fmt: skip
        assert attempt.metrics == {"gpu": 1}
        assert attempt.finished_at is not None
        assert event.kind == EventKind.RETRY_SCHEDULED
        assert event.data["error"] == {"code": "transient", "message": "busy"}
        assert (event.data["attempt"], event.data["reason"]) == (1, "retry_scheduled")
        assert event.data["available_at"].startswith(str(row.available_at.date()))

    async def test_a_deferral_pauses_the_lane_of_its_model_and_provider(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()

        await queue.apply(job, DEFERRED, provider="elsewhere")

        [lane] = await queue.query("SELECT *, paused_until - clock_timestamp() AS rest FROM lane_state")
        assert (lane.provider, lane.model, lane.reason) == ("elsewhere", "fake", "throttled")
        assert timedelta(seconds=25) < lane.rest <= timedelta(seconds=30)
        assert (await queue.row(job.id)).deferrals == 1

    @pytest.mark.parametrize(("first", "second", "rest"), [(60, 5, 60), (5, 60, 60)])
    async def test_a_shorter_pause_does_not_end_a_longer_one(
        self, queue: Queue, first: int, second: int, rest: int
    ) -> None:
        await queue.fill(2)
        for job, seconds in zip(await queue.claim(2), (first, second), strict=True):
            await queue.apply(job, replace(DEFERRED, pause_lane=timedelta(seconds=seconds)))

        [lane] = await queue.query("SELECT paused_until - clock_timestamp() AS rest FROM lane_state")
        assert timedelta(seconds=rest - 5) < lane.rest <= timedelta(seconds=rest)

    async def test_a_job_that_goes_back_with_an_open_order_is_resumed(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")

        await queue.apply(job, RETRY)

        assert (await queue.row(job.id)).resuming
        [order] = await queue.orders(job.id)
        assert order.resolved_at is None

    async def test_a_job_that_goes_back_with_resolved_orders_is_not(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await submissions.resolve(queue.database, job.id, await queue.order(job, "h-1"), "failed")

        await queue.apply(job, RETRY)

        assert not (await queue.row(job.id)).resuming

    @pytest.mark.parametrize(
        ("transition", "with_handle", "without"),
        [
            (REFUSED, "ambiguous", "ambiguous"),
            (core.canceled(), "canceled", "ambiguous"),
            (core.deadline_passed(), "ambiguous", "ambiguous"),
        ],
    )
    async def test_the_end_of_a_job_ends_its_orders(
        self, queue: Queue, transition: Transition, with_handle: str, without: str
    ) -> None:
        job = await queue.accept_and_claim(n=3)
        rejected = await queue.order(job)
        await submissions.resolve(queue.database, job.id, rejected, "rejected")
        await queue.order(job, "h-1", first_index=1)
        await queue.order(job, first_index=2)

        assert await queue.apply(job, transition) is transition.status

        orders = await queue.orders(job.id)
        assert [order.resolution for order in orders] == ["rejected", with_handle, without]
        assert (await queue.row(job.id)).finished_at is not None

    @pytest.mark.parametrize(
        ("transition", "kind", "reason"),
        [
            (core.released(), EventKind.DEFERRED, "interrupted"),
            (CRASHED, EventKind.DEFERRED, "lease_expired"),
            (LOOPED, EventKind.FAILED, "crash_loop"),
            (REFUSED, EventKind.FAILED, "failed"),
            (core.canceled(), EventKind.CANCELED, "canceled"),
        ],
    )
    async def test_each_transition_has_its_event_and_its_outcome(
        self, queue: Queue, transition: Transition, kind: EventKind, reason: str
    ) -> None:
        job = await queue.accept_and_claim()

        await queue.apply(job, transition)

        row = await queue.row(job.id)
        assert (await queue.history(job.id))[-1] is kind
        assert row.reason == (await queue.attempts(job.id))[0].outcome == reason
        assert (row.failures, row.deferrals, row.crashes) == (0, 0, transition.crashes)

    async def test_a_release_is_due_at_once(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.apply(job, core.released())

        assert (await queue.claim_one()).fence == 2

    @pytest.mark.parametrize("message", ["a \0 byte", "half \ud800 a pair", "\0" * 3])
    async def test_words_that_postgresql_cannot_hold_do_not_keep_a_job_from_moving(
        self, queue: Queue, message: str
    ) -> None:
        job = await queue.accept_and_claim()
        error = ProviderError(ProviderErrorKind.TRANSIENT, message)
        transition = core.decide_after_error(job.view, error, job.claimed_at, 0.5)

        assert await queue.apply(job, transition) is Status.IN_QUEUE
        assert (await queue.row(job.id)).error_code == "transient"


class TestOnlyIfAbandoned:
    async def test_a_live_lease_is_not_taken(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()

        assert await queue.rescue(job) is None

    async def test_an_expired_lease_is_taken(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.expire_lease(job.id)

        assert await queue.rescue(job) is Status.IN_QUEUE
        assert (await queue.row(job.id)).crashes == 1

    async def test_a_lease_that_was_renewed_after_the_look_is_not_taken(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.expire_lease(job.id)
        await leases.renew(queue.database, [Held(job.id, job.fence)], timedelta(seconds=30))

        assert await queue.rescue(job) is None

    @pytest.mark.parametrize(("seconds_past", "taken"), [(10, False), (31, True)])
    async def test_a_live_lease_past_its_attempts_own_deadline_is_taken_after_the_grace_time(
        self, queue: Queue, seconds_past: int, *, taken: bool
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.change(
            "UPDATE attempts SET run_deadline_at = clock_timestamp() - make_interval(secs => :seconds)",
            seconds=seconds_past,
        )

        assert await queue.rescue(job) is (Status.IN_QUEUE if taken else None)


class TestFinish:
    async def test_the_results_are_there_with_the_status(self, queue: Queue) -> None:
        job = await queue.accept_and_claim(n=2)

        assert await queue.finish(job, metrics={"seconds": 0.5})

        row = await queue.row(job.id)
        media = await queue.media(job.id)
        [attempt] = await queue.attempts(job.id)
        assert (row.status, row.reason, row.progress, row.n) == ("completed", "completed", 1.0, 2)
        assert (row.lease_expires_at, row.worker, row.error_code) == (None, None, None)
        assert row.finished_at is not None
        assert [(one.id, one.key) for one in media] == [(one.id, one.key) for one in stored(job)]
        assert all(one.stored_at is not None and one.seed == 7 + one.index for one in media)
        assert (attempt.outcome, attempt.metrics) == ("completed", {"seconds": 0.5})
        assert (await queue.history(job.id))[-1] is EventKind.COMPLETED

    @pytest.mark.parametrize(("asked", "given"), [(3, 1), (1, 3), (2, 2)])
    async def test_a_job_has_as_many_results_as_the_provider_gave(
        self, queue: Queue, asked: int, given: int
    ) -> None:
        job = await queue.accept_and_claim(n=asked)

        assert await queue.finish(job, given)

        media = await queue.media(job.id)
        assert (await queue.row(job.id)).n == len(media) == given
        assert [one.index for one in media] == list(range(given))
        assert [one.id for one in media][:asked] == list(job.media_ids[:given])
        assert all(one.owner_id == "local" and one.key for one in media)

    async def test_open_orders_end_with_their_result_and_their_own_cost(self, queue: Queue) -> None:
        job = await queue.accept_and_claim(n=3)
        failed = await queue.order(job, "h-0")
        await submissions.resolve(queue.database, job.id, failed, "failed")
        for index in range(3):
            await queue.order(job, f"h-{index + 1}", first_index=index)

        await queue.finish(job, costs={2: Decimal("0.003"), 3: Decimal("0.004")})

        orders = await queue.orders(job.id)
        assert [order.resolution for order in orders] == ["failed", "result", "result", "result"]
        assert [order.cost for order in orders] == [None, Decimal("0.003"), Decimal("0.004"), None]

    async def test_an_error_of_an_earlier_attempt_is_forgotten(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.apply(job, RETRY)
        await queue.make_due()
        again = await queue.claim_one()

        await queue.finish(again)

        row = await queue.row(job.id)
        assert (row.error_code, row.error_message, row.failures) == (None, None, 1)

    @pytest.mark.parametrize(
        "metrics", [{"x": float("nan")}, {"x": float("inf")}, {"text": "a \0 byte"}, {"object": object()}]
    )
    async def test_metrics_that_are_no_json_do_not_keep_a_job_from_completing(
        self, queue: Queue, metrics: dict[str, Any]
    ) -> None:
        job = await queue.accept_and_claim()

        assert await queue.finish(job, metrics=metrics)
