"""The history of a job: what can happen to it, and the state that follows."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from fleek.core.job import Status


class EventKind(StrEnum):
    """Kinds of events. Each has a row, an id (its sequence) and the transaction of its change."""

    ACCEPTED = "accepted"
    CLAIMED = "claimed"
    SUBMITTED = "submitted"
    RESUMED = "resumed"
    DEFERRED = "deferred"
    RETRY_SCHEDULED = "retry_scheduled"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    RETRIED = "retried"


STATUS_AFTER: dict[EventKind, Status] = {
    EventKind.ACCEPTED: Status.IN_QUEUE,
    EventKind.CLAIMED: Status.PROCESSING,
    EventKind.SUBMITTED: Status.PROCESSING,
    EventKind.RESUMED: Status.PROCESSING,
    EventKind.DEFERRED: Status.IN_QUEUE,
    EventKind.RETRY_SCHEDULED: Status.IN_QUEUE,
    EventKind.COMPLETED: Status.COMPLETED,
    EventKind.FAILED: Status.ERROR,
    EventKind.CANCELED: Status.CANCELED,
    EventKind.RETRIED: Status.IN_QUEUE,
}
"""A job's row and its history cannot disagree: the row's status is that of its last event."""

TERMINAL_EVENTS = frozenset({EventKind.COMPLETED, EventKind.FAILED, EventKind.CANCELED})


def fold(kinds: Iterable[EventKind]) -> Status | None:
    """The status that a history leads to; None for an empty one."""
    status = None
    for kind in kinds:
        status = STATUS_AFTER[kind]
    return status
