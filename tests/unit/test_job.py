"""The decisions about a job: each is one legal transition, and the budget bounds all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from fleek.core import job as core
from fleek.core.errors import (
    DatabaseUnavailable,
    FleekError,
    LeaseLost,
    OutputInvalid,
    OutputTooLarge,
    ProviderError,
    ProviderErrorKind as Kind,
    StorageUnavailable,
)
from fleek.core.job import (
    MAX_CRASHES,
    RETRYABLE_CODES,
    TERMINAL,
    TRANSITIONS,
    ErrorCode,
    JobView,
    Reason,
    Status,
    Transition,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
VIEW = JobView(failures=0, max_attempts=4, deferrals=0, crashes=0, deadline_at=NOW + DAY)

COUNTED = {
    Kind.TRANSIENT: ErrorCode.TRANSIENT,
    Kind.TIMEOUT: ErrorCode.TIMEOUT,
    Kind.PROVIDER_BUG: ErrorCode.PROVIDER_BUG,
}
REFUSED = {
    Kind.PERMANENT_INPUT: (ErrorCode.PROVIDER_REJECTED_INPUT, Reason.FAILED),
    Kind.PERMANENT_POLICY: (ErrorCode.CONTENT_REFUSED, Reason.FAILED),
    Kind.AMBIGUOUS: (ErrorCode.AMBIGUOUS_SUBMISSION, Reason.AMBIGUOUS_SUBMISSION),
    Kind.RESULT_EXPIRED: (ErrorCode.RESULT_EXPIRED, Reason.FAILED),
}
PAUSING = {
    Kind.THROTTLED: ErrorCode.THROTTLED,
    Kind.PERMANENT_AUTH: ErrorCode.PROVIDER_AUTH,
    Kind.QUOTA_EXHAUSTED: ErrorCode.QUOTA_EXHAUSTED,
}

durations = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2))
jitters = st.floats(min_value=0, max_value=1, exclude_max=True)
provider_errors = st.builds(
    ProviderError, st.sampled_from(Kind), st.text(), retry_after=st.none() | durations
)
errors = st.one_of(
    provider_errors,
    st.builds(OutputInvalid, st.text()),
    st.builds(OutputTooLarge, st.text()),
    st.builds(FleekError, st.text()),
    st.builds(ValueError, st.text()),
    st.sampled_from([StorageUnavailable(), DatabaseUnavailable(), LeaseLost()]),
)


@st.composite
def views(draw: st.DrawFn) -> JobView:
    max_attempts = draw(st.integers(1, 10))
    return JobView(
        failures=draw(st.integers(0, max_attempts - 1)),
        max_attempts=max_attempts,
        deferrals=draw(st.integers(0, 10_000)),
        crashes=draw(st.integers(0, MAX_CRASHES - 1)),
        deadline_at=NOW + draw(st.timedeltas(min_value=-DAY, max_value=timedelta(days=7))),
    )


@given(views(), errors, jitters)
def test_every_decision_after_an_error_is_a_legal_transition(
    view: JobView, error: Exception, jitter: float
) -> None:
    transition = core.decide_after_error(view, error, NOW, jitter)

    assert transition.status in TRANSITIONS[Status.PROCESSING]
    assert transition.status is not Status.COMPLETED
    assert transition.delay >= timedelta(0)
    assert (transition.status is Status.ERROR) <= (transition.error is not None)


@given(views(), errors, jitters)
def test_no_decision_exceeds_the_budget(view: JobView, error: Exception, jitter: float) -> None:
    transition = core.decide_after_error(view, error, NOW, jitter)

    assert view.failures + transition.failures <= view.max_attempts
    assert transition.failures + transition.deferrals <= 1
    assert transition.crashes == 0
    if transition.status is Status.IN_QUEUE:
        assert view.failures + transition.failures < view.max_attempts


@given(views(), errors, jitters)
def test_a_job_goes_back_to_the_queue_only_to_be_claimed_before_its_deadline(
    view: JobView, error: Exception, jitter: float
) -> None:
    transition = core.decide_after_error(view, error, NOW, jitter)

    if transition.status is Status.IN_QUEUE:
        assert NOW + transition.delay < view.deadline_at


@given(views(), st.sampled_from(sorted(PAUSING)), st.none() | durations, jitters)
def test_what_the_provider_cannot_do_now_is_never_counted_against_the_job(
    view: JobView, kind: Kind, retry_after: timedelta | None, jitter: float
) -> None:
    error = ProviderError(kind, "not now", retry_after=retry_after)

    transition = core.decide_after_error(view, error, NOW, jitter)

    assert transition.failures == 0
    if transition.status is Status.IN_QUEUE:
        assert transition.reason is Reason.DEFERRED
        assert transition.deferrals == 1
        assert transition.pause_lane is not None
        assert transition.delay >= transition.pause_lane


@pytest.mark.parametrize(("kind", "code"), COUNTED.items())
def test_a_counted_failure_is_retried_while_the_budget_lasts(kind: Kind, code: ErrorCode) -> None:
    transition = core.decide_after_error(VIEW, ProviderError(kind, "went wrong"), NOW, 0.5)

    assert (transition.status, transition.reason) == (Status.IN_QUEUE, Reason.RETRY_SCHEDULED)
    assert transition.failures == 1
    assert transition.error == core.JobError(code, "went wrong")
    assert transition.pause_lane is None


@pytest.mark.parametrize("kind", COUNTED)
def test_the_last_counted_failure_ends_the_job_and_says_what_it_was(kind: Kind) -> None:
    view = JobView(failures=3, max_attempts=4, deferrals=0, crashes=0, deadline_at=NOW + DAY)

    transition = core.decide_after_error(view, ProviderError(kind, "went wrong"), NOW, 0.5)

    assert (transition.status, transition.reason) == (Status.ERROR, Reason.FAILED)
    assert transition.failures == 1
    assert transition.error is not None
    assert transition.error.code is ErrorCode.ATTEMPTS_EXHAUSTED
    assert "4 failed attempts; last: went wrong" in transition.error.message


@pytest.mark.parametrize(("kind", "expected"), REFUSED.items())
def test_a_refusal_ends_the_job_at_once_and_counts_nothing(
    kind: Kind, expected: tuple[ErrorCode, Reason]
) -> None:
    transition = core.decide_after_error(VIEW, ProviderError(kind, "no"), NOW, 0.5)

    code, reason = expected
    assert (transition.status, transition.reason) == (Status.ERROR, reason)
    assert transition.error == core.JobError(code, "no")
    assert transition.failures == 0


@pytest.mark.parametrize(("kind", "code"), PAUSING.items())
def test_a_busy_or_refusing_provider_pauses_the_lane_and_defers_the_job(kind: Kind, code: ErrorCode) -> None:
    error = ProviderError(kind, "later", retry_after=timedelta(seconds=40))

    transition = core.decide_after_error(VIEW, error, NOW, 0.5)

    expected = timedelta(seconds=40) if kind is Kind.THROTTLED else timedelta(minutes=15)
    assert (transition.status, transition.reason) == (Status.IN_QUEUE, Reason.DEFERRED)
    assert transition.pause_lane == expected
    assert transition.error == core.JobError(code, "later")


def test_every_kind_of_provider_error_has_one_row_in_the_table() -> None:
    assert sorted([*COUNTED, *REFUSED, *PAUSING]) == sorted(Kind)


@pytest.mark.parametrize(
    ("error", "status", "code", "counted"),
    [
        (OutputInvalid("not a picture"), Status.IN_QUEUE, ErrorCode.OUTPUT_INVALID, 1),
        (OutputTooLarge("too large"), Status.ERROR, ErrorCode.OUTPUT_TOO_LARGE, 0),
        (StorageUnavailable(), Status.IN_QUEUE, ErrorCode.STORAGE_UNAVAILABLE, 0),
        (FleekError("a bug of ours"), Status.IN_QUEUE, ErrorCode.INTERNAL_ERROR, 1),
        (ZeroDivisionError("secret"), Status.IN_QUEUE, ErrorCode.INTERNAL_ERROR, 1),
    ],
)
def test_errors_of_our_own_side(error: Exception, status: Status, code: ErrorCode, counted: int) -> None:
    transition = core.decide_after_error(VIEW, error, NOW, 0.5)

    assert transition.error is not None
    assert (transition.status, transition.error.code, transition.failures) == (status, code, counted)
    assert "secret" not in transition.error.message


@pytest.mark.parametrize(
    "error", [ProviderError(Kind.TRANSIENT, "busy"), ProviderError(Kind.THROTTLED, "busy")]
)
def test_a_retry_that_would_come_after_the_deadline_is_not_made(error: Exception) -> None:
    view = JobView(
        failures=0, max_attempts=4, deferrals=0, crashes=0, deadline_at=NOW + timedelta(seconds=0.4)
    )

    transition = core.decide_after_error(view, error, NOW, 0.5)

    assert (transition.status, transition.reason) == (Status.ERROR, Reason.DEADLINE_PASSED)
    assert transition.failures == 0
    assert transition.error is not None
    assert transition.error.code is ErrorCode.DEADLINE_PASSED
    assert transition.error.message.endswith("; last: busy")


@pytest.mark.parametrize(("late_by", "is_over"), [(59, False), (60, True)])
def test_a_result_that_cannot_be_stored_waits_an_hour_after_the_deadline_and_ends_as_what_failed(
    late_by: int, *, is_over: bool
) -> None:
    view = replace(VIEW, deadline_at=NOW - timedelta(minutes=late_by), result_waits=True)

    transition = core.decide_after_error(view, StorageUnavailable(), NOW, 0.5)

    assert transition.status is (Status.ERROR if is_over else Status.IN_QUEUE)
    assert transition.error is not None
    assert transition.error.code is ErrorCode.STORAGE_UNAVAILABLE
    assert transition.failures == 0


@given(st.integers(0, MAX_CRASHES - 1), st.booleans())
def test_only_a_crash_in_our_own_work_is_counted_and_the_third_ends_the_job(
    crashes: int, own_work: bool
) -> None:
    transition = core.decide_after_crash(crashes, own_work=own_work)

    assert transition.crashes == int(own_work)
    assert transition.failures == 0
    is_loop = own_work and crashes == MAX_CRASHES - 1
    assert transition.reason is (Reason.CRASH_LOOP if is_loop else Reason.LEASE_EXPIRED)
    assert transition.status is (Status.ERROR if is_loop else Status.IN_QUEUE)
    assert transition.delay == timedelta(0)
    assert (transition.error is not None) is is_loop


def test_a_release_is_due_at_once_and_counts_nothing() -> None:
    assert core.released() == Transition(Status.IN_QUEUE, Reason.INTERRUPTED)


def test_a_worker_that_stopped_for_a_cancel_ends_the_job() -> None:
    assert core.canceled() == Transition(Status.CANCELED, Reason.CANCELED)


@pytest.mark.parametrize(("last_error", "ending"), [(None, "completed"), ("busy", "; last: busy")])
def test_a_passed_deadline_says_what_went_wrong_last(last_error: str | None, ending: str) -> None:
    transition = core.deadline_passed(last_error)

    assert transition.status is Status.ERROR
    assert transition.error is not None
    assert transition.error.message.endswith(ending)


@pytest.mark.parametrize("code", ErrorCode)
def test_giving_up_has_the_reason_of_its_code(code: ErrorCode) -> None:
    transition = core.failed(code, "words")

    own_reasons = {str(reason) for reason in Reason}
    assert transition.reason == (str(code) if str(code) in own_reasons else Reason.FAILED)
    assert transition.error == core.JobError(code, "words")


def test_only_error_and_canceled_can_be_left_again() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {status for status in TERMINAL if TRANSITIONS[status]} == {Status.ERROR, Status.CANCELED}


def test_what_can_succeed_later_is_exactly_what_no_refusal_and_no_loop_ended() -> None:
    final = {
        ErrorCode.AMBIGUOUS_SUBMISSION,
        ErrorCode.PROVIDER_REJECTED_INPUT,
        ErrorCode.CONTENT_REFUSED,
        ErrorCode.OUTPUT_TOO_LARGE,
        ErrorCode.CRASH_LOOP,
        ErrorCode.RESULT_EXPIRED,
    }

    assert set(ErrorCode) - RETRYABLE_CODES == final
