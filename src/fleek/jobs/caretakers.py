"""Small loops that keep the queue healthy. Safe to run in many processes at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import structlog

from fleek.core import job as core
from fleek.db.session import Database
from fleek.jobs import leases, transitions
from fleek.jobs.leases import ExpiredLease
from fleek.queue.base import Announcement, PubSub, Waker

_log = structlog.get_logger(__name__)

_CONFIRM_AFTER = 10.0
"""Seconds between the two looks that must both find a lease expired: a database that was away for a
while, or a clock that stepped, then does not make everybody's jobs look lost at once."""
_RUN_GRACE = timedelta(seconds=30)
"""How far an attempt may run past its own deadline before its worker counts as wedged."""
_DEADLINE_MESSAGE = "The job's deadline passed while it waited in the queue"


class Rescuer:
    """Returns the jobs of dead and wedged workers to the queue, and ends waiting jobs past their deadline."""

    def __init__(
        self,
        database: Database,
        waker: Waker,
        pubsub: PubSub,
        *,
        provider_of: Callable[[str], str],
        confirm_after: float = _CONFIRM_AFTER,
    ) -> None:
        self._database = database
        self._waker = waker
        self._pubsub = pubsub
        self._provider_of = provider_of
        self._confirm_after = confirm_after
        self._suspects: dict[tuple[UUID, int], float] = {}

    def forget(self) -> None:
        """Start over: the connection was lost, so what was seen before proves nothing."""
        self._suspects.clear()

    async def run_once(self) -> dict[str, int]:
        """One pass; counts of `suspected`, `rescued` and `past_deadline`."""
        expired = await leases.list_expired(self._database, _RUN_GRACE)
        confirmed = self._confirm(expired)
        rescued = [lease for lease in confirmed if await self._rescue(lease)]
        past_deadline = await leases.end_past_deadline(self._database, _DEADLINE_MESSAGE)
        for job_id in [*(lease.id for lease in rescued), *past_deadline]:
            self._pubsub.announce(Announcement(job_id))
        for queue in {lease.queue for lease in rescued}:
            self._waker.wake(queue)
        return {
            "suspected": len(self._suspects),
            "rescued": len(rescued),
            "past_deadline": len(past_deadline),
        }

    def _confirm(self, expired: list[ExpiredLease]) -> list[ExpiredLease]:
        """Those that were seen before, long enough ago. The monotonic clock only spaces the looks."""
        now = time.monotonic()
        seen = self._suspects
        self._suspects = {(one.id, one.fence): seen.get((one.id, one.fence), now) for one in expired}
        return [one for one in expired if now - self._suspects[(one.id, one.fence)] >= self._confirm_after]

    async def _rescue(self, lease: ExpiredLease) -> bool:
        transition = core.decide_after_crash(lease.view.crashes, own_work=not lease.has_open_order)
        status = await transitions.apply(
            self._database,
            lease.id,
            lease.fence,
            transition,
            provider=self._provider_of(lease.model),
            only_if_abandoned=_RUN_GRACE,
        )
        self._suspects.pop((lease.id, lease.fence), None)
        if status is not None:
            _log.warning(
                "lease_rescued",
                job_id=str(lease.id),
                attempt=lease.fence,
                status=str(status),
                wedged=not lease.is_lease_expired,
            )
        return status is not None
