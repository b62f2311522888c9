"""What may be deleted, and deleting it. Every function is one statement and one round trip.

All ages are by the database's clock. Rows that somebody else works on are skipped, never waited for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Integer, Interval, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, UUID as PG_UUID

from fleek.core.job import TERMINAL, Status
from fleek.core.media import ObjectName
from fleek.db.session import Database

_TERMINAL = ", ".join(f"'{status}'" for status in sorted(TERMINAL))
_CLAIM_FOR = "interval '5 minutes'"
"""How long a process that prunes a job keeps others from doing the same."""

_EXPIRED = "deleted_at IS NULL AND expires_at <= clock_timestamp()"
_OUTLIVED = "finished_at < clock_timestamp() - :retention"

# As a client's deletion leaves it: the row stays as a tombstone, without the placeholder.
_EXPIRE_MEDIA = text(
    f"""
WITH doomed AS (
    SELECT id FROM media WHERE {_EXPIRED} ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE media SET deleted_at = clock_timestamp(), thumbhash = NULL
FROM doomed WHERE media.id = doomed.id RETURNING media.key
"""
)

# `available_at` means nothing for a job that has ended, and a retry sets it anew: here it says until when
# the job is somebody's to prune. Results are tombstones from here on, so that nobody is led to objects
# that are about to go; only a completed job has any, and that one cannot be retried.
_CLAIM_JOBS = text(
    f"""
WITH doomed AS (
    SELECT id FROM jobs
    WHERE {_OUTLIVED} AND available_at < clock_timestamp()
    ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED
),
claimed AS (
    UPDATE jobs SET available_at = clock_timestamp() + {_CLAIM_FOR}
    FROM doomed WHERE jobs.id = doomed.id RETURNING jobs.id, jobs.fence, jobs.status
),
tombs AS (
    UPDATE media SET deleted_at = coalesce(deleted_at, clock_timestamp()), thumbhash = NULL
    FROM claimed WHERE media.job_id = claimed.id AND media.key IS NOT NULL
    RETURNING media.job_id, media.key
)
SELECT id, fence, status,
    (SELECT coalesce(array_agg(key), '{{}}') FROM tombs WHERE job_id = claimed.id) AS keys
FROM claimed
"""
).bindparams(bindparam("retention", type_=Interval(native=True)))

# A client may have retried a job since it was claimed: such a one is not terminal, or has ended lately.
_DELETE_JOBS = text(
    f"""
WITH doomed AS (
    SELECT id FROM jobs WHERE id = ANY(:ids) AND {_OUTLIVED} AND status IN ({_TERMINAL})
    ORDER BY id FOR UPDATE SKIP LOCKED
),
gone AS (DELETE FROM jobs USING doomed WHERE jobs.id = doomed.id RETURNING jobs.id),
records AS (DELETE FROM log_entries USING gone WHERE log_entries.job_id = gone.id)
SELECT id FROM gone
"""
).bindparams(
    bindparam("ids", type_=ARRAY(PG_UUID)),
    bindparam("retention", type_=Interval(native=True)),
)

# The fence decides without a race: a job that has ended names nothing of an earlier claim any more, and
# what a later claim stores has a higher fence. The ids of jobs are in the order in which they were made: an
# unknown job from before the oldest one that is known was perhaps never ours.
_JUDGE_OBJECTS = text(
    f"""
SELECT object.key
FROM unnest(:keys, :stems, :jobs, :results, :fences) AS object (key, stem, job_id, media_id, fence)
LEFT JOIN jobs ON jobs.id = object.job_id
WHERE CASE
    WHEN jobs.id IS NULL THEN
        :unknown = 'all' OR :unknown = 'newer' AND object.job_id > (SELECT id FROM jobs ORDER BY id LIMIT 1)
    ELSE jobs.status IN ({_TERMINAL}) AND object.fence <= jobs.fence AND NOT EXISTS (
        SELECT FROM media
        WHERE media.id = object.media_id AND media.deleted_at IS NULL
          AND starts_with(media.key, object.stem || '.')
    )
END
"""
).bindparams(
    bindparam("keys", type_=ARRAY(Text)),
    bindparam("stems", type_=ARRAY(Text)),
    bindparam("jobs", type_=ARRAY(PG_UUID)),
    bindparam("results", type_=ARRAY(PG_UUID)),
    bindparam("fences", type_=ARRAY(Integer)),
    bindparam("unknown", type_=Text),
)

_COUNT_KNOWN = text("SELECT count(*) AS number FROM jobs WHERE id = ANY(:ids)").bindparams(
    bindparam("ids", type_=ARRAY(PG_UUID))
)

_COUNT_MEDIA = text(
    f"SELECT count(*) AS number, coalesce(sum(size_bytes), 0) AS size FROM media WHERE {_EXPIRED}"
)
_COUNT_JOBS = text(
    f"""
SELECT count(DISTINCT jobs.id) AS number,
    coalesce(sum(size_bytes) FILTER (WHERE deleted_at IS NULL AND ({_EXPIRED}) IS NOT TRUE), 0) AS size
FROM jobs LEFT JOIN media ON media.job_id = jobs.id WHERE {_OUTLIVED}
"""
).bindparams(bindparam("retention", type_=Interval(native=True)))

# A copy of a database that was made by `pg_dump` has another number, one of its disk the same.
_GET_IDENTITY = text(
    """
SELECT clock_timestamp() AS now, system_identifier || '/' || (
    SELECT oid FROM pg_database WHERE datname = current_database()
) AS identity
FROM pg_control_system()
"""
)


class Unknown(StrEnum):
    """Which objects of jobs that the database does not know are orphans."""

    NONE = "none"
    """The store is shared: they may be another database's results."""
    NEWER = "newer"
    """Those of jobs that are newer than the oldest that is known."""
    ALL = "all"


@dataclass(frozen=True, slots=True)
class OutlivedJob:
    """A job that is to be deleted, and what its rows say of its objects."""

    id: UUID
    fence: int
    status: Status
    keys: Sequence[str]

    @property
    def may_have_left_objects(self) -> bool:
        """Whether an attempt may have stored what no row names: each that did not complete the job."""
        return self.fence > (1 if self.status is Status.COMPLETED else 0)


@dataclass(frozen=True, slots=True)
class Amount:
    """How many, and of how many bytes."""

    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Which database this is, and what time it is there."""

    name: str
    now: datetime


async def expire_media(database: Database, limit: int) -> list[str]:
    """Make results whose time has come tombstones; the keys of their objects."""
    return [row.key for row in await database.fetch_all(_EXPIRE_MEDIA, {"limit": limit})]


async def claim_outlived_jobs(database: Database, retention: timedelta, limit: int) -> list[OutlivedJob]:
    """Jobs that ended longer than `retention` ago; nobody else gets them for five minutes."""
    rows = await database.fetch_all(_CLAIM_JOBS, {"retention": retention, "limit": limit})
    return [OutlivedJob(row.id, row.fence, Status(row.status), list(row.keys)) for row in rows]


async def delete_jobs(database: Database, ids: Sequence[UUID], retention: timedelta) -> int:
    """Delete those that still ended longer than `retention` ago, with all that belongs to them; how many."""
    return len(await database.fetch_all(_DELETE_JOBS, {"ids": list(ids), "retention": retention}))


async def list_orphans(database: Database, objects: Sequence[ObjectName], unknown: Unknown) -> set[str]:
    """Those keys that no live row names, or ever will."""
    parameters = {
        "keys": [one.key for one in objects],
        "stems": [one.stem for one in objects],
        "jobs": [one.job_id for one in objects],
        "results": [one.media_id for one in objects],
        "fences": [one.fence for one in objects],
        "unknown": unknown,
    }
    return {row.key for row in await database.fetch_all(_JUDGE_OBJECTS, parameters)}


async def count_known_jobs(database: Database, ids: Collection[UUID]) -> int:
    """How many of these the database has."""
    return int((await database.fetch_one(_COUNT_KNOWN, {"ids": list(ids)})).number)


async def count_expired_media(database: Database) -> Amount:
    """Results that are to become tombstones."""
    row = await database.fetch_one(_COUNT_MEDIA)
    return Amount(row.number, int(row.size))


async def count_outlived_jobs(database: Database, retention: timedelta) -> Amount:
    """Jobs that ended longer than `retention` ago, and their results that have not expired."""
    row = await database.fetch_one(_COUNT_JOBS, {"retention": retention})
    return Amount(row.number, int(row.size))


async def get_identity(database: Database) -> Identity:
    """Which database this is."""
    row = await database.fetch_one(_GET_IDENTITY)
    return Identity(row.identity, row.now)
