"""Guarded changes of running jobs.

Each is one statement that moves job, attempt, order, media and history together, and applies only
under the fence of the caller's own claim.
Zero rows is a normal outcome: the job belongs to someone else, and the caller must touch nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Integer, Interval, Numeric, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, UUID as PG_UUID

from fleek.core.events import EventKind
from fleek.core.job import ErrorCode, JobError, Reason, Status, Transition
from fleek.db.session import Database
from fleek.db.values import storable_json, storable_text

# A cancel request that came while the job ran is honoured by every way back to the queue, unless an
# order is open: then the job goes back as `resuming`, and its next claim cancels at the provider.
_HAS_OPEN_ORDER = "EXISTS (SELECT FROM submissions WHERE job_id = j.id AND resolved_at IS NULL)"
_ENDS_CANCELED = f"(:status = 'in_queue' AND j.cancel_requested_at IS NOT NULL AND NOT {_HAS_OPEN_ORDER})"

_APPLY = text(
    f"""
WITH moved AS (
    UPDATE jobs AS j SET
        status = CASE WHEN {_ENDS_CANCELED} THEN 'canceled' ELSE :status END,
        reason = CASE WHEN {_ENDS_CANCELED} THEN 'canceled' ELSE :reason END,
        available_at = CASE
            WHEN j.cancel_requested_at IS NOT NULL THEN clock_timestamp()
            ELSE clock_timestamp() + :delay
        END,
        resuming = :status = 'in_queue' AND {_HAS_OPEN_ORDER},
        failures = j.failures + :failures,
        deferrals = j.deferrals + :deferrals,
        crashes = j.crashes + :crashes,
        error_code = CASE WHEN NOT {_ENDS_CANCELED} THEN :error_code END,
        error_message = CASE WHEN NOT {_ENDS_CANCELED} THEN :error_message END,
        lease_expires_at = NULL,
        worker = NULL,
        progress = CASE WHEN :status = 'in_queue' THEN NULL ELSE j.progress END,
        finished_at = CASE
            WHEN :status <> 'in_queue' OR {_ENDS_CANCELED} THEN clock_timestamp()
        END,
        event_sequence = j.event_sequence + 1
    WHERE j.id = :id AND j.fence = :fence AND j.status = 'processing'
      AND (
        :abandoned_grace IS NULL
        OR j.lease_expires_at < clock_timestamp()
        OR EXISTS (
            SELECT FROM attempts
            WHERE job_id = j.id AND number = j.fence
              AND run_deadline_at < clock_timestamp() - :abandoned_grace
        )
      )
    RETURNING j.id, j.fence, j.status, j.reason, j.queue, j.model, j.event_sequence, j.available_at
),
attempt AS (
    UPDATE attempts SET
        finished_at = clock_timestamp(), outcome = moved.reason,
        error_code = :error_code, error_message = :error_message,
        metrics = coalesce(CAST(:metrics AS jsonb), metrics)
    FROM moved WHERE attempts.job_id = moved.id AND attempts.number = moved.fence
),
orders AS (
    UPDATE submissions SET
        resolved_at = clock_timestamp(),
        resolution = CASE
            WHEN moved.status = 'canceled' AND handle IS NOT NULL THEN 'canceled' ELSE 'ambiguous'
        END
    FROM moved
    WHERE submissions.job_id = moved.id AND resolved_at IS NULL AND moved.status <> 'in_queue'
    RETURNING resolution
),
pause AS (
    INSERT INTO lane_state (provider, model, paused_until, reason)
    SELECT :provider, moved.model, clock_timestamp() + :pause, :error_code
    FROM moved WHERE :pause IS NOT NULL
    ON CONFLICT (provider, model) DO UPDATE SET
        paused_until = excluded.paused_until, reason = excluded.reason
    WHERE lane_state.paused_until < excluded.paused_until
    RETURNING reason
),
event AS (
    INSERT INTO events (job_id, sequence, kind, data)
    SELECT id, event_sequence,
        CASE WHEN status = 'canceled' THEN 'canceled' ELSE :event END,
        CASE
            WHEN status = 'in_queue'
            THEN CAST(:data AS jsonb) || jsonb_build_object('available_at', available_at)
            ELSE CAST(:data AS jsonb)
        END || jsonb_build_object('attempt', fence, 'reason', reason)
    FROM moved
)
SELECT
    status, reason, (SELECT array_agg(resolution) FROM orders) AS resolutions,
    EXISTS (SELECT FROM pause) AS has_paused
FROM moved
"""
).bindparams(
    bindparam("id", type_=PG_UUID),
    bindparam("status", type_=Text),
    bindparam("reason", type_=Text),
    bindparam("event", type_=Text),
    bindparam("error_code", type_=Text),
    bindparam("error_message", type_=Text),
    bindparam("metrics", type_=Text),
    bindparam("data", type_=Text),
    bindparam("provider", type_=Text),
    bindparam("delay", type_=Interval(native=True)),
    bindparam("pause", type_=Interval(native=True)),
    bindparam("abandoned_grace", type_=Interval(native=True)),
)

_FINISH = text(
    """
WITH moved AS (
    UPDATE jobs SET
        status = 'completed', reason = 'completed', n = :n, progress = 1,
        error_code = NULL, error_message = NULL, lease_expires_at = NULL, worker = NULL,
        finished_at = clock_timestamp(), event_sequence = event_sequence + 1
    WHERE id = :id AND fence = :fence AND status = 'processing'
    RETURNING id, fence, owner_id, created_at, finished_at, event_sequence
),
attempt AS (
    UPDATE attempts SET
        finished_at = moved.finished_at, outcome = 'completed', metrics = CAST(:metrics AS jsonb)
    FROM moved WHERE attempts.job_id = moved.id AND attempts.number = moved.fence
),
orders AS (
    UPDATE submissions SET
        resolved_at = moved.finished_at, resolution = 'result',
        cost = (
            SELECT c.cost
            FROM unnest(CAST(:ordinals AS int[]), CAST(:costs AS numeric[])) AS c (ordinal, cost)
            WHERE c.ordinal = submissions.ordinal
        )
    FROM moved WHERE submissions.job_id = moved.id AND resolved_at IS NULL
    RETURNING resolution
),
surplus AS (
    DELETE FROM media USING moved WHERE media.job_id = moved.id AND media.index >= :n
),
results AS (
    INSERT INTO media (
        id, job_id, owner_id, index, seed, key, content_type, size_bytes, width, height, sha256, thumbhash,
        created_at, stored_at, expires_at
    )
    SELECT r.id, moved.id, moved.owner_id, r.index, r.seed, r.key, r.content_type, r.size_bytes,
        r.width, r.height, r.sha256, r.thumbhash, moved.created_at, moved.finished_at,
        moved.finished_at + :media_ttl
    FROM moved, unnest(
        CAST(:ids AS uuid[]), CAST(:indexes AS int[]), CAST(:seeds AS bigint[]), CAST(:keys AS text[]),
        CAST(:content_types AS text[]), CAST(:sizes AS bigint[]), CAST(:widths AS int[]),
        CAST(:heights AS int[]), CAST(:hashes AS text[]), CAST(:thumbhashes AS text[])
    ) AS r (id, index, seed, key, content_type, size_bytes, width, height, sha256, thumbhash)
    ON CONFLICT (job_id, index) DO UPDATE SET
        key = excluded.key, content_type = excluded.content_type, size_bytes = excluded.size_bytes,
        width = excluded.width, height = excluded.height, sha256 = excluded.sha256,
        thumbhash = excluded.thumbhash, stored_at = excluded.stored_at, expires_at = excluded.expires_at
),
event AS (
    INSERT INTO events (job_id, sequence, kind, data)
    SELECT id, event_sequence, 'completed', jsonb_build_object('attempt', fence, 'reason', 'completed')
    FROM moved
)
SELECT (SELECT array_agg(resolution) FROM orders) AS resolutions FROM moved
"""
).bindparams(
    bindparam("id", type_=PG_UUID),
    bindparam("metrics", type_=Text),
    bindparam("ordinals", type_=ARRAY(Integer)),
    bindparam("costs", type_=ARRAY(Numeric(12, 6))),
    bindparam("ids", type_=ARRAY(PG_UUID)),
    bindparam("indexes", type_=ARRAY(Integer)),
    bindparam("seeds", type_=ARRAY(BigInteger)),
    bindparam("keys", type_=ARRAY(Text)),
    bindparam("content_types", type_=ARRAY(Text)),
    bindparam("sizes", type_=ARRAY(BigInteger)),
    bindparam("widths", type_=ARRAY(Integer)),
    bindparam("heights", type_=ARRAY(Integer)),
    bindparam("hashes", type_=ARRAY(Text)),
    bindparam("thumbhashes", type_=ARRAY(Text)),
    bindparam("media_ttl", type_=Interval(native=True)),
)

_LOCK_JOB = text("SELECT id FROM jobs WHERE id = :id FOR UPDATE").bindparams(bindparam("id", type_=PG_UUID))

_GET_OUTCOME = text("SELECT status FROM jobs WHERE id = :id AND fence = :fence AND status <> 'processing'")

_EVENT_OF_STATUS = {
    Status.ERROR: EventKind.FAILED,
    Status.CANCELED: EventKind.CANCELED,
}


@dataclass(frozen=True, slots=True)
class StoredMedia:
    """A result whose bytes are in the object store; `index` says which output of the job it is."""

    id: UUID
    index: int
    seed: int | None
    key: str
    content_type: str
    size_bytes: int
    width: int | None
    height: int | None
    sha256: str
    thumbhash: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """A change that was committed, as the database made it."""

    status: Status
    reason: Reason
    resolutions: Sequence[str] = ()
    """How the orders ended that were still open."""
    has_paused: bool = False
    """Whether the model's lane was paused, or its pause made longer."""


async def apply(  # noqa: PLR0913  the claim, the change, and what is known of the attempt
    database: Database,
    job_id: UUID,
    fence: int,
    transition: Transition,
    *,
    provider: str,
    metrics: Mapping[str, Any] | None = None,
    only_if_abandoned: timedelta | None = None,
) -> Moved | None:
    """Apply a transition; what the job is now, or None where the lease was lost.

    A rescuer gives `only_if_abandoned`: the change then applies only while the lease is expired, or
    the attempt is past its own deadline by more than this. An owner that renewed late keeps its job.
    """
    parameters = {
        "id": job_id,
        "fence": fence,
        "status": transition.status,
        "reason": transition.reason,
        "event": _event_of(transition),
        "delay": transition.delay,
        "failures": transition.failures,
        "deferrals": transition.deferrals,
        "crashes": transition.crashes,
        "error_code": transition.error.code if transition.error else None,
        "error_message": storable_text(transition.error.message) if transition.error else None,
        "metrics": storable_json(metrics) if metrics is not None else None,
        "data": storable_json(_event_data(transition.error)),
        "provider": provider,
        "pause": transition.pause_lane,
        "abandoned_grace": only_if_abandoned,
    }
    if only_if_abandoned is None:
        row = await database.fetch_one(_APPLY, parameters)
    else:
        row = await _apply_under_lock(database, parameters)
    if row is None:
        return None
    return Moved(Status(row.status), Reason(row.reason), row.resolutions or (), row.has_paused)


async def finish(  # noqa: PLR0913  the claim, the results, and what is known of the attempt
    database: Database,
    job_id: UUID,
    fence: int,
    media: Sequence[StoredMedia],
    *,
    metrics: Mapping[str, Any],
    costs: Mapping[int, Decimal] | None = None,
    media_ttl: timedelta | None = None,
) -> Moved | None:
    """Complete a job whose outputs are all stored; None where the lease was lost.

    `costs` has US dollars by the ordinal of an order, as far as the provider said. The results expire
    after `media_ttl`, by the database's clock; None: never.
    """
    costs = costs or {}
    row = await database.fetch_one(
        _FINISH,
        {
            "id": job_id,
            "fence": fence,
            "n": len(media),
            "metrics": storable_json(metrics),
            "ordinals": list(costs),
            "costs": list(costs.values()),
            "ids": [one.id for one in media],
            "indexes": [one.index for one in media],
            "seeds": [one.seed for one in media],
            "keys": [one.key for one in media],
            "content_types": [one.content_type for one in media],
            "sizes": [one.size_bytes for one in media],
            "widths": [one.width for one in media],
            "heights": [one.height for one in media],
            "hashes": [one.sha256 for one in media],
            "thumbhashes": [one.thumbhash for one in media],
            "media_ttl": media_ttl,
        },
    )
    return None if row is None else Moved(Status.COMPLETED, Reason.COMPLETED, row.resolutions or ())


async def get_outcome_or_none(database: Database, job_id: UUID, fence: int) -> Status | None:
    """What the claim `fence` led to, where it has ended and no other claim followed.

    For an owner whose own change came back with zero rows after the database was away: its first try may
    have been committed without the answer being seen.
    """
    row = await database.fetch_one(_GET_OUTCOME, {"id": job_id, "fence": fence})
    return None if row is None else Status(row.status)


async def _apply_under_lock(database: Database, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401  a row
    """Apply to a row that is locked first.

    The job's owner may be placing an order at this moment. A statement that waited for the owner's lock
    would still look with its old snapshot, and put the job back as if nothing had been ordered.
    """
    async with database.begin() as connection:
        await connection.execute(_LOCK_JOB, {"id": parameters["id"]})
        return (await connection.execute(_APPLY, parameters)).first()


def _event_of(transition: Transition) -> EventKind:
    if transition.status is not Status.IN_QUEUE:
        return _EVENT_OF_STATUS[transition.status]
    if transition.reason is Reason.RETRY_SCHEDULED:
        return EventKind.RETRY_SCHEDULED
    return EventKind.DEFERRED


def _event_data(error: JobError | None) -> dict[str, Any]:
    if error is None:
        return {}
    return {"error": {"code": ErrorCode(error.code), "message": error.message}}
