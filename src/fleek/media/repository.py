"""Reading and deleting results. Every function is one statement and one round trip.

A result is live unless it was deleted or has expired, by the database's clock. Every query names the
owner: somebody else's result looks like none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from functools import cache
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import TextualSelect

from fleek.core.cursor import Position
from fleek.core.job import Status
from fleek.db.session import Database
from fleek.db.statements import declare_columns, select_list
from fleek.media.filters import ListFilter, page_conditions, page_parameters


@dataclass(frozen=True, slots=True)
class MediaFilter(ListFilter):
    """What the results of a list have in common; `status` and `model` are those of their jobs."""

    list_name: ClassVar[str] = "media"


@dataclass(frozen=True, slots=True)
class MediaRow:
    """A result; what is about its bytes, `key` included, is None until they are stored."""

    id: UUID
    job_id: UUID
    index: int
    content_type: str | None
    size_bytes: int | None
    width: int | None
    height: int | None
    sha256: str | None
    thumbhash: str | None
    seed: int | None
    created_at: datetime
    stored_at: datetime | None
    expires_at: datetime | None
    key: str | None
    time_left: timedelta | None
    """Until it expires; None where it never does."""


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Where a result's bytes are, and what they are."""

    key: str
    content_type: str
    sha256: str
    time_left: timedelta | None


@dataclass(frozen=True, slots=True)
class MediaState:
    """A result, and what decides whether its bytes can be had."""

    media: MediaRow
    stored: StoredBytes | None
    is_live: bool
    job_status: Status
    job_due_in: timedelta
    """Until the job may be claimed; negative where it may be already."""


_IS_LIVE = (
    "media.deleted_at IS NULL AND (media.expires_at IS NULL OR media.expires_at > statement_timestamp())"
)

_MEDIA = {field.name: f"media.{field.name}" for field in fields(MediaRow)} | {
    "time_left": "media.expires_at - statement_timestamp()",
}
_STATE = _MEDIA | {
    "is_live": _IS_LIVE,
    "job_status": "jobs.status",
    "job_due_in": "jobs.available_at - statement_timestamp()",
}
_GET_MEDIA = declare_columns(
    f"""
SELECT {select_list(_STATE)} FROM media JOIN jobs ON jobs.id = media.job_id
WHERE media.id = :id AND media.owner_id = :owner
""",  # noqa: S608  assembled from constants of this module
    _STATE,
)

_JOIN_JOB = "JOIN jobs ON jobs.id = media.job_id"
_JOIN_REQUEST = "JOIN job_requests ON job_requests.job_id = media.job_id"

# The row stays as a tombstone; the placeholder goes with the bytes, since it shows what they showed.
_DELETE_MEDIA = declare_columns(
    f"""
UPDATE media SET deleted_at = clock_timestamp(), thumbhash = NULL
WHERE id = :id AND owner_id = :owner AND key IS NOT NULL AND {_IS_LIVE}
RETURNING key
""",  # noqa: S608  assembled from constants of this module
    ("key",),
)


async def get_media_or_none(database: Database, owner: str, media_id: UUID) -> MediaState | None:
    """One result, live or not; None where the owner has no such result."""
    row = await database.fetch_one(_GET_MEDIA, {"id": media_id, "owner": owner})
    if row is None:
        return None
    stored = StoredBytes(row.key, row.content_type, row.sha256, row.time_left) if row.key else None
    media = MediaRow(*row[: len(_MEDIA)])
    return MediaState(media, stored, row.is_live, Status(row.job_status), row.job_due_in)


async def list_media(
    database: Database, owner: str, filters: MediaFilter, after: Position | None, limit: int
) -> list[MediaRow]:
    """At most `limit` live results behind the position `after`, newest first, stored or still to come."""
    parameters = page_parameters(owner, filters, after, limit)
    rows = await database.fetch_all(_list_media_statement(frozenset(parameters)), parameters)
    return [MediaRow(*row) for row in rows]


async def delete_media(database: Database, owner: str, media_id: UUID) -> str | None:
    """Make a stored, live result a tombstone; the key of its bytes, or None where there is no such result."""
    row: Any = await database.fetch_one(_DELETE_MEDIA, {"id": media_id, "owner": owner})
    return None if row is None else str(row.key)


@cache
def _list_media_statement(given: frozenset[str]) -> TextualSelect:
    """The statement of a page that binds these parameters."""
    job = "" if given.isdisjoint(("status", "failed", "code", "model")) else _JOIN_JOB
    request = "" if given.isdisjoint(("q", "metadata")) else _JOIN_REQUEST
    return declare_columns(
        f"""
SELECT {select_list(_MEDIA)} FROM media {job} {request}
WHERE {page_conditions("media", given)} AND {_IS_LIVE}
ORDER BY media.created_at DESC, media.id DESC LIMIT :limit
""",  # noqa: S608  assembled from constants; values are bound
        _MEDIA,
    )
