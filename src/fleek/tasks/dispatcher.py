"""One dispatcher a worker process: it claims due jobs while slots are free, and runs them.

Wake-ups make it quick, and are not needed for anything else: it also looks by itself, about every
second, and when a job that it put back becomes due again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from fleek.core.errors import DatabaseUnavailable
from fleek.jobs.claim import ClaimedJob, Claimer
from fleek.jobs.keeper import Stop
from fleek.queue.base import Waker

_log = structlog.get_logger(__name__)

_MAX_BATCH = 32
_PAUSE_WITHOUT_DATABASE = 1.0
_END_TIMEOUT = 5.0
"""Seconds that released executions get to write their end."""


class Runnable(Protocol):
    """What the dispatcher needs of an execution."""

    async def run(self) -> None:
        """Work until the job has moved on."""
        ...

    def stop(self, why: Stop) -> None:
        """End early."""
        ...


class Dispatcher:
    """Claims and runs. All methods but `wake_from_thread` belong to the event loop's thread."""

    def __init__(  # noqa: PLR0913  what it claims with, what it runs, and its bounds
        self,
        claimer: Claimer,
        start: Callable[[ClaimedJob], Runnable],
        waker: Waker,
        *,
        queues: Sequence[str],
        slots: int,
        interval: timedelta,
    ) -> None:
        self._claimer = claimer
        self._start = start
        self._waker = waker
        self._queues = tuple(queues)
        self._slots = slots
        self._interval = interval.total_seconds()
        self._running: dict[asyncio.Task[None], Runnable] = {}
        self._look = asyncio.Event()
        self._stopping = False
        self._celery_task_id: str | None = None
        self._loop = asyncio.get_running_loop()
        self._claiming: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """Jobs in progress in this process."""
        return len(self._running)

    def wake_from_thread(self, queue: str, celery_task_id: str | None) -> None:
        """A wake-up arrived on one of Celery's threads."""
        if queue in self._queues:
            self._loop.call_soon_threadsafe(self._on_wake, celery_task_id)

    def wake_after(self, delay: timedelta) -> None:
        """Look again when a job that was just put back becomes due."""
        self._loop.call_later(max(delay.total_seconds(), 0.0) + 0.001, self._look.set)

    def start(self) -> None:
        """Begin to claim."""
        self._claiming = asyncio.create_task(self._claim_forever(), name="dispatcher")

    async def stop(self, grace: timedelta) -> None:
        """Stop claiming at once, let jobs finish for `grace`, then give the rest back."""
        self.begin_stop()
        if self._claiming is not None:
            await self._claiming
        if self._running:
            await asyncio.wait(self._running, timeout=grace.total_seconds())
        if self._running:
            _log.info("jobs_released", jobs=len(self._running))
            for runnable in self._running.values():
                runnable.stop(Stop.RELEASE)
            await asyncio.wait(self._running, timeout=_END_TIMEOUT)

    def begin_stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self._look.set()

    def _on_wake(self, celery_task_id: str | None) -> None:
        self._celery_task_id = celery_task_id
        self._look.set()

    async def _claim_forever(self) -> None:
        while not self._stopping:
            try:
                for queue in random.sample(self._queues, len(self._queues)):
                    await self._fill(queue)
            except DatabaseUnavailable:
                _log.warning("claim_failed")
                await asyncio.sleep(_PAUSE_WITHOUT_DATABASE)
            except Exception:  # noqa: BLE001  see below
                # A bug in a claim must not stop the worker for good; it is logged and tried again.
                _log.exception("claim_crashed")
                await asyncio.sleep(_PAUSE_WITHOUT_DATABASE)
            await self._wait()

    async def _wait(self) -> None:
        """Until a wake-up, a slot that frees, or the next look."""
        try:
            async with asyncio.timeout(self._interval * random.uniform(0.8, 1.2)):  # noqa: S311  jitter
                await self._look.wait()
        except TimeoutError:
            self._celery_task_id = None
        if not self._stopping:
            self._look.clear()

    async def _fill(self, queue: str) -> None:
        """Claim until nothing is due or no slot is free."""
        claimed = 0
        while not self._stopping and (free := self._slots - len(self._running)) > 0:
            wanted = min(free, _MAX_BATCH)
            jobs = await self._claimer.claim(queue, wanted, celery_task_id=self._celery_task_id)
            for job in jobs:
                self._run(job)
            if len(jobs) < wanted:
                return
            claimed += len(jobs)
        if claimed and not self._stopping and await self._claimer.is_work_due(queue):
            # This claim filled the process and more is due: pass the wake-up on to another one.
            self._waker.wake(queue)

    def _run(self, job: ClaimedJob) -> None:
        runnable = self._start(job)
        task = asyncio.create_task(runnable.run(), name=f"job-{job.id}")
        self._running[task] = runnable
        task.add_done_callback(self._on_end)
        if self._stopping:
            runnable.stop(Stop.RELEASE)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._running) >= self._slots
        del self._running[task]
        if was_full:
            self._look.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("execution_crashed", exc_info=task.exception())
