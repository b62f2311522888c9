"""The event loop of a worker process, in a thread of its own beside Celery's.

Everything that does I/O lives on this loop. Celery's threads only call `ring`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog
import uvloop

from fleek.bootstrap.parts import build_metrics
from fleek.bootstrap.worker import WorkerContext, open_worker
from fleek.core.errors import ConfigurationError, DatabaseUnavailable
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.execution import Execution
from fleek.jobs.keeper import Stop
from fleek.observability.metrics import CONTENT_TYPE
from fleek.queue.base import Announcement
from fleek.queue.round_trip import Responder
from fleek.reporting import start_reporting, warn_of_misnamed
from fleek.settings import Settings
from fleek.tasks.dispatcher import Dispatcher, Runnable
from fleek.tasks.probe import ProbeServer
from fleek.tasks.tracing import TracedRun
from fleek.tasks.vitals import Vitals

if TYPE_CHECKING:
    from fleek.observability.sentry import Sentry

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
        self._metrics = build_metrics(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._dispatcher: Dispatcher | None = None
        self._responder: Responder | None = None
        self._stopped: asyncio.Event | None = None
        self._sentry: Sentry | None = None

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

    def ping(self, reply_to: str, queue: str) -> None:
        """Somebody asks whether a worker lives; called on Celery's threads, answered by the loop."""
        if self._loop is not None and self._responder is not None:
            # The loop may have ended meanwhile: then this worker does not live.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._responder.answer, reply_to, queue)

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
            self._sentry = start_reporting(self._settings, "worker")
            warn_of_misnamed()
            uvloop.run(self._main())
        except ConfigurationError as error:
            self._failure = error
            _log.critical("worker_refused", reason=error.message)
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits in `start`
            self._failure = error
            _log.error("worker_loop_failed", exc_info=error)
        finally:
            # Whoever waits for a start that failed ends the process at once.
            if self._sentry is not None:
                self._sentry.close()
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        async with AsyncExitStack() as stack:
            context = await stack.enter_async_context(open_worker(self._settings, self._metrics))
            dispatcher = self._dispatcher = self._build_dispatcher(context)
            await self._be_asked(stack, context, dispatcher)
            context.pubsub.listen(lambda hint: _on_hint(context, hint), lambda: None)
            await context.pubsub.start()
            helpers = [_start(self._work(context, dispatcher))]
            _log.info("worker_started", worker=context.worker, slots=self._settings.slots)
            self._ready.set()
            await self._stopped.wait()
            await dispatcher.stop(timedelta(seconds=self._grace))
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            _log.info("worker_stopped", worker=context.worker)

    async def _be_asked(self, stack: AsyncExitStack, context: WorkerContext, dispatcher: Dispatcher) -> None:
        """Answer pings, and probes on a port of this process's own where it has one."""
        interval = timedelta(seconds=self._settings.claim_interval)
        vitals = Vitals(context.schema, dispatcher, context.keeper, interval)
        self._responder = context.responder(lambda: vitals.why_not_ready() is None)
        stack.push_async_callback(self._responder.aclose)
        if self._settings.worker_port is not None:
            pages = {"/metrics": self._show_metrics} if self._settings.metrics else {}
            probe = ProbeServer(vitals.why_not_live, vitals.why_not_ready, pages)
            stack.push_async_callback(probe.aclose)
            port = await probe.start(self._settings.worker_host, self._settings.worker_port)
            _log.info("worker_answers_probes", host=self._settings.worker_host, port=port)

    async def _work(self, context: WorkerContext, dispatcher: Dispatcher) -> None:
        """Claim, renew and take care, for ever; not before the schema is one that this release works with."""
        await context.schema.until_usable()
        dispatcher.start()
        await asyncio.gather(
            context.keeper.run(),
            self._take_care("rescue", context.rescuer.run_once),
            self._take_care("deadlines", context.deadlines.run_once),
            self._take_care("prune", lambda: self._prune(context), self._settings.prune_interval),
        )

    async def _prune(self, context: WorkerContext) -> None:
        self._metrics.pruned(await context.pruner.run_once())

    def _build_dispatcher(self, context: WorkerContext) -> Dispatcher:
        def start(job: ClaimedJob) -> Runnable:
            model, workshop = context.catalog.get(job.model), context.workshop(dispatcher.wake_after)
            execution = Execution(job, model, workshop)
            return execution if self._sentry is None else TracedRun(execution, job, self._sentry)

        dispatcher = Dispatcher(
            context.claimer,
            start,
            context.waker,
            queues=self._settings.queues,
            slots=self._settings.slots,
            interval=timedelta(seconds=self._settings.claim_interval),
            create_timeout=context.create_timeout,
            metrics=context.metrics,
        )
        return dispatcher

    def _show_metrics(self) -> tuple[bytes, str]:
        return self._metrics.render(), CONTENT_TYPE

    async def _take_care(
        self, name: str, run_once: Callable[[], Awaitable[object]], interval: float | None = None
    ) -> None:
        """A caretaker's loop. Each has its own: trouble of one keeps no other from its work."""
        while True:
            await asyncio.sleep(interval or self._settings.rescue_interval)
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
