"""One claimed job, from its claim to the transition that ends the attempt.

`Execution.run` reads as the life of an attempt: obtain the outputs, store them, finish. Whatever goes
wrong becomes one decision of `core.job`, applied once.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import structlog

from fleek.core import job as core
from fleek.core.errors import FleekError, LeaseLost, ProviderError, ProviderErrorKind, StorageUnavailable
from fleek.core.ids import new_id
from fleek.core.media import MediaType, object_key
from fleek.db.session import Database
from fleek.failpoints import Point, failpoint
from fleek.jobs import transitions
from fleek.jobs.attempt_log import attempt_logged, tell_finished, tell_stored
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.keeper import LeaseKeeper, Stop
from fleek.jobs.orders import DeadlinePassedError, NoNewOrdersError, OrderLimits, Orders
from fleek.jobs.persistence import persistently
from fleek.jobs.transitions import Moved, StoredMedia
from fleek.media.images import ImageWorker
from fleek.media.outputs import StoredOutput, store_output
from fleek.observability.metrics import AttemptEnd, Metrics
from fleek.providers.base import BytesOutput, Output
from fleek.providers.registry import Model
from fleek.queue.base import Announcement, PubSub
from fleek.storage.base import ObjectStorage, StorageError

_log = structlog.get_logger(__name__)

_PROGRESS_SPACING = 0.1
"""Seconds between two announcements of one job's progress."""
_FIRST_PUT_PAUSE, _LONGEST_PUT_PAUSE = 0.2, 5.0


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
    order_limits: OrderLimits = field(default_factory=OrderLimits)
    metrics: Metrics = field(default_factory=Metrics)
    media_ttl: timedelta | None = None
    """After which results expire; None: never."""
    log_prompts: bool = False


class Execution:
    """Runs one attempt. Construct it, `run` it in a task of its own, `stop` it from outside."""

    def __init__(self, job: ClaimedJob, model: Model, workshop: Workshop) -> None:
        self._job = job
        self._model = model
        self._shop = workshop
        self._orders = Orders(
            workshop.database,
            job,
            model,
            self._report_progress,
            lease=workshop.keeper.lease,
            limits=workshop.order_limits,
            metrics=workshop.metrics,
        )
        self._result_waits = False
        self._task: asyncio.Task[None] | None = None
        self._stop = Stop.CANCEL if job.cancel_requested else None
        self._ending = False
        self._announced = 0.0
        self.progress: float | None = None

    @property
    def job(self) -> ClaimedJob:
        """The claim that this execution works for."""
        return self._job

    def stop(self, why: Stop) -> None:
        """Ask the execution to end. The first reason counts; one whose end is being written goes on."""
        if self._stop is not None or self._ending:
            return
        self._stop = why
        self._orders.end()
        if self._task is not None:
            self._task.cancel()

    def wind_down(self) -> None:
        """The process is about to end: finish what has begun, and begin nothing that could cost money."""
        self._orders.wind_down()

    async def run(self) -> None:
        """Work until the job has moved on, one way or another."""
        job, shop = self._job, self._shop
        told = attempt_logged(job, self._model.provider.name, with_prompt=shop.log_prompts)
        with told, shop.metrics.job_running(job.model):
            await self._run()

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        self._shop.keeper.add(self)
        try:
            if self._stop is None:
                await self._attempt()
            else:
                await self._after_stop(self._stop)
        except asyncio.CancelledError:
            await self._after_stop(self._stop or Stop.RELEASE)
        except NoNewOrdersError:
            await self._after_stop(Stop.RELEASE)
        except LeaseLost:
            _log.warning("lease_lost")
        except Exception as error:  # noqa: BLE001  every error of an attempt becomes a decision
            await self._after_error(error)
        finally:
            self._shop.keeper.remove(self)

    async def _attempt(self) -> None:
        await failpoint(Point.CLAIM_AFTER_COMMIT)
        limit = (self._job.run_deadline_at - self._job.claimed_at).total_seconds()
        try:
            async with asyncio.timeout(limit):
                media, metrics = await self._produce()
        except TimeoutError:
            message = f"The attempt took longer than {limit:.0f} seconds"
            raise ProviderError(ProviderErrorKind.TIMEOUT, message) from None
        await self._finish(media, metrics)

    async def _produce(self) -> tuple[list[StoredMedia], dict[str, Any]]:
        """Obtain and store, order by order; what the provider measured comes along."""
        media: list[StoredMedia] = []
        metrics: list[dict[str, Any]] = []
        for request in self._orders.requests():
            done = await self._orders.fulfil(request)
            self._result_waits = True
            for offset, output in enumerate(done.outputs):
                seed = self._orders.seed(request.first_index + offset)
                media.append(await self._store(len(media), seed, output))
            metrics.append(dict(done.metrics))
            tell_stored(media[-len(done.outputs) :])
            self._result_waits = False
        return media, metrics[0] if len(metrics) == 1 else {"orders": metrics}

    async def _store(self, index: int, seed: int, output: Output) -> StoredMedia:
        ids = self._job.media_ids
        media_id = ids[index] if index < len(ids) else new_id()

        def key_for(media_type: MediaType) -> str:
            return object_key(self._job.id, media_id, self._job.fence, media_type)

        await failpoint(Point.OUTPUT_BEFORE_PUT)
        stored = await self._put(output, key_for)
        await failpoint(Point.OUTPUT_AFTER_PUT)
        return StoredMedia(
            id=media_id,
            index=index,
            seed=seed,
            key=stored.key,
            content_type=stored.content_type,
            size_bytes=stored.size_bytes,
            width=stored.width,
            height=stored.height,
            sha256=stored.sha256,
            thumbhash=stored.thumbhash,
        )

    async def _put(self, output: Output, key_for: Callable[[MediaType], str]) -> StoredOutput:
        """Store one output.

        Bytes that only this process has are offered again until the attempt's end. What an open order
        still has is not waited for here: the job is deferred, and its next claim resumes the order.
        """
        pause = _FIRST_PUT_PAUSE
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
                _log.warning("store_failed", error=str(error))
                if self._model.provider.capabilities.resumable or not isinstance(output, BytesOutput):
                    raise StorageUnavailable from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PUT_PAUSE)

    async def _finish(self, media: list[StoredMedia], measured: dict[str, Any]) -> None:
        self._leave()
        job, database = self._job, self._shop.database
        metrics = {**measured, "seconds": round(self._orders.now().total_seconds(), 4)}
        costs, ttl = self._orders.costs, self._shop.media_ttl
        await failpoint(Point.FINISH_BEFORE_COMMIT)
        moved = await persistently(
            lambda: transitions.finish(
                database, job.id, job.fence, media, metrics=metrics, costs=costs, media_ttl=ttl
            )
        )
        await failpoint(Point.FINISH_AFTER_COMMIT)
        if moved is not None:
            self._count(moved, media)
        elif await self._outcome() is not core.Status.COMPLETED:
            raise LeaseLost
        self._shop.pubsub.announce(Announcement(job.id))
        tell_finished(core.Status.COMPLETED, core.Reason.COMPLETED, self._orders.now())

    async def _outcome(self) -> core.Status | None:
        """What this claim led to, when a change of ours found nothing left to change."""
        job, database = self._job, self._shop.database
        return await persistently(lambda: transitions.get_outcome_or_none(database, job.id, job.fence))

    async def _after_stop(self, why: Stop) -> None:
        """Told to stop: cancel, give back, or let go."""
        if why is Stop.LOST:
            _log.warning("lease_lost")
        elif why is Stop.CANCEL:
            await self._orders.cancel()
            await self._settle(core.canceled())
        else:
            await self._settle(core.released())

    async def _after_error(self, error: Exception) -> None:
        if isinstance(error, DeadlinePassedError):
            await self._settle(core.deadline_passed())
            return
        now = self._job.claimed_at + self._orders.now()
        jitter = random.random()  # noqa: S311  jitter, no secret
        view = replace(self._job.view, result_waits=self._result_waits)
        transition = core.decide_after_error(view, error, now, jitter)
        if not isinstance(error, FleekError):
            _log.error("attempt_crashed", exc_info=error)
        if await self._settle(transition, error) is core.Status.ERROR:
            # Nobody will come back for what is still open: it need not go on, and cost. Not before the job
            # has ended: were it somebody else's by now, the order would be theirs too.
            await self._orders.cancel()

    async def _settle(
        self, transition: core.Transition, error: Exception | None = None
    ) -> core.Status | None:
        """Apply the transition that ends this attempt, and tell whom it concerns; None: not ours any more."""
        self._leave()
        job, database, provider = self._job, self._shop.database, self._model.provider.name
        moved = await persistently(
            lambda: transitions.apply(database, job.id, job.fence, transition, provider=provider)
        )
        if moved is not None:
            self._count(moved, transition=transition, error=error)
        status = moved.status if moved is not None else await self._outcome()
        if status is None:
            _log.warning("lease_lost")
            return None
        if status is core.Status.IN_QUEUE:
            self._shop.on_due(transition.delay)
        self._shop.pubsub.announce(Announcement(job.id))
        reason = moved.reason if moved is not None else transition.reason
        tell_finished(status, reason, self._orders.now(), error=transition.error, retry_in=transition.delay)
        return status

    def _count(
        self,
        moved: Moved,
        media: Sequence[StoredMedia] = (),
        *,
        transition: core.Transition | None = None,
        error: Exception | None = None,
    ) -> None:
        """Note the end that was committed; what found nothing left to change is nobody's, or another's."""
        ran, delivered = self._orders.now(), moved.status is core.Status.COMPLETED
        failure = transition.error if transition is not None else None
        self._shop.metrics.attempt_ended(
            AttemptEnd(
                provider=self._model.provider.name,
                model=self._job.model,
                status=moved.status,
                outcome=moved.reason,
                error_code=failure.code if failure is not None else None,
                provider_error=error.kind if isinstance(error, ProviderError) else None,
                resolutions=moved.resolutions,
                has_paused=moved.has_paused,
                ran=ran,
                took=self._job.claimed_at - self._job.asked_at + ran,
                stored_bytes=sum(one.size_bytes for one in media),
                stored_objects=len(media),
                cost=float(sum(self._orders.costs.values())) if delivered else 0.0,
            )
        )

    def _leave(self) -> None:
        """From here on the row is being moved on: no renewal and no stop may interfere."""
        self._ending = True
        self._shop.keeper.remove(self)

    def _report_progress(self, fraction: float) -> None:
        """Keep the progress for the next renewal, and tell waiters now and then."""
        if not math.isfinite(fraction):
            return
        self.progress = min(max(fraction, self.progress or 0.0), 1.0)
        now = time.monotonic()
        if now - self._announced >= _PROGRESS_SPACING:
            self._announced = now
            self._shop.pubsub.announce(Announcement(self._job.id, progress=self.progress))
