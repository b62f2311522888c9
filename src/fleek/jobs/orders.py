"""How an attempt obtains its outputs: orders that are open are resumed, and only then new ones placed.

A new order is intent, create, handle: the intent is committed before the provider is asked, and the
handle before anything else happens. Backends that cost nothing and keep nothing need neither.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.core.media import DEFAULT_SIDE, MAX_SEED, OutputFormat
from fleek.db.session import Database
from fleek.jobs import submissions
from fleek.jobs.claim import ClaimedJob, OpenOrder
from fleek.jobs.persistence import persistently, shielded
from fleek.providers.base import Accepted, AttemptContext, Done, GenerationRequest, Handle, Pending
from fleek.providers.registry import Model

_FIRST_POLL, _LONGEST_POLL = 0.5, 5.0
_POLL_GROWTH = 1.5

_ORDER_ENDED = frozenset(
    {ProviderErrorKind.PERMANENT_INPUT, ProviderErrorKind.PERMANENT_POLICY, ProviderErrorKind.PROVIDER_BUG}
)
"""What a poll raises when the order itself failed; every other error is trouble on the way to it."""


class DeadlinePassedError(Exception):
    """The client's deadline came before the outputs."""


class Orders:
    """The orders of one attempt."""

    def __init__(
        self, database: Database, job: ClaimedJob, model: Model, report_progress: Callable[[float], None]
    ) -> None:
        self._database = database
        self._job = job
        self._model = model
        self._provider = model.provider
        self._report_progress = report_progress
        self._claimed = time.monotonic()
        self._handles = {o.ordinal: o.handle for o in job.open_orders if o.handle is not None}

    async def obtain(self) -> Done:
        """The outputs of all orders, in the order of their indexes."""
        parts = [await self._fulfil(request) for request in self._requests()]
        costs = [part.cost for part in parts if part.cost is not None]
        return Done(
            outputs=tuple(output for part in parts for output in part.outputs),
            metrics=parts[0].metrics if len(parts) == 1 else {"orders": [dict(p.metrics) for p in parts]},
            cost=sum(costs, start=Decimal(0)) if costs else None,
        )

    async def cancel(self) -> None:
        """Ask the provider to stop whatever is still open. Best effort."""
        for handle in self._handles.values():
            await self._provider.cancel(handle)

    def now(self) -> timedelta:
        """How long ago the job was claimed; with the claim's time this is the database's clock."""
        return timedelta(seconds=time.monotonic() - self._claimed)

    def seed(self, index: int) -> int:
        """The seed of one output."""
        return int((self._job.parameters["seed"] + index) % (MAX_SEED + 1))

    def _requests(self) -> Iterator[GenerationRequest]:
        """The job as orders of at most `max_outputs` each; an open order keeps its own cut."""
        step = self._provider.capabilities.max_outputs
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
            seed=self.seed(first_index),
            first_index=first_index,
            count=count,
            width=parameters["width"] or DEFAULT_SIDE,
            height=parameters["height"] or DEFAULT_SIDE,
            negative_prompt=parameters["negative_prompt"],
            output_format=OutputFormat(parameters["output_format"]),
            input=self._job.input,
        )

    async def _fulfil(self, request: GenerationRequest) -> Done:
        """One order: resumed where it is open, else placed now."""
        for order in self._job.open_orders:
            if order.first_index == request.first_index:
                return await self._resume(order)
        if self._is_past_deadline():
            raise DeadlinePassedError
        capabilities = self._provider.capabilities
        if not (capabilities.paid or capabilities.resumable):
            return _expect_done(await self._provider.submit(request, self._context()))
        return await self._place(request)

    async def _place(self, request: GenerationRequest) -> Done:
        order = await submissions.intend(
            self._database, self._job.id, self._job.fence, request, self._provider.name
        )
        reply = await shielded(self._create_and_record(order, request))
        return reply if isinstance(reply, Done) else await self._await_result(order, reply.handle)

    async def _create_and_record(self, order: OpenOrder, request: GenerationRequest) -> Accepted | Done:
        """The create and the writing of its handle: one section that nothing interrupts."""
        try:
            reply = await self._provider.submit(request, self._context())
        except ProviderError as error:
            if error.kind is not ProviderErrorKind.AMBIGUOUS:
                await self._resolve(order, "rejected")
            raise
        if isinstance(reply, Accepted):
            await self._record(order, reply.handle)
        return reply

    async def _record(self, order: OpenOrder, handle: Handle) -> None:
        self._handles[order.ordinal] = handle
        job = self._job
        await persistently(
            lambda: submissions.record(self._database, job.id, job.fence, order.ordinal, handle)
        )

    async def _resolve(self, order: OpenOrder, resolution: str) -> None:
        await persistently(
            lambda: submissions.resolve(self._database, self._job.id, order.ordinal, resolution)
        )

    async def _resume(self, order: OpenOrder) -> Done:
        if order.handle is None:
            raise ProviderError(
                ProviderErrorKind.AMBIGUOUS,
                "An order may have been placed, and its reply was never seen: check the provider's account",
            )
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
            if self._is_past_deadline():
                await self._provider.cancel(handle)
                raise DeadlinePassedError
            wanted = reply.poll_after.total_seconds() if reply.poll_after is not None else pause
            await asyncio.sleep(wanted * random.uniform(0.8, 1.2))  # noqa: S311  jitter, no secret
            pause = min(pause * _POLL_GROWTH, _LONGEST_POLL)

    async def _poll(self, order: OpenOrder, handle: Handle) -> Pending | Done:
        """One poll. An order that ended badly is resolved; trouble on the way leaves it open."""
        try:
            return await self._provider.poll(handle, self._context())
        except ProviderError as error:
            if error.kind in _ORDER_ENDED:
                await self._resolve(order, "failed")
            raise

    def _is_past_deadline(self) -> bool:
        return self._job.claimed_at + self.now() >= self._job.view.deadline_at

    def _context(self) -> AttemptContext:
        return AttemptContext(
            job_id=self._job.id,
            number=self._job.fence,
            failures=self._job.view.failures,
            deadline=self._job.run_deadline_at,
            report_progress=self._report_progress,
        )


def _expect_done(reply: Accepted | Done) -> Done:
    if isinstance(reply, Done):
        return reply
    message = "A provider that is not resumable must answer with its outputs"
    raise ProviderError(ProviderErrorKind.PROVIDER_BUG, message)
