"""The event loop of a worker process, in a thread of its own beside Celery's.

Everything that does I/O lives on this loop. Celery's threads only call `ring`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import structlog
import uvloop

from fleek.bootstrap import WorkerContext, open_worker
from fleek.core.errors import DatabaseUnavailable
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.execution import Execution
from fleek.jobs.keeper import Stop
from fleek.queue.base import Announcement
from fleek.settings import Settings
from fleek.tasks.dispatcher import Dispatcher

_log = structlog.get_logger(__name__)

_START_TIMEOUT = 30.0
_STOP_MARGIN = 35.0
"""Seconds beyond the grace time that an orderly stop may take before the process goes without it: an order
that is being placed is waited for."""


class WorkerRuntime:
    """Starts and stops the dispatcher, the lease keeper and the caretakers of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._grace = settings.shutdown_grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._dispatcher: Dispatcher | None = None
        self._stopped: asyncio.Event | None = None

    def start(self) -> None:
        """Start the loop; returns when the dispatcher claims. Raises what made the start fail."""
        self._thread = threading.Thread(target=self._run, name="fleek-loop", daemon=True)
        self._thread.start()
        self._ready.wait(_START_TIMEOUT)
        if self._failure is not None:
            raise self._failure

    def ring(self, queue: str, celery_task_id: str | None) -> None:
        """A wake-up arrived; called on Celery's threads."""
        if self._dispatcher is not None:
            self._dispatcher.wake_from_thread(queue, celery_task_id)

    def begin_stop(self, *, at_once: bool = False) -> None:
        """Claim nothing more; `at_once`: and let no job use the grace time, or what is left of it.

        Safe to call in a signal handler, and more than once.
        """
        dispatcher = self._dispatcher
        if self._loop is not None and dispatcher is not None and self._loop.is_running():
            act = dispatcher.end_grace if at_once else dispatcher.begin_stop
            self._loop.call_soon_threadsafe(act)

    def stop(self, grace: float | None = None) -> None:
        """Let jobs finish for `grace` seconds (None: as configured), give the rest back, and end the loop."""
        if self._loop is None or self._thread is None or self._stopped is None:
            return
        if grace is not None:
            self._grace = grace
        if self._loop.is_running():
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(self._grace + _STOP_MARGIN)

    def _run(self) -> None:
        try:
            uvloop.run(self._main())
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits in `start`
            self._failure = error
            _log.error("worker_loop_failed", exc_info=error)
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        async with AsyncExitStack() as stack:
            context = await stack.enter_async_context(open_worker(self._settings))
            dispatcher = self._dispatcher = self._build_dispatcher(context)
            context.pubsub.listen(lambda hint: _on_hint(context, hint), lambda: None)
            await context.pubsub.start()
            helpers = [
                _start(context.keeper.run()),
                _start(self._take_care("rescue", context.rescuer.run_once)),
                _start(self._take_care("deadlines", context.deadlines.run_once)),
            ]
            dispatcher.start()
            _log.info("worker_started", worker=context.worker, slots=self._settings.slots)
            self._ready.set()
            await self._stopped.wait()
            await dispatcher.stop(timedelta(seconds=self._grace))
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            _log.info("worker_stopped", worker=context.worker)

    def _build_dispatcher(self, context: WorkerContext) -> Dispatcher:
        def start(job: ClaimedJob) -> Execution:
            return Execution(job, context.catalog.get(job.model), context.workshop(dispatcher.wake_after))

        dispatcher = Dispatcher(
            context.claimer,
            start,
            context.waker,
            queues=self._settings.queues,
            slots=self._settings.slots,
            interval=timedelta(seconds=self._settings.claim_interval),
            create_timeout=context.create_timeout,
        )
        return dispatcher

    async def _take_care(self, name: str, run_once: Callable[[], Awaitable[object]]) -> None:
        """A caretaker's loop. Each has its own: trouble of one keeps no other from its work."""
        while True:
            await asyncio.sleep(self._settings.rescue_interval)
            try:
                await run_once()
            except DatabaseUnavailable:
                _log.warning("caretaker_failed", caretaker=name)
            except Exception:  # noqa: BLE001  see below
                # The caretaker of everybody's jobs must not end with one bad row; it is logged.
                _log.exception("caretaker_crashed", caretaker=name)


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


def _on_hint(context: WorkerContext, hint: Announcement) -> None:
    """Another process says that a job moved; of interest here are cancel requests for our own jobs."""
    if hint.cancel:
        execution = context.keeper.find(hint.job_id)
        if execution is not None:
            execution.stop(Stop.CANCEL)
