"""The state of the queue in figures, for monitoring: one statement, and no more often than every few seconds.

The statement never reads all jobs. It goes by the indexes of waiting, running and failed jobs from one
queue and model to the next, and stops counting where more would tell an operator nothing new.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ProgrammingError

from fleek.core.errors import DatabaseUnavailable
from fleek.core.job import ErrorCode
from fleek.db.session import Database
from fleek.observability.metrics import OPERATOR
from fleek.observability.queue_metrics import PausedLane, QueueCollector, QueueFigures, Running, Waiting

_log = structlog.get_logger(__name__)

MOST_COUNTED = 20_000
"""Waiting jobs that are counted, shared evenly among the pairs of a queue and a model."""
_FEWEST_COUNTED = 1000
"""Of each pair, however many there are."""
_MOST_PAIRS = 200
_MOST_HEADS = 5000
"""Owners' priorities that are looked at for the oldest job, in turns among the pairs."""
_SECONDS = 3.0
_KEPT_SECONDS = 5.0

_PAUSING = (ErrorCode.THROTTLED, ErrorCode.PROVIDER_AUTH, ErrorCode.QUOTA_EXHAUSTED)
"""Reasons of a pause that are no operator's own words."""

# `head` steps through the owners and priorities of each pair; the first job of each has waited longest in it.
_LOOK = text(
    f"""
WITH RECURSIVE
pair (step, queue, model) AS (
    (SELECT 1, queue, model FROM jobs WHERE status = 'in_queue' ORDER BY queue, model LIMIT 1)
    UNION ALL
    SELECT pair.step + 1, following.* FROM pair CROSS JOIN LATERAL (
        SELECT jobs.queue, jobs.model FROM jobs
        WHERE status = 'in_queue' AND (jobs.queue, jobs.model) > (pair.queue, pair.model)
        ORDER BY jobs.queue, jobs.model LIMIT 1
    ) AS following
    WHERE pair.step < {_MOST_PAIRS}
),
head (queue, model, owner_id, priority, available_at) AS (
    SELECT pair.queue, pair.model, first.* FROM pair CROSS JOIN LATERAL (
        SELECT owner_id, priority, available_at FROM jobs
        WHERE status = 'in_queue' AND jobs.queue = pair.queue AND jobs.model = pair.model
        ORDER BY owner_id, priority DESC, available_at LIMIT 1
    ) AS first
    UNION ALL
    SELECT head.queue, head.model, following.owner_id, following.priority, following.available_at
    FROM head CROSS JOIN LATERAL (
        (
            SELECT 1 AS turn, owner_id, priority, available_at FROM jobs
            WHERE status = 'in_queue' AND jobs.queue = head.queue AND jobs.model = head.model
              AND jobs.owner_id = head.owner_id AND jobs.priority < head.priority
            ORDER BY priority DESC, available_at LIMIT 1
        )
        UNION ALL
        (
            SELECT 2, owner_id, priority, available_at FROM jobs
            WHERE status = 'in_queue' AND jobs.queue = head.queue AND jobs.model = head.model
              AND jobs.owner_id > head.owner_id
            ORDER BY owner_id, priority DESC, available_at LIMIT 1
        )
        ORDER BY turn LIMIT 1
    ) AS following
),
reached AS MATERIALIZED (SELECT * FROM head LIMIT {_MOST_HEADS}),
waiting AS (
    SELECT pair.queue, pair.model, counted.*, (
        SELECT extract(epoch FROM statement_timestamp() - min(reached.available_at)) FROM reached
        WHERE reached.queue = pair.queue AND reached.model = pair.model
          AND reached.available_at <= statement_timestamp()
    ) AS oldest_seconds
    FROM pair CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE is_due) AS due, count(*) FILTER (WHERE NOT is_due) AS scheduled
        FROM (
            SELECT available_at <= statement_timestamp() AS is_due FROM jobs
            WHERE status = 'in_queue' AND jobs.queue = pair.queue AND jobs.model = pair.model
            LIMIT (SELECT greatest({_FEWEST_COUNTED}, {MOST_COUNTED} / count(*)) FROM pair)
        ) AS sampled
    ) AS counted
),
running AS (
    SELECT queue, model, count(*) AS jobs, count(*) FILTER (
        WHERE lease_expires_at < statement_timestamp()
    ) AS overdue
    FROM jobs WHERE status = 'processing' GROUP BY queue, model
),
paused AS (
    SELECT provider, model, reason FROM lane_state WHERE paused_until > statement_timestamp()
)
SELECT
    (SELECT jsonb_agg(to_jsonb(waiting)) FROM waiting) AS waiting,
    (SELECT jsonb_agg(to_jsonb(running)) FROM running) AS running,
    (SELECT jsonb_agg(to_jsonb(paused)) FROM paused) AS paused,
    (
        SELECT count(*) FROM jobs
        WHERE status = 'error' AND error_code = '{ErrorCode.AMBIGUOUS_SUBMISSION}'
          AND finished_at > statement_timestamp() - interval '7 days'
    ) AS ambiguous
"""
).columns(waiting=JSONB, running=JSONB, paused=JSONB)


class QueueWatch:
    """Keeps the figures of a collector current for whoever asks."""

    def __init__(
        self, database: Database, collector: QueueCollector, *, kept_seconds: float = _KEPT_SECONDS
    ) -> None:
        self._database = database
        self._collector = collector
        self._kept_seconds = kept_seconds
        self._looked_at: float | None = None
        self._turn = asyncio.Lock()

    async def refresh(self) -> None:
        """Look, unless somebody did so a few seconds ago; a database that is away is what was seen, too."""
        async with self._turn:
            now = time.monotonic()
            if self._looked_at is None or now - self._looked_at >= self._kept_seconds:
                self._collector.figures = await self._ask()
                self._looked_at = time.monotonic()

    async def _ask(self) -> QueueFigures | None:
        try:
            async with asyncio.timeout(_SECONDS):
                return _to_figures(await self._database.fetch_one(_LOOK))
        except (DatabaseUnavailable, TimeoutError, ProgrammingError) as error:
            # The latter while the schema is not there yet.
            _log.warning("queue_figures_failed", error=type(error).__name__)
            return None


def _to_figures(row: Any) -> QueueFigures:  # noqa: ANN401  a row of _LOOK
    running = row.running or ()
    return QueueFigures(
        waiting=[Waiting(**one) for one in row.waiting or ()],
        running=[Running(one["queue"], one["model"], one["jobs"]) for one in running],
        pauses=[PausedLane(one["provider"], one["model"], _reason(one)) for one in row.paused or ()],
        overdue_leases=sum(one["overdue"] for one in running),
        ambiguous=row.ambiguous,
    )


def _reason(pause: dict[str, str]) -> str:
    """An operator may write anything, and a label must not."""
    return pause["reason"] if pause["reason"] in _PAUSING else OPERATOR
