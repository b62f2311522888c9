"""Orders placed with providers: the intent, then the handle, then how it ended.

The intent is committed before the provider is asked, and the handle before anything else happens.
Recording a handle is a fact and not a transition: it is guarded by its own row, and succeeds for a
worker that has lost its lease meanwhile, since losing what was just paid for would be worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Interval, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID as PG_UUID

from fleek.core.canonical import fingerprint
from fleek.core.errors import LeaseLost
from fleek.db.session import Database
from fleek.db.values import storable_json
from fleek.jobs.claim import OpenOrder
from fleek.providers.base import GenerationRequest, Handle

# The lease is renewed in the same step: a create is never begun on one that is about to end. Repeating the
# statement finds the intent that it wrote before, so a commit whose answer was lost leaves no second one.
_INTEND = text(
    """
WITH mine AS (
    UPDATE jobs SET lease_expires_at = clock_timestamp() + :lease
    WHERE id = :id AND fence = :fence AND status = 'processing'
    RETURNING id
)
INSERT INTO submissions (job_id, ordinal, first_index, count, provider, model_ref, request_hash, seed)
SELECT
    id, 1 + (SELECT coalesce(max(ordinal), 0) FROM submissions WHERE job_id = :id),
    :first_index, :count, :provider, :model_ref, :request_hash, :seed
FROM mine
ON CONFLICT (job_id, first_index) WHERE resolved_at IS NULL DO UPDATE SET seed = excluded.seed
RETURNING ordinal, intent_at
"""
).bindparams(
    bindparam("id", type_=PG_UUID),
    bindparam("seed", type_=BigInteger),
    bindparam("lease", type_=Interval(native=True)),
)

_COUNT_PAID = text(
    """
SELECT count(*) AS paid FROM submissions
WHERE job_id = :id AND first_index = :first_index AND resolution IS DISTINCT FROM 'rejected'
"""
).bindparams(bindparam("id", type_=PG_UUID))

_LIST_OWNED = text(
    "SELECT handle_id FROM submissions WHERE provider = :provider AND handle_id = ANY(CAST(:ids AS text[]))"
).bindparams(bindparam("ids", type_=ARRAY(Text)))

# Under the claim's own fence: somebody whose lease is lost must not close what its new owner follows.
_GIVE_UP = text(
    """
WITH job AS (
    SELECT id FROM jobs WHERE id = :id AND fence = :fence AND status = 'processing' FOR UPDATE
)
UPDATE submissions SET resolved_at = clock_timestamp(), resolution = 'ambiguous'
FROM job
WHERE job_id = job.id AND ordinal = :ordinal AND handle IS NULL AND resolved_at IS NULL
"""
).bindparams(bindparam("id", type_=PG_UUID))

_GET_REPLY = text(
    """
SELECT handle_id, handle, resolution FROM submissions WHERE job_id = :id AND ordinal = :ordinal
"""
).columns(handle=JSONB)

_RECORD = text(
    """
WITH recorded AS (
    UPDATE submissions SET
        handle = CAST(:handle AS jsonb), handle_id = :handle_id, accepted_at = clock_timestamp()
    WHERE job_id = :id AND ordinal = :ordinal AND handle IS NULL
    RETURNING job_id, provider, ordinal
),
job AS (
    UPDATE jobs SET event_sequence = event_sequence + 1
    FROM recorded WHERE jobs.id = recorded.job_id AND jobs.fence = :fence AND jobs.status = 'processing'
    RETURNING jobs.id, jobs.event_sequence
)
INSERT INTO events (job_id, sequence, kind, data)
SELECT job.id, event_sequence, 'submitted', jsonb_build_object('provider', provider, 'ordinal', ordinal)
FROM job, recorded
"""
).bindparams(bindparam("id", type_=PG_UUID), bindparam("handle", type_=Text))

_RESOLVE = text(
    """
UPDATE submissions SET resolved_at = clock_timestamp(), resolution = :resolution
WHERE job_id = :id AND ordinal = :ordinal AND resolved_at IS NULL
"""
).bindparams(bindparam("id", type_=PG_UUID))


async def intend(  # noqa: PLR0913  the claim, its lease, and what is ordered where
    database: Database,
    job_id: UUID,
    fence: int,
    request: GenerationRequest,
    provider: str,
    lease: timedelta,
) -> OpenOrder:
    """Commit the intent to order, and a whole lease with it; raises LeaseLost where the job is not ours."""
    row = await database.fetch_one(
        _INTEND,
        {
            "id": job_id,
            "fence": fence,
            "lease": lease,
            "first_index": request.first_index,
            "count": request.count,
            "provider": provider,
            "model_ref": request.ref,
            "request_hash": fingerprint(_described(request)),
            "seed": request.seed,
        },
    )
    if row is None:
        raise LeaseLost
    return OpenOrder(row.ordinal, request.first_index, request.count, None, row.intent_at)


async def count_paid(database: Database, job_id: UUID, first_index: int) -> int:
    """How many orders of one output may have to be paid: all but those that were rejected."""
    row = await database.fetch_one(_COUNT_PAID, {"id": job_id, "first_index": first_index})
    return int(row.paid)


async def list_owned(database: Database, provider: str, handle_ids: Sequence[str]) -> frozenset[str]:
    """Which of these orders of a provider are recorded already, as whosever."""
    if not handle_ids:
        return frozenset()
    rows = await database.fetch_all(_LIST_OWNED, {"provider": provider, "ids": list(handle_ids)})
    return frozenset(row.handle_id for row in rows)


@dataclass(frozen=True, slots=True)
class KnownReply:
    """What is written down of an order's reply."""

    handle: Handle | None
    is_rejected: bool
    """The provider took nothing: it may be ordered anew."""


async def get_reply(database: Database, job_id: UUID, ordinal: int) -> KnownReply:
    """What came of an order, which its first worker may have written down after losing the lease."""
    row = await database.fetch_one(_GET_REPLY, {"id": job_id, "ordinal": ordinal})
    if row is None:
        raise LeaseLost
    handle = None if row.handle_id is None else Handle(row.handle_id, row.handle)
    return KnownReply(handle, row.resolution == "rejected")


async def give_up(database: Database, job_id: UUID, fence: int, ordinal: int) -> bool:
    """Close an order of our own claim whose handle nobody knows, as ambiguous; whether that was done."""
    given = {"id": job_id, "fence": fence, "ordinal": ordinal}
    return bool(await database.fetch_rowcount(_GIVE_UP, given))


async def record(database: Database, job_id: UUID, fence: int, ordinal: int, handle: Handle) -> None:
    """Write the provider's handle into the intent; also after a lost lease."""
    await database.fetch_rowcount(
        _RECORD,
        {
            "id": job_id,
            "fence": fence,
            "ordinal": ordinal,
            "handle": storable_json(handle.data),
            "handle_id": handle.id,
        },
    )


async def resolve(database: Database, job_id: UUID, ordinal: int, resolution: str) -> bool:
    """Say how an order ended: `result`, `rejected`, `failed`, `canceled` or `ambiguous`.

    Whether that was done: an order that has ended already stays as it is.
    """
    given = {"id": job_id, "ordinal": ordinal, "resolution": resolution}
    return bool(await database.fetch_rowcount(_RESOLVE, given))


def _described(request: GenerationRequest) -> dict[str, Any]:
    return {
        "ref": request.ref,
        "prompt": request.prompt,
        "seed": request.seed,
        "count": request.count,
        "width": request.width,
        "height": request.height,
        "negative_prompt": request.negative_prompt,
        "output_format": request.output_format,
        "input": dict(request.input),
    }
