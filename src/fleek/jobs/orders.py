"""How an attempt obtains its outputs: orders that are open are resumed, and only then new ones placed.

A new order is intent, create, handle: the intent is committed before the provider is asked, and the
handle before anything else happens. Backends that cost nothing and keep nothing need neither.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import structlog
from sqlalchemy.exc import IntegrityError

from fleek.core.errors import LeaseLost, ProviderError, ProviderErrorKind
from fleek.core.media import DEFAULT_SIDE, MAX_SEED, OutputFormat
from fleek.db.session import Database
from fleek.failpoints import Point, failpoint
from fleek.jobs import submissions
from fleek.jobs.claim import ClaimedJob, OpenOrder
from fleek.jobs.persistence import persistently, shielded
from fleek.observability.metrics import Metrics
from fleek.providers.base import Accepted, AttemptContext, Done, GenerationRequest, Handle, Pending
from fleek.providers.registry import Model

_log = structlog.get_logger(__name__)

_FIRST_POLL, _LONGEST_POLL = 0.5, 5.0
_POLL_GROWTH = 1.5
_REJECTED_LATE = "The provider took no order, as its first worker learned late"
_LOST = "An order may have been placed, and its reply was never seen: check the provider's account"

_ORDER_ENDED = frozenset(
    {ProviderErrorKind.PERMANENT_INPUT, ProviderErrorKind.PERMANENT_POLICY, ProviderErrorKind.PROVIDER_BUG}
)
"""What a poll raises when the order itself failed; every other error is trouble on the way to it."""


@dataclass(frozen=True, slots=True)
class OrderLimits:
    """How long the parts of an order may take."""

    create: timedelta = timedelta(seconds=20)
    """After this the create of a backend with handles counts as lost: those answer at once."""
    cancel: timedelta = timedelta(seconds=5)
    reconcile: timedelta = timedelta(seconds=120)
    """After its intent, before a job whose order was not found is given up as ambiguous."""


class DeadlinePassedError(Exception):
    """The client's deadline came before the outputs."""


class NoNewOrdersError(Exception):
    """The process winds down, and what is left of the job needs another order."""


class Orders:
    """The orders of one attempt."""

    def __init__(  # noqa: PLR0913  the claim, and what its orders are placed and told with
        self,
        database: Database,
        job: ClaimedJob,
        model: Model,
        report_progress: Callable[[float], None],
        *,
        lease: timedelta,
        limits: OrderLimits,
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._lease = lease
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._job = job
        self._model = model
        self._provider = model.provider
        self._report_progress = report_progress
        self._claimed = time.monotonic()
        self._winds_down = self._ends = False
        self._has_delivered = False
        self._handles = {o.ordinal: o.handle for o in job.open_orders if o.handle is not None}
        self.costs: dict[int, Decimal] = {}
        """US dollars by the ordinal of an order, as far as the provider said."""

    def wind_down(self) -> None:
        """Begin nothing any more; what has begun is followed on."""
        self._winds_down = True

    def end(self) -> None:
        """Place no order any more, whatever that gives up: the attempt is told to end."""
        self._ends = True

    def _takes_orders(self) -> bool:
        """A wind-down does not give up what was delivered already and cannot be asked for again."""
        keeps = self._has_delivered and not self._provider.capabilities.resumable
        return not self._ends and (keeps or not self._winds_down)

    async def cancel(self) -> None:
        """Ask the provider to stop whatever is still open."""
        for handle in self._handles.values():
            await self._cancel(handle)

    def now(self) -> timedelta:
        """How long ago the job was claimed; with the claim's time this is the database's clock."""
        return timedelta(seconds=time.monotonic() - self._claimed)

    def seed(self, index: int) -> int:
        """The seed of one output."""
        return int((self._job.parameters["seed"] + index) % (MAX_SEED + 1))

    def requests(self) -> Iterator[GenerationRequest]:
        """The job as orders of at most `max_outputs` each; an open order keeps its own cut."""
        step = self._provider.capabilities.max_outputs
        cuts = {order.first_index: order.count for order in self._job.open_orders}
        index = 0
        while index < self._job.n:
            next_cut = min((first for first in cuts if first > index), default=self._job.n)
            count = cuts.get(index, min(step, next_cut - index))
            yield self._request(index, count)
            index += count

    def _request(self, first_index: int, count: int) -> GenerationRequest:
        parameters = self._job.parameters
        return GenerationRequest(
            model=self._job.model,
            ref=self._model.ref,
            prompt=self._job.prompt,
            seed=self.seed(first_index),
            first_index=first_index,
            count=count,
            width=parameters["width"] or DEFAULT_SIDE,
            height=parameters["height"] or DEFAULT_SIDE,
            size_asked=parameters["width"] is not None,
            negative_prompt=parameters["negative_prompt"],
            output_format=OutputFormat(parameters["output_format"]),
            input=self._job.input,
        )

    async def fulfil(self, request: GenerationRequest) -> Done:
        """One order: resumed where it is open, else placed now."""
        for order in self._job.open_orders:
            if order.first_index == request.first_index:
                return await self._resume(order, request)
        if self._is_past_deadline():
            raise DeadlinePassedError
        capabilities = self._provider.capabilities
        if not (capabilities.paid or capabilities.resumable):
            return _expect_done(await self._provider.submit(request, self._context()))
        if not self._takes_orders():
            raise NoNewOrdersError
        order, reply = await shielded(self._place(request))
        if isinstance(reply, Done):
            return await self._delivered(order, reply)
        if reply is None:
            return await self._resume(order, request)
        return await self._poll_on(order, reply.handle)

    async def _place(self, request: GenerationRequest) -> tuple[OpenOrder, Accepted | Done | None]:
        """Intent, create, handle: one section that nothing interrupts. None: the reply was lost."""
        job, provider = self._job, self._provider.name
        order = await persistently(
            lambda: submissions.intend(self._database, job.id, job.fence, request, provider, self._lease)
        )
        self._metrics.order_placed(provider, job.model)
        _log.info("order_placed", ordinal=order.ordinal, outputs=request.count)
        await failpoint(Point.ORDER_AFTER_INTENT)
        if not self._takes_orders():
            # Told to stop while the intent was on its way, which can take long: nothing was asked for yet.
            await self._resolve(order, "rejected")
            raise NoNewOrdersError
        try:
            async with asyncio.timeout(self._create_timeout()):
                reply = await self._provider.submit(request, self._context())
        except TimeoutError:
            _log.warning("order_reply_lost", ordinal=order.ordinal, error="No answer in time")
            return order, None
        except ProviderError as error:
            if error.kind is ProviderErrorKind.AMBIGUOUS:
                _log.warning("order_reply_lost", ordinal=order.ordinal, error=error.message)
                return order, None
            await self._resolve(order, "rejected")
            raise
        await failpoint(Point.ORDER_AFTER_CREATE)
        if isinstance(reply, Accepted):
            try:
                await self._record(order, reply.handle)
            except IntegrityError:
                # A job like this one, whose own order was lost, has taken ours for it. What it follows is not
                # ours to cancel any more.
                self._handles.pop(order.ordinal, None)
                _log.warning("order_adopted_elsewhere", handle=reply.handle.id)
                return order, None
            await failpoint(Point.ORDER_AFTER_RECORD)
        return order, reply

    def _create_timeout(self) -> float:
        """Seconds. A backend that answers with its outputs may take the whole attempt for it."""
        if self._provider.capabilities.resumable:
            return self._limits.create.total_seconds()
        return (self._job.run_deadline_at - self._time()).total_seconds()

    async def _record(self, order: OpenOrder, handle: Handle) -> None:
        self._handles[order.ordinal] = handle
        job = self._job
        await persistently(
            lambda: submissions.record(self._database, job.id, job.fence, order.ordinal, handle)
        )
        _log.info("order_recorded", ordinal=order.ordinal, handle=handle.id)

    async def _resolve(self, order: OpenOrder, resolution: str) -> None:
        self._handles.pop(order.ordinal, None)
        if await persistently(
            lambda: submissions.resolve(self._database, self._job.id, order.ordinal, resolution)
        ):
            self._metrics.order_resolved(self._provider.name, resolution)

    async def _resume(self, order: OpenOrder, request: GenerationRequest) -> Done:
        known = None if order.handle is None else order.handle.id
        _log.info("order_resumed", ordinal=order.ordinal, handle=known)
        handle = order.handle if order.handle is not None else await self._reconcile(order, request)
        return await self._poll_on(order, handle)

    async def _reconcile(self, order: OpenOrder, request: GenerationRequest) -> Handle:
        """Find out what came of an order whose reply was never seen, for a while.

        Its first worker may still write the handle down, lease or not; or the provider knows exactly one
        order that fits. Absence proves nothing, so an order that is not found is never placed again.
        """
        pause = _FIRST_POLL
        while True:
            known = await submissions.get_reply(self._database, self._job.id, order.ordinal)
            if known.handle is not None:
                self._handles[order.ordinal] = known.handle
                return known.handle
            if known.is_rejected:
                raise ProviderError(ProviderErrorKind.TRANSIENT, _REJECTED_LATE)
            if await self._adopt(order, request):
                continue
            if self._time() >= order.intent_at + self._limits.reconcile:
                await self._give_up(order)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_POLL)

    async def _give_up(self, order: OpenOrder) -> None:
        """Nobody knows what came of an order: another one only where the model's configuration allows it.

        Returns where its handle has become known at the last moment; raises in every other case.
        """
        job, allowed = self._job, self._model.max_paid_submissions
        is_last = job.view.failures + 1 >= job.view.max_attempts
        if is_last or allowed == 1 or await self._count_paid(order) >= allowed:
            raise ProviderError(ProviderErrorKind.AMBIGUOUS, _LOST)
        if await persistently(lambda: submissions.give_up(self._database, job.id, job.fence, order.ordinal)):
            self._metrics.order_resolved(self._provider.name, "ambiguous")
            raise ProviderError(ProviderErrorKind.TRANSIENT, _LOST)
        known = await submissions.get_reply(self._database, job.id, order.ordinal)
        if known.handle is None:
            raise LeaseLost

    async def _count_paid(self, order: OpenOrder) -> int:
        return await persistently(
            lambda: submissions.count_paid(self._database, self._job.id, order.first_index)
        )

    async def _adopt(self, order: OpenOrder, request: GenerationRequest) -> bool:
        """Take over the one order at the provider that fits; not one that another submission owns."""
        if not self._provider.capabilities.lookup:
            return False
        try:
            found = await self._find(order, request)
            if found is not None:
                await self._record(order, found)
        except ProviderError as error:
            _log.warning("lookup_failed", error=error.message)
            return False
        except IntegrityError:
            # It must not be canceled with this job either.
            self._handles.pop(order.ordinal, None)
            _log.warning("lookup_found_another_order", ordinal=order.ordinal)
            return False
        return found is not None

    async def _find(self, order: OpenOrder, request: GenerationRequest) -> Handle | None:
        """The one order that fits and is nobody's; orders of this very job, or of one like it, are known."""
        found = await self._provider.find(request, self._context(order.intent_at))
        ids = [handle.id for handle in found]
        owned = await submissions.list_owned(self._database, self._provider.name, ids)
        free = [handle for handle in found if handle.id not in owned]
        return free[0] if len(free) == 1 else None

    async def _poll_on(self, order: OpenOrder, handle: Handle) -> Done:
        """Poll, at a growing interval, until the order has ended."""
        pause = _FIRST_POLL
        while True:
            reply = await self._poll(order, handle)
            if isinstance(reply, Done):
                return await self._delivered(order, reply)
            if reply.progress is not None:
                self._report_progress(reply.progress)
            if self._is_past_deadline():
                await self._cancel(handle)
                raise DeadlinePassedError
            wanted = reply.poll_after.total_seconds() if reply.poll_after is not None else pause
            await asyncio.sleep(wanted * random.uniform(0.8, 1.2))  # noqa: S311  jitter, no secret
            pause = min(pause * _POLL_GROWTH, _LONGEST_POLL)

    async def _cancel(self, handle: Handle) -> None:
        """Best effort: a provider that fails at this, or never answers, does not keep the job from ending."""
        try:
            async with asyncio.timeout(self._limits.cancel.total_seconds()):
                await self._provider.cancel(handle)
        except Exception as error:  # noqa: BLE001  the port forbids it; the job must end all the same
            _log.warning("cancel_failed", handle=handle.id, error=type(error).__name__)

    async def _poll(self, order: OpenOrder, handle: Handle) -> Pending | Done:
        """One poll. An order that ended badly is resolved; trouble on the way leaves it open."""
        try:
            return await self._provider.poll(handle, self._context())
        except ProviderError as error:
            if error.ends_order or error.kind in _ORDER_ENDED:
                await self._resolve(order, "failed")
            raise

    async def _delivered(self, order: OpenOrder, done: Done) -> Done:
        """Note what a finished order cost. One without outputs has failed: asking again cannot help."""
        if not done.outputs:
            await self._resolve(order, "failed")
            raise _no_outputs()
        if done.cost is not None:
            self.costs[order.ordinal] = done.cost
        self._has_delivered = True
        return done

    def _time(self) -> datetime:
        """The database's time: that of the claim, and what has passed since."""
        return self._job.claimed_at + self.now()

    def _is_past_deadline(self) -> bool:
        return self._time() >= self._job.view.deadline_at

    def _context(self, intent_at: datetime | None = None) -> AttemptContext:
        return AttemptContext(
            job_id=self._job.id,
            number=self._job.fence,
            failures=self._job.view.failures,
            deadline=self._job.run_deadline_at,
            time_left=max(self._job.view.deadline_at - self._time(), timedelta(0)),
            report_progress=self._report_progress,
            intent_at=intent_at,
        )


def _expect_done(reply: Accepted | Done) -> Done:
    if not isinstance(reply, Done):
        message = "A provider that is not resumable must answer with its outputs"
        raise ProviderError(ProviderErrorKind.PROVIDER_BUG, message)
    if not reply.outputs:
        raise _no_outputs()
    return reply


def _no_outputs() -> ProviderError:
    return ProviderError(ProviderErrorKind.PROVIDER_BUG, "The provider answered without any output")
