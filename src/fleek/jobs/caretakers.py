"""Small loops that keep the queue healthy. Safe to run in many processes at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import structlog

from fleek.core import job as core
from fleek.core.errors import DatabaseUnavailable
from fleek.db.session import Database, LockTimeoutError
from fleek.jobs import leases, transitions
from fleek.jobs.leases import ExpiredLease
from fleek.jobs.transitions import Moved
from fleek.observability.metrics import AttemptEnd, Metrics
from fleek.queue.base import Announcement, PubSub, Waker

_log = structlog.get_logger(__name__)

_CONFIRM_AFTER = 15.0
"""Seconds between the two looks that must both find a lease expired: a database that was away for a
while, or a clock that stepped, then does not make everybody's jobs look lost at once. Longer than the time
between two renewals: a live owner renews in between."""
_RUN_GRACE = timedelta(seconds=30)
"""How far an attempt may run past its own deadline before its worker counts as wedged."""
_DEADLINE_MESSAGE = "The job's deadline passed while it waited in the queue"


class Rescuer:
    """Returns the jobs of dead and wedged workers to the queue."""

    def __init__(  # noqa: PLR0913  the ports it works with, and what it counts with
        self,
        database: Database,
        waker: Waker,
        pubsub: PubSub,
        *,
        provider_of: Callable[[str], str],
        confirm_after: float = _CONFIRM_AFTER,
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._waker = waker
        self._pubsub = pubsub
        self._provider_of = provider_of
        self._confirm_after = confirm_after
        self._metrics = metrics or Metrics()
        self._suspects: dict[tuple[UUID, int], float] = {}

    async def run_once(self) -> dict[str, int]:
        """One pass; counts of `suspected` and `rescued`."""
        try:
            expired = await leases.list_expired(self._database, _RUN_GRACE)
            rescued = [lease for lease in self._confirm(expired) if await self._try_rescue(lease)]
        except DatabaseUnavailable:
            # Owners could not renew either: what was seen before proves nothing.
            self._suspects.clear()
            raise
        for lease in rescued:
            self._pubsub.announce(Announcement(lease.id))
        for queue in {lease.queue for lease in rescued}:
            self._waker.wake(queue)
        return {"suspected": len(self._suspects), "rescued": len(rescued)}

    def _confirm(self, expired: list[ExpiredLease]) -> list[ExpiredLease]:
        """Those that were seen before, long enough ago. The monotonic clock only spaces the looks."""
        now = time.monotonic()
        seen = self._suspects
        self._suspects = {(one.id, one.fence): seen.get((one.id, one.fence), now) for one in expired}
        return [one for one in expired if now - self._suspects[(one.id, one.fence)] >= self._confirm_after]

    async def _try_rescue(self, lease: ExpiredLease) -> bool:
        """One row that is locked, or that a rescue trips over, must not keep the others from theirs."""
        try:
            return await self._rescue(lease)
        except LockTimeoutError:
            _log.warning("rescue_put_off", job_id=str(lease.id))
        except DatabaseUnavailable:
            raise
        except Exception:  # noqa: BLE001  see above
            _log.exception("rescue_crashed", job_id=str(lease.id))
        return False

    async def _rescue(self, lease: ExpiredLease) -> bool:
        transition = core.decide_after_crash(lease.view.crashes, own_work=not lease.has_open_order)
        moved = await transitions.apply(
            self._database,
            lease.id,
            lease.fence,
            transition,
            provider=self._provider_of(lease.model),
            only_if_abandoned=_RUN_GRACE,
        )
        self._suspects.pop((lease.id, lease.fence), None)
        if moved is not None:
            self._count(lease, moved, transition)
            _log.warning(
                "lease_rescued",
                job_id=str(lease.id),
                attempt=lease.fence,
                status=str(moved.status),
                wedged=not lease.is_lease_expired,
            )
        return moved is not None

    def _count(self, lease: ExpiredLease, moved: Moved, transition: core.Transition) -> None:
        self._metrics.lease_rescued(is_wedged=not lease.is_lease_expired)
        self._metrics.attempt_ended(
            AttemptEnd(
                provider=self._provider_of(lease.model),
                model=lease.model,
                status=moved.status,
                outcome=moved.reason,
                error_code=transition.error.code if transition.error is not None else None,
                resolutions=moved.resolutions,
            )
        )


class DeadlineWatcher:
    """Ends waiting jobs whose deadline has passed."""

    def __init__(self, database: Database, pubsub: PubSub, *, metrics: Metrics | None = None) -> None:
        self._database = database
        self._pubsub = pubsub
        self._metrics = metrics or Metrics()

    async def run_once(self) -> dict[str, int]:
        """One pass; the count of `past_deadline`."""
        ended = await leases.end_past_deadline(self._database, _DEADLINE_MESSAGE)
        for job in ended:
            self._pubsub.announce(Announcement(job.id))
            self._metrics.job_ended(job.model, core.Status.ERROR)
            for provider in job.lost_orders:
                self._metrics.order_resolved(provider, "ambiguous")
        return {"past_deadline": len(ended)}
