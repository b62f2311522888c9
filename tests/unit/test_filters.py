"""The identity of a list, to which cursors are bound."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from fleek.core.job import ErrorCode, Status
from fleek.jobs.repository import JobFilter
from fleek.media.repository import MediaFilter

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_every_list_has_a_scope_of_its_own() -> None:
    filters = [
        JobFilter(),
        MediaFilter(),
        JobFilter(status=Status.ERROR),
        JobFilter(code=ErrorCode.TIMEOUT),
        JobFilter(code=ErrorCode.TIMEOUT, status=Status.IN_QUEUE),
        JobFilter(model="error"),
        JobFilter(q="error"),
        JobFilter(created_after=NOON),
        JobFilter(created_before=NOON),
        JobFilter(metadata={"a": "b"}),
        JobFilter(metadata={"a": "c"}),
        JobFilter(metadata={"a": "b", "c": "d"}),
    ]

    scopes = {one.scope(owner) for one in filters for owner in ("a", "b")}

    assert len(scopes) == 2 * len(filters)


def test_a_list_keeps_its_scope_however_its_filters_are_written() -> None:
    in_utc = JobFilter(created_after=NOON, metadata={"a": "1", "b": "2"})
    in_tokyo = JobFilter(
        created_after=NOON.astimezone(timezone(timedelta(hours=9))), metadata={"b": "2", "a": "1"}
    )

    assert in_utc.scope("a") == in_tokyo.scope("a")
