"""How long attempts take, for Sentry: a share of them is reported."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fleek.jobs.claim import ClaimedJob
from fleek.jobs.keeper import Stop
from fleek.tasks.dispatcher import Runnable

if TYPE_CHECKING:
    from fleek.observability.sentry import Sentry


class TracedRun:
    """A run that is reported when it has ended."""

    def __init__(self, run: Runnable, job: ClaimedJob, sentry: Sentry) -> None:
        self._run = run
        self._job = job
        self._sentry = sentry

    async def run(self) -> None:
        """Work until the job has moved on."""
        begin, is_ok = time.monotonic(), False
        try:
            await self._run.run()
            is_ok = True
        finally:
            seconds, job = time.monotonic() - begin, self._job
            tags = {"job_id": job.id, "attempt": job.fence, "model": job.model}
            self._sentry.trace("queue.process", f"attempt {job.model}", seconds, is_ok=is_ok, **tags)

    def wind_down(self) -> None:
        """Finish what has begun, and place no new order."""
        self._run.wind_down()

    def stop(self, why: Stop) -> None:
        """End early."""
        self._run.stop(why)
