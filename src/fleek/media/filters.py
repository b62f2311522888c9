"""What lists of jobs and of results are narrowed down by: the same filters for both.

A list's statement depends on which filters are given, not on their values, so each combination is
built once; a filter that is not given is not in the statement, where it would cost the planner its
knowledge of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from pydantic_core import to_json

from fleek.core.canonical import fingerprint
from fleek.core.cursor import Position
from fleek.core.job import ErrorCode, Status

_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ListFilter:
    """What rows of a list have in common; None, and an empty `metadata`, leave it open.

    `q` holds words of the prompt, in the notation of web searches: `dawn -fog "red boat"`. Times are
    aware, and exclusive.
    """

    list_name: ClassVar[str]

    status: Status | None = None
    model: str | None = None
    q: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    code: ErrorCode | None = None
    """Of the job's error: why it ended. Without a `status` of its own it means jobs that ended in error."""

    def parameters(self) -> dict[str, Any]:
        """The given filters, each as the value that its condition binds, if it binds one."""
        # A job in the queue has the error of its last attempt. To look for a code among all jobs would
        # be to walk over every completed one, so such jobs are found where the status asks for them.
        has_failed = self.status is Status.ERROR or (self.status is None and self.code is not None)
        values = {
            "status": None if has_failed else self.status,
            "failed": has_failed or None,
            "code": self.code,
            "model": self.model,
            "q": self.q,
            "created_after": _in_utc(self.created_after),
            "created_before": _in_utc(self.created_before),
            "metadata": to_json(dict(self.metadata)).decode() if self.metadata else None,
        }
        return {name: value for name, value in values.items() if value is not None}

    def scope(self, owner: str) -> str:
        """The list that a cursor belongs to, as a hash: which list, whose, and how it is narrowed down."""
        given = self.parameters() | {"metadata": dict(self.metadata)}
        for name in ("created_after", "created_before"):
            if name in given:
                given[name] = given[name].isoformat()
        return fingerprint([self.list_name, owner, given])


def page_parameters(owner: str, filters: ListFilter, after: Position | None, limit: int) -> dict[str, Any]:
    """What the statement of a page binds; the names say which statement it is."""
    parameters = {"owner": owner, "limit": limit} | filters.parameters()
    if after is not None:
        parameters |= {"after_at": after.created_at, "after_id": after.id}
    return parameters


def page_conditions(table: Literal["jobs", "media"], given: Collection[str]) -> str:
    """The SQL condition of a page of `table`: its owner's rows, after a position, through the filters.

    It names `jobs` for `status`, `code` and `model`, and `job_requests` for `q` and `metadata`.
    """
    conditions = {
        "owner": f"{table}.owner_id = :owner",
        "after_id": f"({table}.created_at, {table}.id) < (:after_at, :after_id)",
        "created_after": f"{table}.created_at > :created_after",
        "created_before": f"{table}.created_at < :created_before",
        "status": "jobs.status = :status",
        # Spelled out: there is an index of failed jobs only, which a plan for any status cannot use.
        "failed": "jobs.status = 'error'",
        "code": "jobs.error_code = :code",
        "model": "jobs.model = :model",
        "q": "job_requests.prompt_words @@ websearch_to_tsquery('simple', :q)",
        # The index leaves empty metadata out; PostgreSQL does not see by itself that it can be used.
        "metadata": "job_requests.metadata <> '{}' AND job_requests.metadata @> CAST(:metadata AS jsonb)",
    }
    return " AND ".join(condition for name, condition in conditions.items() if name in given)


def _in_utc(moment: datetime | None) -> datetime | None:
    """The same moment; one for which UTC has no year becomes the nearest that has one."""
    if moment is None:
        return None
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return _EARLIEST if moment.year == _EARLIEST.year else _LATEST
