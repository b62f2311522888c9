"""The claim: how a worker process takes due jobs. One statement, one round trip.

First come jobs that are `resuming`: an order of theirs is open, and what a provider made expires, so
they are exempt from priority, fairness and caps. Then new work, lane by lane (a lane is one owner's
jobs of one model): owners with the fewest running jobs first, then the oldest.

Rows are locked inside the lateral join, never picked first and locked after: two workers that pick
the same heads both lock the same few rows, and most claims come back empty while thousands wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from fleek.core.errors import DatabaseUnavailable
from fleek.core.job import JobView
from fleek.db.session import Database, LockTimeoutError, repeated
from fleek.observability.metrics import Metrics
from fleek.providers.base import Handle

_CLAIM = (
    text(
        """
WITH RECURSIVE
served AS MATERIALIZED (
    SELECT * FROM unnest(CAST(:models AS text[]), CAST(:timeouts AS float8[])) AS m (model, timeout)
),
running AS MATERIALIZED (
    SELECT owner_id, count(*) AS jobs FROM jobs WHERE status = 'processing' GROUP BY owner_id
),
resumed AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE queue = :queue AND status = 'in_queue' AND resuming
      AND available_at <= statement_timestamp() AND model = ANY (CAST(:models AS text[]))
    ORDER BY available_at LIMIT :slots FOR UPDATE SKIP LOCKED
),
lane (model, provider, owner_id) AS (
    SELECT m.model, m.provider, (
        SELECT owner_id FROM jobs
        WHERE status = 'in_queue' AND queue = :queue AND jobs.model = m.model
        ORDER BY owner_id LIMIT 1
    )
    FROM unnest(CAST(:new_models AS text[]), CAST(:new_providers AS text[])) AS m (model, provider)
    WHERE NOT EXISTS (
        SELECT FROM lane_state
        WHERE lane_state.provider = m.provider AND lane_state.model = m.model
          AND paused_until > statement_timestamp()
    )
    UNION ALL
    SELECT lane.model, lane.provider, (
        SELECT owner_id FROM jobs
        WHERE status = 'in_queue' AND queue = :queue AND jobs.model = lane.model
          AND jobs.owner_id > lane.owner_id
        ORDER BY owner_id LIMIT 1
    )
    FROM lane WHERE lane.owner_id IS NOT NULL
),
ordered AS (
    SELECT lane.model, lane.owner_id
    FROM lane
    LEFT JOIN running USING (owner_id)
    CROSS JOIN LATERAL (
        SELECT available_at FROM jobs
        WHERE status = 'in_queue' AND queue = :queue
          AND jobs.model = lane.model AND jobs.owner_id = lane.owner_id
        ORDER BY priority DESC, available_at, id LIMIT 1
    ) AS head
    WHERE lane.owner_id IS NOT NULL
    ORDER BY coalesce(running.jobs, 0), head.available_at
),
new_work AS MATERIALIZED (
    SELECT due.id
    FROM ordered
    CROSS JOIN LATERAL (
        SELECT id FROM jobs
        WHERE status = 'in_queue' AND queue = :queue
          AND jobs.model = ordered.model AND jobs.owner_id = ordered.owner_id
          AND NOT resuming AND available_at <= statement_timestamp()
        ORDER BY priority DESC, available_at, id LIMIT :slots FOR UPDATE SKIP LOCKED
    ) AS due
    LIMIT :slots - (SELECT count(*) FROM resumed)
),
picked AS (
    SELECT id, 'resumed' AS kind FROM resumed UNION ALL SELECT id, 'claimed' FROM new_work
),
claimed AS (
    UPDATE jobs SET
        status = 'processing', reason = 'claimed', resuming = false, fence = fence + 1,
        lease_expires_at = clock_timestamp() + CAST(:lease AS interval), worker = :worker,
        started_at = coalesce(started_at, clock_timestamp()), event_sequence = event_sequence + 1
    FROM picked, served
    WHERE jobs.id = picked.id AND served.model = jobs.model
    RETURNING jobs.*, picked.kind, served.timeout
),
attempt AS (
    INSERT INTO attempts (job_id, number, worker, celery_task_id, run_deadline_at)
    SELECT
        id, fence, worker, CAST(:celery_task_id AS text),
        clock_timestamp() + make_interval(secs => timeout)
    FROM claimed
    RETURNING job_id, run_deadline_at
),
event AS (
    INSERT INTO events (job_id, sequence, kind, data)
    SELECT id, event_sequence, kind, jsonb_build_object('attempt', fence, 'worker', worker) FROM claimed
)
SELECT
    claimed.id, claimed.fence, claimed.owner_id, claimed.model, claimed.n, claimed.failures,
    claimed.max_attempts, claimed.deferrals, claimed.crashes, claimed.deadline_at, attempt.run_deadline_at,
    claimed.cancel_requested_at IS NOT NULL AS cancel_requested,
    statement_timestamp() AS claimed_at, claimed.available_at,
    claimed.deadline_at - make_interval(secs => job_requests.deadline_seconds) AS asked_at,
    job_requests.prompt, job_requests.parameters, job_requests.input,
    (SELECT array_agg(media.id ORDER BY media.index) FROM media WHERE media.job_id = claimed.id) AS media_ids,
    (
        SELECT jsonb_agg(jsonb_build_object(
            'ordinal', ordinal, 'first_index', first_index, 'count', count,
            'handle_id', handle_id, 'handle', handle, 'intent_at', intent_at
        ) ORDER BY ordinal)
        FROM submissions WHERE submissions.job_id = claimed.id AND resolved_at IS NULL
    ) AS open_orders
FROM claimed
JOIN attempt ON attempt.job_id = claimed.id
JOIN job_requests ON job_requests.job_id = claimed.id
"""
    )
    .bindparams(
        bindparam("models", type_=ARRAY(Text)),
        bindparam("timeouts", type_=ARRAY(DOUBLE_PRECISION)),
        bindparam("new_models", type_=ARRAY(Text)),
        bindparam("new_providers", type_=ARRAY(Text)),
    )
    .columns(parameters=JSONB, input=JSONB, media_ids=ARRAY(PG_UUID), open_orders=JSONB)
)

# The models of a queue that have due work: from one to the next by the index, never over all jobs.
_LIST_DUE = text(
    """
WITH RECURSIVE waiting (model) AS (
    (SELECT model FROM jobs WHERE status = 'in_queue' AND queue = :queue ORDER BY model LIMIT 1)
    UNION ALL
    SELECT (
        SELECT jobs.model FROM jobs
        WHERE status = 'in_queue' AND queue = :queue AND jobs.model > waiting.model
        ORDER BY jobs.model LIMIT 1
    )
    FROM waiting WHERE waiting.model IS NOT NULL
)
SELECT model FROM waiting
WHERE EXISTS (
    SELECT FROM jobs
    WHERE status = 'in_queue' AND queue = :queue AND jobs.model = waiting.model
      AND available_at <= statement_timestamp()
)
"""
)

_LOCK_MODEL = text("SELECT pg_advisory_xact_lock(hashtextextended('fleek model ' || :model, 0))")
_COUNT_RUNNING = text("SELECT count(*) FROM jobs WHERE status = 'processing' AND model = :model")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that this worker process can run."""

    name: str
    provider: str
    attempt_timeout: timedelta
    max_concurrency: int | None = None
    """Running jobs over all workers; None means no cap."""


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """A submission that has no resolution yet: it is resumed, never repeated."""

    ordinal: int
    first_index: int
    count: int
    handle: Handle | None
    """None: the intent was written, and what came of it is not known."""
    intent_at: datetime


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job under this process's lease, with all that its execution needs."""

    id: UUID
    fence: int
    """Also the attempt's number."""
    owner: str
    model: str
    n: int
    view: JobView
    run_deadline_at: datetime
    claimed_at: datetime
    """The database's time; deadlines are compared with it, never with this machine's clock."""
    available_at: datetime
    """When it was due."""
    asked_at: datetime
    """When the client asked for it, or for its retry: that is where its deadline is counted from."""
    cancel_requested: bool
    prompt: str
    parameters: dict[str, Any]
    input: dict[str, Any]
    media_ids: tuple[UUID, ...]
    open_orders: tuple[OpenOrder, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one call of `claim` asks for."""

    queue: str
    slots: int
    models: Sequence[ServedModel]
    """Those whose resuming jobs are taken; each statement says whose new ones."""
    celery_task_id: str | None


class Claimer:
    """Takes due jobs of one queue for one worker process."""

    def __init__(  # noqa: PLR0913  whom it claims for, and what it counts with
        self,
        database: Database,
        *,
        worker: str,
        lease: timedelta,
        models: Sequence[ServedModel],
        serve: Callable[[str], ServedModel | None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`serve` says of a model beside `models` whether it is served here too; None: none is."""
        self._database = database
        self._worker = worker
        self._lease = lease
        self._models = {model.name: model for model in models}
        self._serve = serve
        self._metrics = metrics or Metrics()
        self._has_caps = any(model.max_concurrency is not None for model in models)

    async def claim(self, queue: str, slots: int, *, celery_task_id: str | None = None) -> list[ClaimedJob]:
        """At most `slots` due jobs of `queue`, now under this process's lease."""
        is_simple = self._serve is None and not self._has_caps
        models = tuple(self._models.values()) if is_simple else await self._list_due(queue)
        wanted = _Wanted(queue, slots, models, celery_task_id)
        claimed: list[ClaimedJob] = []
        failure: DatabaseUnavailable | None = None
        for new in _turns(models):
            try:
                left = replace(wanted, slots=slots - len(claimed))
                claimed += await repeated(partial(self._claim_new, left, new))
            except LockTimeoutError as error:
                # The model's cap is being counted elsewhere, for long: the others need not wait for that.
                failure = error
            except DatabaseUnavailable as error:
                failure = error
                break
            if len(claimed) >= slots:
                break
        if failure is not None and not claimed:
            raise failure
        for job in claimed:
            self._metrics.job_claimed(queue, job.model, job.claimed_at - job.available_at)
        # What was claimed is leased to this process: without it nobody would run it for a while.
        return claimed

    async def is_work_due(self, queue: str) -> bool:
        """Whether any due job of `queue` waits for a model that is served here."""
        return bool(await self._list_due(queue))

    async def _list_due(self, queue: str) -> tuple[ServedModel, ...]:
        """The models with due work, as far as they are served here."""
        rows = await self._database.fetch_all(_LIST_DUE, {"queue": queue})
        found = (self._find(row.model) for row in rows)
        return tuple(model for model in found if model is not None)

    def _find(self, name: str) -> ServedModel | None:
        if name in self._models or self._serve is None:
            return self._models.get(name)
        return self._serve(name)

    async def _claim_new(self, wanted: _Wanted, new: Sequence[ServedModel]) -> list[ClaimedJob]:
        """New work of one turn, and whatever resumes."""
        if len(new) == 1 and new[0].max_concurrency is not None:
            return await self._claim_capped(wanted, new[0], new[0].max_concurrency)
        async with self._database.connect() as connection:
            return await _run_claim(connection, self._parameters(wanted, new))

    async def _claim_capped(self, wanted: _Wanted, model: ServedModel, cap: int) -> list[ClaimedJob]:
        """New work of one capped model.

        Counting and claiming are one step under the model's lock: two workers that count at once would
        both fill the last place.
        """
        async with self._database.begin() as connection:
            await connection.execute(_LOCK_MODEL, {"model": model.name})
            running = (await connection.execute(_COUNT_RUNNING, {"model": model.name})).scalar_one()
            free = min(wanted.slots, cap - int(running))
            if free <= 0:
                return []
            # What resumes takes of the free places too: new jobs must not come on top of it.
            return await _run_claim(connection, self._parameters(replace(wanted, slots=free), [model]))

    def _parameters(self, wanted: _Wanted, new: Sequence[ServedModel]) -> dict[str, Any]:
        return {
            "queue": wanted.queue,
            "slots": wanted.slots,
            "models": [model.name for model in wanted.models],
            "timeouts": [model.attempt_timeout.total_seconds() for model in wanted.models],
            "new_models": [model.name for model in new],
            "new_providers": [model.provider for model in new],
            "lease": self._lease,
            "worker": self._worker,
            "celery_task_id": wanted.celery_task_id,
        }


def _turns(models: Sequence[ServedModel]) -> list[list[ServedModel]]:
    """Whose new work is claimed one after the other: all uncapped models at once, each capped one alone.

    In a random order: where slots are few, a backlog of those that always came first would starve the rest.
    The uncapped turn is there even when it is empty, for jobs that resume while every cap is reached.
    """
    if not models:
        return []
    uncapped = [model for model in models if model.max_concurrency is None]
    turns = [uncapped, *([model] for model in models if model.max_concurrency is not None)]
    return random.sample(turns, len(turns))


async def _run_claim(connection: AsyncConnection, parameters: dict[str, Any]) -> list[ClaimedJob]:
    return [_to_claimed(row) for row in await connection.execute(_CLAIM, parameters)]


def _to_claimed(row: Any) -> ClaimedJob:  # noqa: ANN401  a row of _CLAIM
    return ClaimedJob(
        id=row.id,
        fence=row.fence,
        owner=row.owner_id,
        model=row.model,
        n=row.n,
        view=JobView(row.failures, row.max_attempts, row.deferrals, row.crashes, row.deadline_at),
        run_deadline_at=row.run_deadline_at,
        claimed_at=row.claimed_at,
        available_at=row.available_at,
        asked_at=row.asked_at,
        cancel_requested=row.cancel_requested,
        prompt=row.prompt,
        parameters=row.parameters,
        input=row.input,
        media_ids=tuple(row.media_ids),
        open_orders=tuple(_to_order(order) for order in row.open_orders or ()),
    )


def _to_order(order: dict[str, Any]) -> OpenOrder:
    handle = None if order["handle_id"] is None else Handle(order["handle_id"], order["handle"])
    intent_at = datetime.fromisoformat(order["intent_at"])
    return OpenOrder(order["ordinal"], order["first_index"], order["count"], handle, intent_at)
