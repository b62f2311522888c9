"""The states of a job, the transitions between them, and the decisions that choose one.

A decision is a value: `decide_*` looks at facts and returns a `Transition`, and the repository
applies it "if the job is still in the expected state". Nothing here acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fleek.core import retry
from fleek.core.errors import (
    DatabaseUnavailable,
    FleekError,
    OutputError,
    OutputTooLarge,
    ProviderError,
    ProviderErrorKind as Kind,
    Unavailable,
)

MAX_CRASHES = 3
"""Crashes inside Fleek's own work after which a job is given up: it kills workers."""

RESULT_PATIENCE = timedelta(hours=1)
"""How long after the deadline storing a delivered result is still tried: providers keep results so long."""


class Status(StrEnum):
    """Where a job stands."""

    IN_QUEUE = "in_queue"
    """Accepted, or waiting for its next attempt: claimed when due, canceled, or its deadline passes."""
    PROCESSING = "processing"
    """A worker holds a lease: it completes, goes back to the queue, ends in error or is canceled."""
    COMPLETED = "completed"
    """Every output is in the object store and its media row is filled. Terminal."""
    ERROR = "error"
    """Given up; `error` says why. Terminal, until a client asks for a retry."""
    CANCELED = "canceled"
    """The client asked for it. Terminal, until a client asks for a retry."""


TERMINAL = frozenset({Status.COMPLETED, Status.ERROR, Status.CANCELED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.IN_QUEUE: frozenset({Status.PROCESSING, Status.ERROR, Status.CANCELED}),
    Status.PROCESSING: frozenset({Status.COMPLETED, Status.IN_QUEUE, Status.ERROR, Status.CANCELED}),
    Status.COMPLETED: frozenset(),
    Status.ERROR: frozenset({Status.IN_QUEUE}),
    Status.CANCELED: frozenset({Status.IN_QUEUE}),
}
"""Every change of status that is legal; the tests read this table too."""


class Reason(StrEnum):
    """Why the last change happened. An attempt's outcome is the reason of the change that ended it."""

    ACCEPTED = "accepted"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    RETRY_SCHEDULED = "retry_scheduled"
    DEFERRED = "deferred"
    INTERRUPTED = "interrupted"
    LEASE_EXPIRED = "lease_expired"
    FAILED = "failed"
    DEADLINE_PASSED = "deadline_passed"
    CRASH_LOOP = "crash_loop"
    AMBIGUOUS_SUBMISSION = "ambiguous_submission"
    CANCELED = "canceled"
    RETRIED_BY_CLIENT = "retried_by_client"


class ErrorCode(StrEnum):
    """Codes in a job's `error`; one page of the reference explains each."""

    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    DEADLINE_PASSED = "deadline_passed"
    AMBIGUOUS_SUBMISSION = "ambiguous_submission"
    PROVIDER_REJECTED_INPUT = "provider_rejected_input"
    CONTENT_REFUSED = "content_refused"
    OUTPUT_TOO_LARGE = "output_too_large"
    CRASH_LOOP = "crash_loop"
    THROTTLED = "throttled"
    PROVIDER_AUTH = "provider_auth"
    QUOTA_EXHAUSTED = "quota_exhausted"
    TIMEOUT = "timeout"
    TRANSIENT = "transient"
    PROVIDER_BUG = "provider_bug"
    OUTPUT_INVALID = "output_invalid"
    RESULT_EXPIRED = "result_expired"
    DATABASE_UNAVAILABLE = "database_unavailable"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    INTERNAL_ERROR = "internal_error"


RETRYABLE_CODES = frozenset(
    {
        ErrorCode.ATTEMPTS_EXHAUSTED,
        ErrorCode.DEADLINE_PASSED,
        ErrorCode.THROTTLED,
        ErrorCode.PROVIDER_AUTH,
        ErrorCode.QUOTA_EXHAUSTED,
        ErrorCode.TIMEOUT,
        ErrorCode.TRANSIENT,
        ErrorCode.PROVIDER_BUG,
        ErrorCode.OUTPUT_INVALID,
        ErrorCode.DATABASE_UNAVAILABLE,
        ErrorCode.STORAGE_UNAVAILABLE,
        ErrorCode.INTERNAL_ERROR,
    }
)
"""Codes after which the same request may well succeed later."""


@dataclass(frozen=True, slots=True)
class JobError:
    """What went wrong, in words that are safe to show."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class JobView:
    """The facts of a running job that a decision needs."""

    failures: int
    max_attempts: int
    deferrals: int
    crashes: int
    deadline_at: datetime
    result_waits: bool = False
    """The provider has delivered, and only storing is left: the deadline does not stop that."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of a job, as a value.

    The counters are increments. A way back to the queue whose job has a cancel request and no open
    order becomes `canceled` when it is applied: the database, not this value, knows that last.
    """

    status: Status
    reason: Reason
    delay: timedelta = timedelta(0)
    failures: int = 0
    deferrals: int = 0
    crashes: int = 0
    error: JobError | None = None
    pause_lane: timedelta | None = None
    """Stop claiming this model for so long: the provider is busy or refuses our key."""


def released() -> Transition:
    """A worker that shuts down gives the job back: due at once, nothing counted."""
    return Transition(Status.IN_QUEUE, Reason.INTERRUPTED)


def canceled() -> Transition:
    """The client asked for it, and the worker stopped."""
    return Transition(Status.CANCELED, Reason.CANCELED)


def failed(code: ErrorCode, message: str, *, failures: int = 0) -> Transition:
    """Give the job up."""
    reasons = {
        ErrorCode.DEADLINE_PASSED: Reason.DEADLINE_PASSED,
        ErrorCode.CRASH_LOOP: Reason.CRASH_LOOP,
        ErrorCode.AMBIGUOUS_SUBMISSION: Reason.AMBIGUOUS_SUBMISSION,
    }
    reason = reasons.get(code, Reason.FAILED)
    return Transition(Status.ERROR, reason, failures=failures, error=JobError(code, message))


def deadline_passed(last_error: str | None = None) -> Transition:
    """The client's deadline came first."""
    message = "The job's deadline passed before it completed"
    return failed(ErrorCode.DEADLINE_PASSED, f"{message}; last: {last_error}" if last_error else message)


def decide_after_crash(crashes: int, *, own_work: bool) -> Transition:
    """What follows a lost lease.

    `own_work` says that the attempt was inside Fleek's own process with no order open elsewhere: only
    then may the job itself have killed the worker, and only then is the loss counted.
    """
    counted = int(own_work)
    if crashes + counted >= MAX_CRASHES:
        message = f"The job's worker was lost {MAX_CRASHES} times while it worked on this job"
        return Transition(
            Status.ERROR,
            Reason.CRASH_LOOP,
            crashes=counted,
            error=JobError(ErrorCode.CRASH_LOOP, message),
        )
    return Transition(Status.IN_QUEUE, Reason.LEASE_EXPIRED, crashes=counted)


def decide_after_error(  # noqa: PLR0911  one return a kind of error
    job: JobView, error: Exception, now: datetime, jitter: float
) -> Transition:
    """What follows an error of an attempt; the table is in `docs/reference/errors.md`.

    `jitter` is a random number in [0, 1). Unknown exceptions are counted failures: a bug must end.
    """
    match error:
        case ProviderError():
            return _after_provider_error(job, error, now, jitter)
        case OutputTooLarge():
            return failed(ErrorCode.OUTPUT_TOO_LARGE, error.message)
        case OutputError():
            return _retry(job, JobError(ErrorCode.OUTPUT_INVALID, error.message), now, jitter)
        case DatabaseUnavailable():
            return _defer(job, JobError(ErrorCode.DATABASE_UNAVAILABLE, error.message), now, jitter)
        case Unavailable():
            return _defer(job, JobError(ErrorCode.STORAGE_UNAVAILABLE, error.message), now, jitter)
        case FleekError():
            return _retry(job, JobError(ErrorCode.INTERNAL_ERROR, error.message), now, jitter)
        case _:
            unexpected = JobError(ErrorCode.INTERNAL_ERROR, "An unexpected error; the worker's log has it")
            return _retry(job, unexpected, now, jitter)


_COUNTED = {
    Kind.TRANSIENT: ErrorCode.TRANSIENT,
    Kind.TIMEOUT: ErrorCode.TIMEOUT,
    Kind.PROVIDER_BUG: ErrorCode.PROVIDER_BUG,
}
_REFUSED = {
    Kind.PERMANENT_INPUT: ErrorCode.PROVIDER_REJECTED_INPUT,
    Kind.PERMANENT_POLICY: ErrorCode.CONTENT_REFUSED,
    Kind.AMBIGUOUS: ErrorCode.AMBIGUOUS_SUBMISSION,
    Kind.RESULT_EXPIRED: ErrorCode.RESULT_EXPIRED,
}
_PAUSING = {
    Kind.THROTTLED: ErrorCode.THROTTLED,
    Kind.PERMANENT_AUTH: ErrorCode.PROVIDER_AUTH,
    Kind.QUOTA_EXHAUSTED: ErrorCode.QUOTA_EXHAUSTED,
}


def _after_provider_error(job: JobView, error: ProviderError, now: datetime, jitter: float) -> Transition:
    if error.kind in _REFUSED:
        return failed(_REFUSED[error.kind], error.message)
    if error.kind in _COUNTED:
        return _retry(job, JobError(_COUNTED[error.kind], error.message), now, jitter)
    at_least = retry.lane_pause(error.kind, error.retry_after)
    job_error = JobError(_PAUSING[error.kind], error.message)
    return _defer(job, job_error, now, jitter, at_least=at_least, pause_lane=at_least)


def _result_lost(error: JobError) -> Transition:
    """What was made could not be taken over for so long that its provider does not keep it any more."""
    return failed(error.code, f"The result could not be stored in time; last: {error.message}")


def _is_too_late(job: JobView, due: datetime) -> bool:
    """Whether an attempt that is due then is not worth waiting for."""
    patience = RESULT_PATIENCE if job.result_waits else timedelta(0)
    return due >= job.deadline_at + patience


def _retry(job: JobView, error: JobError, now: datetime, jitter: float) -> Transition:
    """A counted failure: again after a pause, unless the budget or the time is used up."""
    failures = job.failures + 1
    if failures >= job.max_attempts:
        message = f"Gave up after {failures} failed attempts; last: {error.message}"
        return failed(ErrorCode.ATTEMPTS_EXHAUSTED, message, failures=1)
    delay = retry.backoff(failures, jitter)
    if _is_too_late(job, now + delay):
        return deadline_passed(error.message)
    return Transition(Status.IN_QUEUE, Reason.RETRY_SCHEDULED, delay=delay, failures=1, error=error)


def _defer(  # noqa: PLR0913  a deferral is described by this much
    job: JobView,
    error: JobError,
    now: datetime,
    jitter: float,
    *,
    at_least: timedelta = retry.MIN_DEFERRAL,
    pause_lane: timedelta | None = None,
) -> Transition:
    """Not the job's fault: wait, and count nothing against its budget."""
    delay = retry.deferral(job.deferrals + 1, at_least, jitter)
    if _is_too_late(job, now + delay):
        is_lost = error.code is ErrorCode.STORAGE_UNAVAILABLE
        return _result_lost(error) if is_lost else deadline_passed(error.message)
    return Transition(
        Status.IN_QUEUE, Reason.DEFERRED, delay=delay, deferrals=1, error=error, pause_lane=pause_lane
    )
