"""What clients do to jobs: accept, cancel, retry, delete. One statement each; a cancel locks its row too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import BigInteger, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, UUID as PG_UUID

from fleek.core.errors import IdempotencyInFlight
from fleek.core.job import Status
from fleek.db.session import Database, LockTimeoutError, repeated

_INSERT_JOB = """
    INSERT INTO jobs (
        id, owner_id, queue, model, n, status, reason, priority, max_attempts, event_sequence,
        created_at, available_at, deadline_at
    )
    SELECT
        :id, :owner, :queue, :model, :n, 'in_queue', 'accepted', :priority, :max_attempts, 1,
        t.now, t.now, t.now + make_interval(secs => :deadline_seconds)
    FROM (SELECT clock_timestamp() AS now) AS t
    {guard}
    RETURNING id, owner_id, created_at, available_at, deadline_at
"""

_INSERT_REST = """
request AS (
    INSERT INTO job_requests (job_id, prompt, parameters, input, metadata, deadline_seconds)
    SELECT id, :prompt, CAST(:parameters AS jsonb), CAST(:input AS jsonb), CAST(:metadata AS jsonb),
        :deadline_seconds
    FROM job
),
results AS (
    INSERT INTO media (id, job_id, owner_id, index, seed, created_at)
    SELECT m.id, job.id, job.owner_id, m.position - 1, m.seed, job.created_at
    FROM job, unnest(CAST(:media_ids AS uuid[]), CAST(:seeds AS bigint[]))
        WITH ORDINALITY AS m (id, seed, position)
),
event AS (
    INSERT INTO events (job_id, sequence, kind, data, at)
    SELECT id, 1, 'accepted', '{"reason": "accepted"}', created_at FROM job
)
SELECT created_at, available_at, deadline_at FROM job
"""

_JOB_PARAMETERS = (
    bindparam("id", type_=PG_UUID),
    bindparam("owner", type_=Text),
    bindparam("parameters", type_=Text),
    bindparam("input", type_=Text),
    bindparam("metadata", type_=Text),
    bindparam("media_ids", type_=ARRAY(PG_UUID)),
    bindparam("seeds", type_=ARRAY(BigInteger)),
)

_ACCEPT = text(f"WITH job AS ({_INSERT_JOB.format(guard='')}), {_INSERT_REST}").bindparams(*_JOB_PARAMETERS)

# The first request with a key inserts it; a parallel one waits for that transaction here, and then
# inserts nothing at all.
_ACCEPT_ONCE = text(
    f"""
WITH key AS (
    INSERT INTO idempotency_keys (owner_id, operation, key, fingerprint, job_id)
    VALUES (:owner, 'generate', :key, :fingerprint, :id)
    ON CONFLICT DO NOTHING
    RETURNING job_id
),
job AS ({_INSERT_JOB.format(guard="WHERE EXISTS (SELECT FROM key)")}),
{_INSERT_REST}
"""
).bindparams(*_JOB_PARAMETERS)

_GET_KEY = text(
    """
SELECT fingerprint, job_id FROM idempotency_keys
WHERE owner_id = :owner AND operation = :operation AND key = :key
"""
)

_LOCK_JOB = text("SELECT id FROM jobs WHERE id = :id AND owner_id = :owner FOR UPDATE").bindparams(
    bindparam("id", type_=PG_UUID)
)

_CANCEL = text(
    """
WITH moved AS (
    UPDATE jobs AS j SET
        status = CASE WHEN j.status = 'in_queue' AND NOT o.is_open THEN 'canceled' ELSE j.status END,
        reason = CASE WHEN j.status = 'in_queue' AND NOT o.is_open THEN 'canceled' ELSE j.reason END,
        finished_at = CASE WHEN j.status = 'in_queue' AND NOT o.is_open THEN clock_timestamp() END,
        resuming = j.status = 'in_queue' AND o.is_open,
        available_at = CASE
            WHEN j.status = 'in_queue' AND o.is_open THEN clock_timestamp() ELSE j.available_at
        END,
        cancel_requested_at = coalesce(j.cancel_requested_at, clock_timestamp()),
        event_sequence = j.event_sequence + CASE
            WHEN j.status = 'in_queue' AND NOT o.is_open THEN 1 ELSE 0
        END
    FROM (
        SELECT EXISTS (
            SELECT FROM submissions WHERE job_id = :id AND resolved_at IS NULL
        ) AS is_open
    ) AS o
    WHERE j.id = :id AND j.owner_id = :owner AND j.status IN ('in_queue', 'processing')
    RETURNING j.id, j.status, j.queue, j.model, j.event_sequence
),
event AS (
    INSERT INTO events (job_id, sequence, kind, data)
    SELECT id, event_sequence, 'canceled', '{"reason": "canceled"}' FROM moved WHERE status = 'canceled'
)
SELECT status, queue, model FROM moved
"""
).bindparams(bindparam("id", type_=PG_UUID))

_RETRY = """
WITH {key}
moved AS (
    UPDATE jobs AS j SET
        status = 'in_queue', reason = 'retried_by_client',
        available_at = clock_timestamp(),
        deadline_at = clock_timestamp() + make_interval(secs => r.deadline_seconds),
        failures = 0, deferrals = 0, crashes = 0, cancel_requested_at = NULL, progress = NULL,
        error_code = NULL, error_message = NULL, finished_at = NULL, resuming = false,
        event_sequence = j.event_sequence + 1
    FROM job_requests AS r
    WHERE j.id = :id AND j.owner_id = :owner AND r.job_id = j.id AND j.fence = :fence
      AND j.status IN ('error', 'canceled') {guard}
    RETURNING j.id, j.queue, j.model, j.event_sequence
),
event AS (
    INSERT INTO events (job_id, sequence, kind, data)
    SELECT id, event_sequence, 'retried', '{{"reason": "retried_by_client"}}' FROM moved
)
SELECT queue, model FROM moved
"""
_RETRY_PLAIN = text(_RETRY.format(key="", guard="")).bindparams(bindparam("id", type_=PG_UUID))
_RETRY_ONCE = text(
    _RETRY.format(
        key="""
key AS (
    INSERT INTO idempotency_keys (owner_id, operation, key, fingerprint, job_id)
    SELECT :owner, :operation, :key, :fingerprint, id FROM jobs
    WHERE id = :id AND owner_id = :owner AND fence = :fence AND status IN ('error', 'canceled')
    ON CONFLICT DO NOTHING
    RETURNING job_id
),""",
        guard="AND EXISTS (SELECT FROM key)",
    )
).bindparams(bindparam("id", type_=PG_UUID))

# Of each output for which an order was never heard of again: how many may have to be paid by now.
_COUNT_LOST = text(
    """
SELECT CASE WHEN status IN ('error', 'canceled') THEN fence END AS fence, model, (
    SELECT max(paid) FROM (
        SELECT count(*) FILTER (WHERE resolution IS DISTINCT FROM 'rejected') AS paid
        FROM submissions WHERE job_id = jobs.id
        GROUP BY first_index HAVING bool_or(resolution = 'ambiguous')
    ) AS lost
) AS paid
FROM jobs WHERE id = :id AND owner_id = :owner
"""
).bindparams(bindparam("id", type_=PG_UUID))

_DELETE = text(
    """
WITH gone AS (
    DELETE FROM jobs
    WHERE id = :id AND owner_id = :owner AND status IN ('completed', 'error', 'canceled')
    RETURNING id
),
records AS (DELETE FROM log_entries USING gone WHERE log_entries.job_id = gone.id)
SELECT (SELECT array_agg(key) FROM media WHERE job_id = gone.id AND key IS NOT NULL) AS keys FROM gone
"""
).bindparams(bindparam("id", type_=PG_UUID))


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key, and the fingerprint of the body that came with it."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated request, with the ids and the seeds that it will have."""

    id: UUID
    owner: str
    queue: str
    model: str
    n: int
    priority: int
    max_attempts: int
    deadline_seconds: int
    prompt: str
    parameters: dict[str, Any]
    input: dict[str, Any]
    metadata: dict[str, str]
    media_ids: Sequence[UUID]
    seeds: Sequence[int]


@dataclass(frozen=True, slots=True)
class AcceptedAt:
    """The times that the database gave a new job."""

    created_at: datetime
    available_at: datetime
    deadline_at: datetime


@dataclass(frozen=True, slots=True)
class Moved:
    """What a client's change led to."""

    status: Status
    queue: str
    model: str


async def accept(
    database: Database, job: NewJob, idempotency: Idempotency | None = None
) -> AcceptedAt | None:
    """Insert a job with all that belongs to it; None where the key is taken already.

    Raises IdempotencyInFlight when another request with the key does not end in `lock_timeout`.
    """
    parameters = {
        "id": job.id,
        "owner": job.owner,
        "queue": job.queue,
        "model": job.model,
        "n": job.n,
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "deadline_seconds": job.deadline_seconds,
        "prompt": job.prompt,
        "parameters": to_json(job.parameters).decode(),
        "input": to_json(job.input).decode(),
        "metadata": to_json(job.metadata).decode(),
        "media_ids": list(job.media_ids),
        "seeds": list(job.seeds),
    }
    if idempotency is None:
        row = await database.fetch_one(_ACCEPT, parameters)
    else:
        parameters |= {"key": idempotency.key, "fingerprint": idempotency.fingerprint}
        row = await _fetch_once(database, _ACCEPT_ONCE, parameters)
    return None if row is None else AcceptedAt(row.created_at, row.available_at, row.deadline_at)


async def get_key_or_none(
    database: Database, owner: str, operation: str, key: str
) -> tuple[str, UUID] | None:
    """The fingerprint and the job of a key that was used."""
    row = await database.fetch_one(_GET_KEY, {"owner": owner, "operation": operation, "key": key})
    return None if row is None else (row.fingerprint, row.job_id)


async def cancel(database: Database, owner: str, job_id: UUID) -> Moved | None:
    """Cancel a waiting job, or ask the worker of a running one; None where there is nothing to cancel.

    The row is locked first. Its worker may be placing an order and giving the job back at this moment: a
    statement that waited for that would still look for open orders with its old snapshot, and find none.
    """
    parameters = {"id": job_id, "owner": owner}

    async def once() -> Any:  # noqa: ANN401  a row
        async with database.begin() as connection:
            await connection.execute(_LOCK_JOB, parameters)
            return (await connection.execute(_CANCEL, parameters)).first()

    row = await repeated(once)
    return None if row is None else Moved(Status(row.status), row.queue, row.model)


async def retry(
    database: Database,
    owner: str,
    job_id: UUID,
    fence: int | None,
    idempotency: Idempotency | None = None,
) -> Moved | None:
    """Start a new chain of attempts; None where the job's state does not allow it, or the key is taken.

    `fence` is that of `get_lost_orders_or_none`: whoever decided by what it counted must not start a chain
    on top of another one, which may have ordered since. The orders of a job that has ended stay as they
    are until its next claim, which raises the fence.
    """
    parameters: dict[str, Any] = {"id": job_id, "owner": owner, "fence": fence}
    if idempotency is None:
        row = await database.fetch_one(_RETRY_PLAIN, parameters)
    else:
        parameters |= {
            "operation": retry_operation(job_id),
            "key": idempotency.key,
            "fingerprint": idempotency.fingerprint,
        }
        row = await _fetch_once(database, _RETRY_ONCE, parameters)
    return None if row is None else Moved(Status.IN_QUEUE, row.queue, row.model)


def retry_operation(job_id: UUID) -> str:
    """A retry's key is scoped to the job that it retries."""
    return f"retry:{job_id}"


@dataclass(frozen=True, slots=True)
class LostOrders:
    """What is known of a job's orders whose replies were never seen."""

    fence: int | None
    """The job's, when they were counted. None while it has not ended: it may still order, or lose one."""
    model: str
    paid: int
    """Orders of the worst output that may have to be paid; 0 where no order was lost."""


async def get_lost_orders_or_none(database: Database, owner: str, job_id: UUID) -> LostOrders | None:
    """None where the owner has no such job."""
    row = await database.fetch_one(_COUNT_LOST, {"id": job_id, "owner": owner})
    return None if row is None else LostOrders(row.fence, row.model, row.paid or 0)


async def delete(database: Database, owner: str, job_id: UUID) -> list[str] | None:
    """Delete a finished job with its prompt and results; the keys of its objects, or None."""
    row = await database.fetch_one(_DELETE, {"id": job_id, "owner": owner})
    return None if row is None else list(row.keys or ())


async def _fetch_once(database: Database, statement: Any, parameters: dict[str, Any]) -> Any:  # noqa: ANN401  a row
    try:
        return await database.fetch_one(statement, parameters)
    except LockTimeoutError as error:
        raise IdempotencyInFlight from error
