"""One dispatcher a worker process: it claims due jobs while slots are free, and runs them.

Wake-ups make it quick, and are not needed for anything else: it also looks by itself, about every
second, and when a job that it put back becomes due again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from fleek.core.errors import DatabaseUnavailable
from fleek.jobs.claim import ClaimedJob, Claimer
from fleek.jobs.keeper import Stop
from fleek.observability.metrics import Metrics
from fleek.queue.base import Waker

_log = structlog.get_logger(__name__)

_MAX_BATCH = 32
_PAUSE_WITHOUT_DATABASE = 1.0
_PAUSE_AFTER_NOTHING = 0.01
"""Seconds. Wake-ups that piled up while nobody listened then cost a few empty claims, not one each."""
_END_TIMEOUT = 8.0
"""Seconds that released executions get to end: one that is canceling an order takes up to five for that."""


class Runnable(Protocol):
    """What the dispatcher needs of an execution."""

    async def run(self) -> None:
        """Work until the job has moved on."""
        ...

    def wind_down(self) -> None:
        """Finish what has begun, and place no new order."""
        ...

    def stop(self, why: Stop) -> None:
        """End early."""
        ...


@dataclass(frozen=True, slots=True)
class _Running:
    runnable: Runnable
    queue: str


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
        create_timeout: timedelta = timedelta(0),
        metrics: Metrics | None = None,
    ) -> None:
        """`create_timeout`: how long an order may take to be placed, which a stop waits for."""
        self._claimer = claimer
        self._start = start
        self._waker = waker
        self._queues = tuple(queues)
        self._slots = slots
        self._interval = interval.total_seconds()
        self._create_timeout = create_timeout
        self._metrics = metrics or Metrics()
        self._metrics.show_slots(slots, lambda: self.running)
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._look = asyncio.Event()
        self._stopping = False
        self._stopped_at = 0.0
        self._hurry = asyncio.Event()
        self._rung: set[str] = set()
        self._passed_on: dict[str, float] = {}
        self._celery_task_id: str | None = None
        self._loop = asyncio.get_running_loop()
        self._claiming: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self.is_answered = False
        """Whether the database answered the last look at the queue."""

    @property
    def running(self) -> int:
        """Jobs in progress in this process."""
        return len(self._running)

    @property
    def is_stopping(self) -> bool:
        """Whether it claims nothing any more."""
        return self._stopping

    @property
    def silence(self) -> float:
        """Seconds since it began to look at the queue; 0 before it was started, and while it stops."""
        if self._claiming is None or self._stopping:
            return 0.0
        return self._loop.time() - self._looked_at

    def wake_from_thread(self, queue: str, celery_task_id: str | None) -> None:
        """A wake-up arrived on one of Celery's threads."""
        if queue in self._queues:
            # The loop may have ended meanwhile: then this process claims nothing any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_wake, queue, celery_task_id)

    def wake_after(self, delay: timedelta) -> None:
        """Look again when a job that was just put back becomes due."""
        self._loop.call_later(max(delay.total_seconds(), 0.0) + 0.001, self._look.set)

    def start(self) -> None:
        """Begin to claim."""
        self._looked_at = self._loop.time()
        self._claiming = asyncio.create_task(self._claim_forever(), name="dispatcher")

    async def stop(self, grace: timedelta) -> None:
        """Stop claiming at once, let jobs finish for `grace` from then on, then give the rest back."""
        self.begin_stop()
        if self._claiming is not None:
            await self._claiming
        if self._running:
            await self._let_finish(self._stopped_at + grace.total_seconds())
        if self._running:
            _log.info("jobs_released", jobs=len(self._running))
            self._release(self._running.values())
            # An order that is being placed is not interrupted: its reply must not be lost.
            placed = self._stopped_at + self._create_timeout.total_seconds()
            await asyncio.wait(self._running, timeout=max(placed - self._loop.time(), 0) + _END_TIMEOUT)

    def begin_stop(self) -> None:
        """Claim nothing more, and place no new orders."""
        if self._stopping:
            return
        self._stopping = True
        self._stopped_at = self._loop.time()
        self._look.set()
        for one in self._running.values():
            one.runnable.wind_down()

    def end_grace(self) -> None:
        """Wait no longer for jobs to finish: they are given back as soon as `stop` is called, or now."""
        self.begin_stop()
        self._hurry.set()

    async def _let_finish(self, until: float) -> None:
        """Until nothing runs any more, the loop's clock shows `until`, or nobody wants to wait."""
        ends = [
            asyncio.ensure_future(asyncio.wait(set(self._running))),
            asyncio.ensure_future(self._hurry.wait()),
        ]
        seconds = max(until - self._loop.time(), 0)
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()

    def _on_wake(self, queue: str, celery_task_id: str | None) -> None:
        self._metrics.wake_up_received(queue)
        self._rung.add(queue)
        self._celery_task_id = celery_task_id
        self._look.set()

    async def _claim_forever(self) -> None:
        while not self._stopping:
            rung, self._rung = self._rung, set()
            self._looked_at = self._loop.time()
            try:
                await self._look_once(rung)
            except DatabaseUnavailable:
                self.is_answered = False
                _log.warning("claim_failed")
            except Exception:  # noqa: BLE001  see below
                # A bug in a claim must not stop the worker for good; it is logged and tried again.
                _log.exception("claim_crashed")
            else:
                self.is_answered = True
                await self._wait()
                continue
            # What the wake-ups were for is still to be claimed.
            self._rung |= rung
            await asyncio.sleep(_PAUSE_WITHOUT_DATABASE)

    async def _look_once(self, rung: set[str]) -> None:
        queues = random.sample(self._queues, len(self._queues))
        found = [await self._fill(queue, is_rung=queue in rung) for queue in queues]
        if 0 in found and not any(found):
            await asyncio.sleep(_PAUSE_AFTER_NOTHING)

    async def _wait(self) -> None:
        """Until a wake-up, a slot that frees, or the next look."""
        try:
            async with asyncio.timeout(self._interval * random.uniform(0.8, 1.2)):  # noqa: S311  jitter
                await self._look.wait()
        except TimeoutError:
            self._celery_task_id = None
        if not self._stopping:
            self._look.clear()

    async def _fill(self, queue: str, *, is_rung: bool) -> int | None:
        """Claim until nothing is due or no slot is free; how many, or None where no slot was free.

        `is_rung`: a wake-up of the queue led here.
        """
        claimed, was_free = 0, len(self._running) < self._slots
        while not self._stopping and (free := self._slots - len(self._running)) > 0:
            wanted = min(free, _MAX_BATCH)
            jobs = await self._claimer.claim(queue, wanted, celery_task_id=self._celery_task_id)
            for job in jobs:
                self._run(job, queue)
            claimed += len(jobs)
            if len(jobs) < wanted:
                return claimed
        has_news = bool(claimed) or (is_rung and self._may_pass_on(queue))
        if has_news and not self._stopping and await self._claimer.is_work_due(queue):
            # This process is full and more is due: pass the wake-up on to another one.
            self._waker.wake(queue)
        return claimed if was_free else None

    def _may_pass_on(self, queue: str) -> bool:
        """Whether a process that was full already may pass a wake-up on: once in an interval.

        More often, and one wake-up would go round for ever where all are full.
        """
        now = self._loop.time()
        if now - self._passed_on.get(queue, -self._interval) < self._interval:
            return False
        self._passed_on[queue] = now
        return True

    def _run(self, job: ClaimedJob, queue: str) -> None:
        runnable = self._start(job)
        task = asyncio.create_task(runnable.run(), name=f"job-{job.id}")
        self._running[task] = _Running(runnable, queue)
        task.add_done_callback(self._on_end)
        if self._stopping:
            self._release([self._running[task]])

    def _release(self, running: Iterable[_Running]) -> None:
        for one in running:
            one.runnable.stop(Stop.RELEASE)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._running) >= self._slots
        ended = self._running.pop(task)
        if self._stopping:
            # The job may have been given back, and this process claims nothing any more.
            self._waker.wake(ended.queue)
        elif was_full:
            self._look.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("execution_crashed", exc_info=task.exception())
