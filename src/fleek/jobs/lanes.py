"""Pauses of a model: nothing new of it is claimed, while what is under way goes on.

A 429, a refused key or an empty account pauses a model for a while, and never shortens a pause that is
there. An operator pauses it for as long as they like: what they say last holds. Waiting costs no attempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Interval, Text, bindparam, text

from fleek.core.job import ErrorCode
from fleek.db.session import Database
from fleek.observability.metrics import OPERATOR, Metrics
from fleek.providers.registry import Model
from fleek.queue.base import Waker

BY_OPERATOR = "paused by an operator"
"""The reason of a pause for which none was given."""

_LIST = text(
    """
SELECT provider, model, reason, CASE WHEN isfinite(paused_until) THEN paused_until END AS until
FROM lane_state WHERE paused_until > statement_timestamp()
"""
)

_GET = text(f"{_LIST.text} AND provider = :provider AND model = :model")

# What an operator says holds, also where it is shorter than what was there.
_PAUSE = text(
    """
INSERT INTO lane_state (provider, model, paused_until, reason)
VALUES (:provider, :model, coalesce(clock_timestamp() + :length, 'infinity'), :reason)
ON CONFLICT (provider, model) DO UPDATE SET
    paused_until = excluded.paused_until, reason = excluded.reason
"""
).bindparams(bindparam("length", type_=Interval(native=True)))

_UNPAUSE = text("DELETE FROM lane_state WHERE provider = :provider AND model = :model")

# Jobs that wait for what paused their model are due at once: their own wait was as long as the pause.
_MAKE_DUE = text(
    f"""
WITH waiting AS MATERIALIZED (
    SELECT id FROM jobs
    WHERE status = 'in_queue' AND model = :model AND reason = 'deferred'
      AND error_code IN ('{ErrorCode.THROTTLED}', '{ErrorCode.PROVIDER_AUTH}', '{ErrorCode.QUOTA_EXHAUSTED}')
      AND available_at > statement_timestamp()
    ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE jobs SET available_at = clock_timestamp() FROM waiting WHERE jobs.id = waiting.id
"""
).bindparams(bindparam("model", type_=Text))


@dataclass(frozen=True, slots=True)
class Pause:
    """Why, and until when, nothing new of a model is claimed."""

    until: datetime | None
    """None: until somebody resumes it."""
    reason: str
    """An error code, or an operator's words."""


class Lanes:
    """Pause models, resume them, and say which are paused."""

    def __init__(self, database: Database, waker: Waker, *, metrics: Metrics | None = None) -> None:
        self._database = database
        self._waker = waker
        self._metrics = metrics or Metrics()

    async def list_pauses(self) -> dict[tuple[str, str], Pause]:
        """Every pause that holds now, by provider and model."""
        rows = await self._database.fetch_all(_LIST)
        return {(row.provider, row.model): _to_pause(row) for row in rows}

    async def get_pause_or_none(self, model: Model) -> Pause | None:
        """The pause of one model."""
        row = await self._database.fetch_one(_GET, _key(model))
        return None if row is None else _to_pause(row)

    async def pause(self, model: Model, length: timedelta | None, reason: str | None) -> None:
        """Claim nothing new of a model for so long, or until it is resumed."""
        given = {"length": length, "reason": reason or BY_OPERATOR}
        await self._database.fetch_rowcount(_PAUSE, _key(model) | given)
        self._metrics.lane_paused(model.provider.name, model.name, OPERATOR)

    async def resume(self, model: Model) -> int:
        """End any pause of a model; how many jobs had been put off because of one, and are due now."""
        # Not one statement: a job that was being put off when this began is seen only by a later look.
        await self._database.fetch_rowcount(_UNPAUSE, _key(model))
        due = await self._database.fetch_rowcount(_MAKE_DUE, {"model": model.name})
        self._waker.wake(model.queue)
        return due


def _key(model: Model) -> dict[str, Any]:
    return {"provider": model.provider.name, "model": model.name}


def _to_pause(row: Any) -> Pause:  # noqa: ANN401  a row of _LIST
    return Pause(row.until, row.reason)
