"""Log entries: stored in batches, read by job, deleted by age. Each is one statement, but for `prune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Interval, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID as PG_UUID

from fleek.core.log_levels import LogLevel
from fleek.db.session import Database
from fleek.db.statements import declare_columns, select_list
from fleek.db.values import storable_json
from fleek.observability.records import Record

_MAX_ID = 2**63 - 1
_BATCHES_A_PASS = 100

# Under the lock ids are given in the order of the commits: whoever reads on from the last id that it saw
# misses nothing of another process. A job may have been deleted while its records waited here, and what was
# logged of it must not come back.
_ADD = text(
    """
WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtextextended('fleek log entries', 0)))
INSERT INTO log_entries (at, level, event, process, job_id, attempt, request_id, data)
SELECT at, level, event, :process, job_id, attempt, request_id, data
FROM turn, jsonb_to_recordset(CAST(:records AS jsonb)) AS record (
    at timestamptz, level text, event text, job_id uuid, attempt integer, request_id text, data jsonb
)
WHERE job_id IS NULL OR EXISTS (SELECT FROM jobs WHERE jobs.id = record.job_id)
"""
).bindparams(bindparam("records", type_=Text))

_ENTRY = {
    name: f"entry.{name}"
    for name in ("id", "at", "level", "event", "attempt", "process", "request_id", "data")
}
_LIST = declare_columns(
    f"""
SELECT {select_list(_ENTRY)}
FROM jobs LEFT JOIN LATERAL (
    SELECT * FROM log_entries
    WHERE job_id = jobs.id AND id > :after AND level = ANY(:levels)
      AND (CAST(:attempt AS integer) IS NULL OR attempt = :attempt)
      AND coalesce(data ->> 'owner', jobs.owner_id) = jobs.owner_id
    ORDER BY id LIMIT :limit
) AS entry ON true
WHERE jobs.id = :id AND jobs.owner_id = :owner
ORDER BY entry.id
""",  # noqa: S608  assembled from constants of this module
    _ENTRY,
    {"data": JSONB()},
).bindparams(bindparam("id", type_=PG_UUID), bindparam("levels", type_=ARRAY(Text)))

_PRUNE = text(
    """
WITH doomed AS (
    SELECT id FROM log_entries WHERE at < clock_timestamp() - :age
    ORDER BY at LIMIT :batch FOR UPDATE SKIP LOCKED
)
DELETE FROM log_entries USING doomed WHERE log_entries.id = doomed.id
"""
).bindparams(bindparam("age", type_=Interval(native=True)))


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries of a job are wanted."""

    after: int = 0
    """Only those with a higher id."""
    level: LogLevel = LogLevel.DEBUG
    """Those at least as severe."""
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A stored record of a job."""

    id: int
    at: datetime
    level: str
    event: str
    attempt: int | None
    process: str
    request_id: str | None
    data: dict[str, Any]


async def add_entries(database: Database, process: str, records: Sequence[Record]) -> None:
    """Store records of this process, in their order; not those of jobs that do not exist any more.

    Raises DatabaseUnavailable. Where the answer to a commit was lost, a repetition stores them twice.
    """
    rows = [
        {
            "at": record.at.isoformat(),
            "level": record.level,
            "event": record.event,
            "job_id": None if record.job_id is None else str(record.job_id),
            "attempt": record.attempt,
            "request_id": record.request_id,
            "data": record.data,
        }
        for record in records
    ]
    await database.fetch_rowcount(_ADD, {"process": process, "records": storable_json(rows)})


async def list_entries(
    database: Database, owner: str, job_id: UUID, wanted: EntryFilter, limit: int
) -> list[EntryRow] | None:
    """At most `limit` entries of a job, in the order in which they were stored; None: no such job."""
    rows = await database.fetch_all(
        _LIST,
        {
            "id": job_id,
            "owner": owner,
            "after": min(wanted.after, _MAX_ID),
            "levels": list(wanted.level.and_worse),
            "attempt": wanted.attempt,
            "limit": limit,
        },
    )
    return [EntryRow(*row) for row in rows if row.id is not None] if rows else None


async def prune(database: Database, older_than: timedelta, *, batch: int = 5_000) -> int:
    """Delete entries that are older, by the database's clock, `batch` a statement; how many.

    One call is bounded: a backlog of years is gone after several.
    """
    deleted = 0
    for _ in range(_BATCHES_A_PASS):
        found = await database.fetch_rowcount(_PRUNE, {"age": older_than, "batch": batch})
        deleted += found
        if found < batch:
            break
    return deleted
