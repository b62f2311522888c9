"""Leases: how a live worker keeps its jobs, and how jobs of a dead one are found.

Every multi-row statement locks in id order or skips what is locked: two renewals that lock the same
rows in different orders deadlock (26 of 45 did in a trial).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import Any
from uuid import UUID

from sqlalchemy import REAL, Integer, Interval, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, UUID as PG_UUID

from fleek.core.job import JobView
from fleek.db.session import Database

_RESUMING_GRACE = timedelta(days=1)

_RENEW = text(
    """
WITH mine AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:fences AS int[]), CAST(:progress AS real[]))
        AS m (id, fence, progress)
),
held AS MATERIALIZED (
    SELECT jobs.id, mine.progress
    FROM jobs JOIN mine ON mine.id = jobs.id AND mine.fence = jobs.fence
    WHERE jobs.status = 'processing'
    ORDER BY jobs.id
    FOR UPDATE OF jobs SKIP LOCKED
),
renewed AS (
    UPDATE jobs SET
        lease_expires_at = clock_timestamp() + :lease,
        progress = CASE WHEN held.progress BETWEEN 0 AND 1 THEN held.progress ELSE jobs.progress END
    FROM held WHERE jobs.id = held.id
    RETURNING jobs.id, jobs.fence
)
SELECT
    mine.id, mine.fence,
    renewed.id IS NOT NULL AS is_renewed,
    coalesce(jobs.fence = mine.fence AND jobs.status = 'processing', false) AS is_mine,
    coalesce(jobs.cancel_requested_at IS NOT NULL, false) AS cancel_requested
FROM mine
LEFT JOIN renewed ON renewed.id = mine.id AND renewed.fence = mine.fence
LEFT JOIN jobs ON jobs.id = mine.id
"""
).bindparams(
    bindparam("ids", type_=ARRAY(PG_UUID)),
    bindparam("fences", type_=ARRAY(Integer)),
    bindparam("progress", type_=ARRAY(REAL)),
    bindparam("lease", type_=Interval(native=True)),
)

_LIST_EXPIRED = text(
    """
SELECT
    jobs.id, jobs.fence, jobs.model, jobs.queue, jobs.failures, jobs.max_attempts, jobs.deferrals,
    jobs.crashes, jobs.deadline_at, statement_timestamp() AS seen_at,
    jobs.lease_expires_at < statement_timestamp() AS is_lease_expired,
    EXISTS (SELECT FROM submissions WHERE job_id = jobs.id AND resolved_at IS NULL) AS has_open_order
FROM jobs
JOIN attempts ON attempts.job_id = jobs.id AND attempts.number = jobs.fence
WHERE jobs.status = 'processing'
  AND (
    jobs.lease_expires_at < statement_timestamp()
    OR attempts.run_deadline_at < statement_timestamp() - :grace
  )
ORDER BY jobs.id
LIMIT 1000
"""
).bindparams(bindparam("grace", type_=Interval(native=True)))

_PASS_DEADLINES = text(
    """
WITH due AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE status = 'in_queue' AND deadline_at <= statement_timestamp() - CASE
        WHEN resuming THEN CAST(:resuming_grace AS interval) ELSE interval '0'
    END
    ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED
),
moved AS (
    UPDATE jobs SET
        status = 'error', reason = 'deadline_passed', finished_at = clock_timestamp(), resuming = false,
        error_code = 'deadline_passed', error_message = :message, event_sequence = event_sequence + 1
    FROM due WHERE jobs.id = due.id
    RETURNING jobs.id, jobs.model, jobs.event_sequence
),
orders AS (
    UPDATE submissions SET resolved_at = clock_timestamp(), resolution = 'ambiguous'
    FROM moved WHERE submissions.job_id = moved.id AND resolved_at IS NULL
    RETURNING job_id, provider
),
event AS (
    INSERT INTO events (job_id, sequence, kind, data)
    SELECT id, event_sequence, 'failed',
        jsonb_build_object(
            'reason', 'deadline_passed',
            'error', jsonb_build_object('code', 'deadline_passed', 'message', CAST(:message AS text))
        )
    FROM moved
)
SELECT id, model, ARRAY(SELECT provider FROM orders WHERE orders.job_id = moved.id) AS lost_orders FROM moved
"""
).bindparams(bindparam("resuming_grace", type_=Interval(native=True)))

# Looking for passed deadlines reads every waiting job, so one worker at a time does it.
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended('fleek deadlines', 0))")


class Lease(Enum):
    """What a renewal found."""

    RENEWED = auto()
    SKIPPED = auto()
    """The row was locked by another statement at that moment; try again soon."""
    LOST = auto()


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that this process believes to hold; `progress` is written along when it is not None."""

    id: UUID
    fence: int
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """The outcome of one renewal."""

    lease: Lease
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class ExpiredLease:
    """A job whose worker did not renew in time, or ran past its attempt's deadline."""

    id: UUID
    fence: int
    model: str
    queue: str
    view: JobView
    is_lease_expired: bool
    """False: the lease is alive, but the attempt ran past its own deadline: a wedged worker."""
    has_open_order: bool


@dataclass(frozen=True, slots=True)
class PastDeadline:
    """A waiting job that was ended by its deadline."""

    id: UUID
    model: str
    lost_orders: Sequence[str]
    """The provider of each order of which nobody will learn what came."""


async def renew(
    database: Database, held: Sequence[Held], lease: timedelta
) -> dict[tuple[UUID, int], Renewal]:
    """Extend many leases in one statement, and bring back what clients asked meanwhile."""
    rows = await database.fetch_all(
        _RENEW,
        {
            "ids": [one.id for one in held],
            "fences": [one.fence for one in held],
            "progress": [one.progress for one in held],
            "lease": lease,
        },
    )
    return {(row.id, row.fence): Renewal(_lease_of(row), row.cancel_requested) for row in rows}


async def list_expired(database: Database, grace: timedelta) -> list[ExpiredLease]:
    """Running jobs that nobody seems to run; `grace` is added to an attempt's own deadline."""
    rows = await database.fetch_all(_LIST_EXPIRED, {"grace": grace})
    return [
        ExpiredLease(
            id=row.id,
            fence=row.fence,
            model=row.model,
            queue=row.queue,
            view=JobView(row.failures, row.max_attempts, row.deferrals, row.crashes, row.deadline_at),
            is_lease_expired=row.is_lease_expired,
            has_open_order=row.has_open_order,
        )
        for row in rows
    ]


async def end_past_deadline(database: Database, message: str) -> list[PastDeadline]:
    """End waiting jobs whose deadline passed. Empty when another worker is at it.

    A job that resumes is left to its worker for another day. Nobody serves its model any more when that has
    passed, and what became of its orders is not known.
    """
    parameters = {"message": message, "resuming_grace": _RESUMING_GRACE}
    async with database.begin() as connection:
        if not (await connection.execute(_TRY_LOCK)).scalar_one():
            return []
        rows = await connection.execute(_PASS_DEADLINES, parameters)
        return [PastDeadline(row.id, row.model, row.lost_orders) for row in rows]


def _lease_of(row: Any) -> Lease:  # noqa: ANN401  a row of _RENEW
    if row.is_renewed:
        return Lease.RENEWED
    return Lease.SKIPPED if row.is_mine else Lease.LOST
