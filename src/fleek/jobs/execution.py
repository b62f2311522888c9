"""One claimed job, from its claim to the transition that ends the attempt.

`Execution.run` reads as the life of an attempt: obtain the outputs (resume open orders, place new
ones), store them, finish. Whatever goes wrong becomes one decision of `core.job`, applied once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar

import structlog

from fleek.core import job as core
from fleek.core.errors import (
    DatabaseUnavailable,
    LeaseLost,
    ProviderError,
    ProviderErrorKind,
    StorageUnavailable,
)
from fleek.core.ids import new_id
from fleek.core.media import DEFAULT_SIDE, MAX_SEED, MediaType, OutputFormat, object_key
from fleek.db.session import Database
from fleek.jobs import submissions, transitions
from fleek.jobs.claim import ClaimedJob, OpenOrder
from fleek.jobs.keeper import LeaseKeeper, Stop
from fleek.jobs.transitions import StoredMedia
from fleek.media.outputs import StoredOutput, store_output
from fleek.media.images import ImageWorker
from fleek.providers.base import (
    Accepted,
    AttemptContext,
    BytesOutput,
    Done,
    GenerationRequest,
    Handle,
    Output,
    Pending,
)
from fleek.providers.registry import Model
from fleek.queue.base import Announcement, PubSub
from fleek.storage.base import ObjectStorage, StorageError

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

_PROGRESS_SPACING = 0.1
"""Seconds between two announcements of progress of one job."""
_FIRST_POLL, _LONGEST_POLL = 0.5, 5.0
_FIRST_RETRY, _LONGEST_RETRY = 0.2, 5.0
_SETTLE_TIMEOUT = 60.0
"""Seconds for which the end of an attempt is tried again while the database is away."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every execution of a process shares."""

    database: Database
    storage: ObjectStorage
    images: ImageWorker
    pubsub: PubSub
    keeper: LeaseKeeper
    max_output_bytes: int
    on_due: Callable[[timedelta], None]
    """Told when a job of this process will be due again."""


class Execution:
    """Runs one attempt. Construct it, `run` it in a task of its own, `stop` it from outside."""

    def __init__(self, job: ClaimedJob, model: Model, workshop: Workshop) -> None:
        self._job = job
        self._model = model
        self._shop = workshop
        self._task: asyncio.Task[None] | None = None
        self._stop: Stop | None = None
        self._ending = False
        self._handles = {o.ordinal: o.handle for o in job.open_orders if o.handle is not None}
        self._started = time.monotonic()
        self._announced = 0.0
        self._log = _log.bind(job_id=str(job.id), attempt=job.fence, model=job.model)
        self.progress: float | None = None

    @property
    def job(self) -> ClaimedJob:
        """The claim that this execution works for."""
        return self._job

    async def run(self) -> None:
        """Work until the job has moved on, one way or another. Never raises but for a bug."""
        self._task = asyncio.current_task()
        self._shop.keeper.add(self)
        try:
            await self._attempt()
        except asyncio.CancelledError:
            await self._after_stop()
        except LeaseLost:
            self._log.warning("lease_lost")
        except Exception as error:  # noqa: BLE001  every error of an attempt becomes a decision
            await self._after_error(error)
        finally:
            self._shop.keeper.remove(self)

    def stop(self, why: Stop) -> None:
        """Ask the execution to end. The first reason counts; one whose end is being written goes on."""
        if self._stop is not None or self._ending:
            return
        self._stop = why
        if self._task is not None:
            self._task.cancel()

    async def _attempt(self) -> None:
        if self._job.cancel_requested:
            self._stop = Stop.CANCEL
        if self._stop is not None:
            raise asyncio.CancelledError
        limit = (self._job.run_deadline_at - self._job.claimed_at).total_seconds()
        try:
            async with asyncio.timeout(limit):
                done = await self._obtain()
                media = await self._store(done.outputs)
        except TimeoutError:
            message = f"The attempt took longer than {limit:.0f} seconds"
            raise ProviderError(ProviderErrorKind.TIMEOUT, message) from None
        await self._finish(media, done)

    # Obtaining the outputs

    async def _obtain(self) -> Done:
        """The outputs of all orders, in the order of their indexes."""
        parts = [await self._fulfil(request) for request in self._requests()]
        costs = [part.cost for part in parts if part.cost is not None]
        return Done(
            outputs=tuple(output for part in parts for output in part.outputs),
            metrics=parts[0].metrics if len(parts) == 1 else {"orders": [dict(p.metrics) for p in parts]},
            cost=sum(costs, start=Decimal(0)) if costs else None,
        )

    def _requests(self) -> Iterator[GenerationRequest]:
        """The job as orders of at most `max_outputs` each; an open order keeps its own cut."""
        step = self._model.provider.capabilities.max_outputs
        cuts = {order.first_index: order.count for order in self._job.open_orders}
        index = 0
        while index < self._job.n:
            count = cuts.get(index, min(step, self._job.n - index))
            yield self._request(index, count)
            index += count

    def _request(self, first_index: int, count: int) -> GenerationRequest:
        parameters = self._job.parameters
        return GenerationRequest(
            model=self._job.model,
            ref=self._model.ref,
            prompt=self._job.prompt,
            seed=self._seed(first_index),
            first_index=first_index,
            count=count,
            width=parameters["width"] or DEFAULT_SIDE,
            height=parameters["height"] or DEFAULT_SIDE,
            negative_prompt=parameters["negative_prompt"],
            output_format=OutputFormat(parameters["output_format"]),
            input=self._job.input,
        )

    def _seed(self, index: int) -> int:
        return int((self._job.parameters["seed"] + index) % (MAX_SEED + 1))

    async def _fulfil(self, request: GenerationRequest) -> Done:
        """One order: resumed where it is open, else placed now."""
        open_order = next((o for o in self._job.open_orders if o.first_index == request.first_index), None)
        if open_order is not None:
            return await self._resume(open_order)
        self._refuse_past_deadline()
        capabilities = self._model.provider.capabilities
        if not (capabilities.paid or capabilities.resumable):
            return _expect_done(await self._model.provider.submit(request, self._context()))
        order = await submissions.intend(
            self._shop.database, self._job.id, self._job.fence, request, self._model.provider.name
        )
        reply = await _shielded(self._create_and_record(order, request))
        return reply if isinstance(reply, Done) else await self._await_result(order, reply.handle)

    async def _create_and_record(self, order: OpenOrder, request: GenerationRequest) -> Accepted | Done:
        """The create and the writing of its handle: one section that nothing interrupts."""
        try:
            reply = await self._model.provider.submit(request, self._context())
        except ProviderError as error:
            if error.kind is not ProviderErrorKind.AMBIGUOUS:
                await self._resolve(order, "rejected")
            raise
        if isinstance(reply, Accepted):
            self._handles[order.ordinal] = reply.handle
            await self._persistently(
                lambda: submissions.record(
                    self._shop.database, self._job.id, self._job.fence, order.ordinal, reply.handle
                )
            )
        return reply

    async def _resume(self, order: OpenOrder) -> Done:
        if order.handle is None:
            message = "An order may have been placed without its reply being seen; check the provider's account"
            raise ProviderError(ProviderErrorKind.AMBIGUOUS, message)
        return await self._await_result(order, order.handle)

    async def _await_result(self, order: OpenOrder, handle: Handle) -> Done:
        """Poll, at a growing interval, until the order has ended."""
        pause = _FIRST_POLL
        while True:
            reply = await self._poll(order, handle)
            if isinstance(reply, Done):
                return reply
            if reply.progress is not None:
                self._report_progress(reply.progress)
            await self._cancel_past_deadline(handle)
            wanted = reply.poll_after.total_seconds() if reply.poll_after is not None else pause
            await asyncio.sleep(wanted * random.uniform(0.8, 1.2))  # noqa: S311  jitter, no secret
            pause = min(pause * 1.5, _LONGEST_POLL)

    async def _poll(self, order: OpenOrder, handle: Handle) -> Pending | Done:
        """One poll. An order that ended badly is resolved; trouble on the way leaves it open."""
        try:
            return await self._model.provider.poll(handle, self._context())
        except ProviderError as error:
            if error.kind in {
                ProviderErrorKind.PERMANENT_INPUT,
                ProviderErrorKind.PERMANENT_POLICY,
                ProviderErrorKind.PROVIDER_BUG,
            }:
                await self._resolve(order, "failed")
            raise

    async def _resolve(self, order: OpenOrder, resolution: str) -> None:
        await self._persistently(
            lambda: submissions.resolve(self._shop.database, self._job.id, order.ordinal, resolution)
        )

    def _past_deadline(self) -> bool:
        """Whether the client's deadline has passed, by the database's clock and the time since."""
        elapsed = timedelta(seconds=time.monotonic() - self._started)
        return self._job.claimed_at + elapsed >= self._job.view.deadline_at

    def _refuse_past_deadline(self) -> None:
        if self._past_deadline():
            raise _DeadlinePassedError

    async def _cancel_past_deadline(self, handle: Handle) -> None:
        if self._past_deadline():
            await self._model.provider.cancel(handle)
            raise _DeadlinePassedError

    def _context(self) -> AttemptContext:
        return AttemptContext(
            job_id=self._job.id,
            number=self._job.fence,
            failures=self._job.view.failures,
            deadline=self._job.run_deadline_at,
            report_progress=self._report_progress,
        )

    def _report_progress(self, fraction: float) -> None:
        """Keep the progress for the next renewal, and tell waiters now and then."""
        self.progress = min(max(fraction, self.progress or 0.0), 1.0)
        now = time.monotonic()
        if now - self._announced >= _PROGRESS_SPACING:
            self._announced = now
            self._shop.pubsub.announce(Announcement(self._job.id, progress=self.progress))

    # Storing

    async def _store(self, outputs: tuple[Output, ...]) -> list[StoredMedia]:
        return [await self._store_one(index, output) for index, output in enumerate(outputs)]

    async def _store_one(self, index: int, output: Output) -> StoredMedia:
        known = index < len(self._job.media_ids)
        media_id = self._job.media_ids[index] if known else new_id()

        def key_for(media_type: MediaType) -> str:
            return object_key(self._job.id, media_id, self._job.fence, media_type)

        stored = await self._put(output, key_for)
        return StoredMedia(
            id=media_id,
            index=index,
            seed=self._seed(index),
            key=stored.key,
            content_type=stored.content_type,
            size_bytes=stored.size_bytes,
            width=stored.width,
            height=stored.height,
            sha256=stored.sha256,
            thumbhash=stored.thumbhash,
        )

    async def _put(self, output: Output, key_for: Callable[[MediaType], str]) -> StoredOutput:
        """Store one output. Bytes that only this process has are offered again until the attempt's end;
        what an open order still has is not waited for here: the job is deferred as `resuming`."""
        pause = _FIRST_RETRY
        while True:
            try:
                return await store_output(
                    self._shop.storage,
                    output,
                    key_for=key_for,
                    max_bytes=self._shop.max_output_bytes,
                    images=self._shop.images,
                )
            except StorageError as error:
                if self._model.provider.capabilities.resumable or not isinstance(output, BytesOutput):
                    raise StorageUnavailable from error
                self._log.warning("store_failed", error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_RETRY)

    # Ending

    async def _finish(self, media: list[StoredMedia], done: Done) -> None:
        self._leave()
        metrics = {**done.metrics, "seconds": round(time.monotonic() - self._started, 4)}
        finished = await self._persistently(
            lambda: transitions.finish(
                self._shop.database, self._job.id, self._job.fence, media, metrics=metrics, cost=done.cost
            )
        )
        if not finished:
            raise LeaseLost
        self._shop.pubsub.announce(Announcement(self._job.id))
        self._log.debug("job_completed", seconds=metrics["seconds"])

    async def _after_stop(self) -> None:
        """Told to stop: cancel, give back, or let go."""
        if self._stop is Stop.CANCEL:
            for handle in self._handles.values():
                await self._model.provider.cancel(handle)
            await self._settle(core.canceled())
        elif self._stop is Stop.RELEASE:
            await self._settle(core.released())
        else:
            self._log.warning("lease_lost")

    async def _after_error(self, error: Exception) -> None:
        if isinstance(error, _DeadlinePassedError):
            await self._settle(core.deadline_passed())
            return
        elapsed = timedelta(seconds=time.monotonic() - self._started)
        now = self._job.claimed_at + elapsed
        jitter = random.random()  # noqa: S311  jitter, no secret
        transition = core.decide_after_error(self._job.view, error, now, jitter)
        if transition.error is not None and transition.error.code is core.ErrorCode.INTERNAL_ERROR:
            self._log.error("attempt_crashed", exc_info=error)
        await self._settle(transition)

    async def _settle(self, transition: core.Transition) -> None:
        """Apply the transition that ends this attempt, and tell whom it concerns."""
        self._leave()
        status = await self._persistently(
            lambda: transitions.apply(
                self._shop.database,
                self._job.id,
                self._job.fence,
                transition,
                provider=self._model.provider.name,
            )
        )
        if status is None:
            self._log.warning("lease_lost")
            return
        if status is core.Status.IN_QUEUE:
            self._shop.on_due(transition.delay)
        self._shop.pubsub.announce(Announcement(self._job.id))
        self._log.info("attempt_ended", status=str(status), reason=str(transition.reason))

    def _leave(self) -> None:
        """From here on the row is being moved on: no renewal and no stop may interfere."""
        self._ending = True
        self._shop.keeper.remove(self)

    async def _persistently(self, statement: Callable[[], Awaitable[_T]]) -> _T:
        """Run a statement until the database answers.

        The result of this attempt exists only here, and the lease holds as long as nobody takes it:
        giving up at the first refused connection would throw finished work away.
        """
        pause = _FIRST_RETRY
        until = time.monotonic() + _SETTLE_TIMEOUT
        while True:
            try:
                return await statement()
            except DatabaseUnavailable:
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_RETRY)


class _DeadlinePassedError(Exception):
    """The client's deadline came before the outputs."""


def _expect_done(reply: Accepted | Done) -> Done:
    if isinstance(reply, Done):
        return reply
    message = "A provider that is not resumable must answer with its outputs"
    raise ProviderError(ProviderErrorKind.PROVIDER_BUG, message)


async def _shielded(section: Any) -> Any:  # noqa: ANN401  passes the coroutine's result through
    """Await a section to its end, also when this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(section)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        task.exception()  # seen: being cancelled is what counts now
        raise
