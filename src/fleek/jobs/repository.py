"""Reading jobs. Every function is one statement and one round trip, whatever it returns.

Rows that belong to a job come along as JSON aggregates: asking for them one by one, or table by
table, would cost a round trip each. Every query names the owner: somebody else's job looks like none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import TextualSelect
from sqlalchemy.dialects.postgresql import JSONB

from fleek.core.cursor import Position
from fleek.core.events import EventKind
from fleek.core.job import Reason, Status
from fleek.core.urls import Urls
from fleek.db.session import Database
from fleek.db.statements import declare_columns, select_list
from fleek.jobs.schemas import Cost, ErrorOut, JobOut, JobStatusOut, Links
from fleek.media.filters import ListFilter, page_conditions, page_parameters

_MAX_SEQUENCE = 2**31 - 1

# Stored in single precision: by way of its decimal form, or 0.4 would be shown as 0.4000000059604645.
_PROGRESS = "CAST(CAST(progress AS numeric) AS float8)"

# Told by the reason and not by the clock: the same row gives the same answer.
_AWAITS_RETRY = "status = 'in_queue' AND reason IN ('retry_scheduled', 'deferred')"

_STATUS = {name: name for name in ("id", "status", "reason", "failures", "max_attempts")} | {
    "progress": _PROGRESS,
    "error_code": "error_code",
    "error_message": "error_message",
    "retry_at": f"CASE WHEN {_AWAITS_RETRY} THEN available_at END",
    "media_ids": "(SELECT array_agg(media.id ORDER BY index) FROM media WHERE media.job_id = jobs.id)",
    "updated_at": "(SELECT at FROM events WHERE events.job_id = jobs.id AND sequence = event_sequence)",
}
_GET_STATUS = declare_columns(
    f"SELECT {select_list(_STATUS)} FROM jobs WHERE id = :id AND owner_id = :owner", _STATUS
)

_JOB_COLUMNS = (
    *("id", "status", "reason", "model", "n", "failures", "max_attempts", "priority", "error_code"),
    *("error_message", "created_at", "available_at", "deadline_at", "started_at", "finished_at"),
)
_WHOLE = {name: f"page.{name}" for name in _JOB_COLUMNS} | {
    "progress": _PROGRESS,
    "prompt": "job_requests.prompt",
    "parameters": "job_requests.parameters",
    "input": "job_requests.input",
    "metadata": "job_requests.metadata",
    "media_ids": "results.media_ids",
    "media": "results.media",
    "attempts": "runs.attempts",
    "submissions": "orders.submissions",
}
_WHOLE_TYPES = {
    name: JSONB() for name in ("parameters", "input", "metadata", "media", "attempts", "submissions")
}

# Amounts of money travel as text: a JSON number would become a binary fraction.
_FROM_PAGE = """
FROM page
JOIN job_requests ON job_requests.job_id = page.id
CROSS JOIN LATERAL (
    SELECT
        array_agg(id ORDER BY index) AS media_ids,
        jsonb_agg(
            jsonb_build_object(
                'id', id, 'job_id', job_id, 'index', index, 'seed', seed, 'content_type', content_type,
                'size_bytes', size_bytes, 'width', width, 'height', height, 'sha256', sha256,
                'thumbhash', thumbhash, 'created_at', created_at, 'stored_at', stored_at,
                'expires_at', expires_at
            ) ORDER BY index
        ) FILTER (
            WHERE stored_at IS NOT NULL AND deleted_at IS NULL
              AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ) AS media
    FROM media WHERE media.job_id = page.id
) AS results
CROSS JOIN LATERAL (
    SELECT jsonb_agg(
        jsonb_build_object(
            'number', number, 'worker', worker, 'celery_task_id', celery_task_id,
            'started_at', started_at, 'finished_at', finished_at, 'outcome', outcome,
            'error_code', error_code, 'error_message', error_message, 'metrics', metrics
        ) ORDER BY number
    ) AS attempts
    FROM attempts WHERE attempts.job_id = page.id
) AS runs
CROSS JOIN LATERAL (
    SELECT jsonb_agg(
        jsonb_build_object(
            'ordinal', ordinal, 'provider', provider, 'model_ref', model_ref, 'accepted_at', accepted_at,
            'resolved_at', resolved_at, 'resolution', resolution, 'cost', CAST(trim_scale(cost) AS text)
        ) ORDER BY ordinal
    ) AS submissions
    FROM submissions WHERE submissions.job_id = page.id
) AS orders
ORDER BY page.created_at DESC, page.id DESC
"""

_JOIN_REQUEST = "JOIN job_requests ON job_requests.job_id = jobs.id"

_EVENT = {name: f"events.{name}" for name in ("sequence", "kind", "data", "at")}
_LIST_EVENTS = declare_columns(
    f"""
SELECT {select_list(_EVENT)}
FROM jobs LEFT JOIN events ON events.job_id = jobs.id AND events.sequence > :after
WHERE jobs.id = :id AND jobs.owner_id = :owner
ORDER BY events.sequence
""",
    _EVENT,
    {"data": JSONB()},
)


def _whole_jobs(page: str) -> TextualSelect:
    """Whole jobs of a page, which is cut before anything is joined to it."""
    sql = f"WITH page AS MATERIALIZED ({page}) SELECT {select_list(_WHOLE)} {_FROM_PAGE}"
    return declare_columns(sql, _WHOLE, _WHOLE_TYPES)


_GET_JOB = _whole_jobs("SELECT * FROM jobs WHERE id = :id AND owner_id = :owner")


@dataclass(frozen=True, slots=True)
class JobFilter(ListFilter):
    """What the jobs of a list have in common."""

    list_name: ClassVar[str] = "jobs"


@dataclass(frozen=True, slots=True)
class EventRow:
    """One thing that happened to a job; `sequence` is 1 for the first."""

    sequence: int
    kind: EventKind
    data: dict[str, Any]
    at: datetime


async def get_status_or_none(database: Database, owner: str, job_id: UUID) -> JobStatusOut | None:
    """The light status; None where the owner has no such job."""
    row = await database.fetch_one(_GET_STATUS, {"id": job_id, "owner": owner})
    return None if row is None else _to_status(row)


async def get_job_or_none(database: Database, owner: str, job_id: UUID, urls: Urls) -> JobOut | None:
    """The whole job; None where the owner has no such job."""
    row = await database.fetch_one(_GET_JOB, {"id": job_id, "owner": owner})
    return None if row is None else _to_job(row, urls)


async def list_jobs(  # noqa: PLR0913  whose, which, from where, how many, and how links begin
    database: Database, owner: str, filters: JobFilter, after: Position | None, limit: int, urls: Urls
) -> list[JobOut]:
    """At most `limit` whole jobs behind the position `after`, newest first."""
    parameters = page_parameters(owner, filters, after, limit)
    rows = await database.fetch_all(_list_jobs_statement(frozenset(parameters)), parameters)
    return [_to_job(row, urls) for row in rows]


async def list_events(
    database: Database, owner: str, job_id: UUID, after_sequence: int
) -> list[EventRow] | None:
    """The history behind a sequence, oldest first; None where the owner has no such job."""
    after = min(after_sequence, _MAX_SEQUENCE)
    rows = await database.fetch_all(_LIST_EVENTS, {"id": job_id, "owner": owner, "after": after})
    if not rows:
        return None
    return [
        EventRow(row.sequence, EventKind(row.kind), row.data, row.at)
        for row in rows
        if row.sequence is not None
    ]


@cache
def _list_jobs_statement(given: frozenset[str]) -> TextualSelect:
    """The statement of a page that binds these parameters."""
    request = (
        "" if given.isdisjoint(("q", "metadata")) else "JOIN job_requests ON job_requests.job_id = jobs.id"
    )
    return _whole_jobs(
        f"""
SELECT jobs.* FROM jobs {request}
WHERE {page_conditions("jobs", given)}
ORDER BY jobs.created_at DESC, jobs.id DESC LIMIT :limit
"""
    )


def _to_status(row: Any) -> JobStatusOut:  # noqa: ANN401  a row of _GET_STATUS
    return JobStatusOut(
        id=row.id,
        status=Status(row.status),
        reason=Reason(row.reason),
        progress=row.progress,
        failures=row.failures,
        max_attempts=row.max_attempts,
        retry_at=row.retry_at,
        error=ErrorOut.from_columns(row.error_code, row.error_message),
        media_ids=row.media_ids,
        updated_at=row.updated_at,
    )


def _to_job(row: Any, urls: Urls) -> JobOut:  # noqa: ANN401  a row of _WHOLE
    columns = row._asdict()
    submissions = columns["submissions"] or []
    return JobOut.model_validate(
        columns["parameters"]
        | columns
        | {
            "error": ErrorOut.from_columns(row.error_code, row.error_message),
            "media": [
                media | {"content_url": urls.content(media["id"]), "signed_url": None}
                for media in columns["media"] or ()
            ],
            "attempts": [
                attempt | {"error": ErrorOut.from_columns(attempt["error_code"], attempt["error_message"])}
                for attempt in columns["attempts"] or ()
            ],
            "submissions": submissions,
            "paid_submissions": sum(order["resolution"] != "rejected" for order in submissions),
            "cost": _cost([order["cost"] for order in submissions if order["cost"] is not None]),
            "links": Links.of(row.id, urls),
        }
    )


def _cost(amounts: list[str]) -> Cost | None:
    """The sum of what providers said; None where none said anything."""
    if not amounts:
        return None
    return Cost(amount=sum((Decimal(amount) for amount in amounts), Decimal(0)), currency="USD")
