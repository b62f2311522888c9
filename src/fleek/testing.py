"""Fakes for people who test against Fleek: real objects behind its ports, with nothing patched.

    vendor = FakeVendor()
    provider = FakeProvider(vendor, capabilities=RESUMABLE)      # or SYNCHRONOUS, the default
    provider.on_submit(ProviderError(ProviderErrorKind.TRANSIENT, "busy"))
    provider.on_poll(Pending(progress=0.5), hold(event))

A `FakeVendor` is what lies behind a provider: two providers that share one are two worker processes that
talk to the same backend. It counts what it was asked for, so a test can say "ordered once".
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import uuid4

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.core.media import MAX_SEED
from fleek.providers.base import (
    Accepted,
    AttemptContext,
    BytesOutput,
    Capabilities,
    Done,
    GenerationRequest,
    Handle,
    JsonSchema,
    Pending,
)
from fleek.queue.base import Announcement

SYNCHRONOUS = Capabilities(seed=True, max_outputs=8)
RESUMABLE = Capabilities(resumable=True, cancel=True, seed=True, paid=True, max_outputs=8)
"""A backend that answers with a handle, and charges for every order."""

_SIDE = 8

SubmitStep = Exception | Accepted | Done | Callable[[], Awaitable[Accepted | Done | None]]
PollStep = Exception | Pending | Done | Callable[[], Awaitable[Pending | Done | None]]
"""What one call does: raise, answer, or run a coroutine, whose None means "go on as usual"."""


def fake_picture(seed: int) -> bytes:
    """A whole PNG of 8 x 8 pixels in one colour: other bytes for every seed, the same for the same."""
    pixel = (seed % 2**24).to_bytes(3, "big")
    rows = (b"\0" + pixel * _SIDE) * _SIDE
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"tEXt", b"seed\0%d" % seed),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def fake_outputs(request: GenerationRequest, cost: Decimal | None = None) -> Done:
    """What a `FakeProvider` makes of an order: one `fake_picture` for each of its seeds."""
    seeds = ((request.seed + index) % (MAX_SEED + 1) for index in range(request.count))
    return Done(tuple(BytesOutput(fake_picture(seed)) for seed in seeds), {"fake": True}, cost)


@dataclass
class FakeVendor:
    """The backend behind a provider, which outlives every process that talks to it."""

    creates: list[GenerationRequest] = field(default_factory=list)
    """Every order that was asked for, also those that were refused."""
    orders: dict[str, GenerationRequest] = field(default_factory=dict)
    """The orders that were taken, by the id of their handle."""
    polled: list[str] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)
    price: Decimal | None = None
    """US dollars for one order."""

    def take(self, request: GenerationRequest) -> Handle:
        """Take an order."""
        handle_id = f"order-{uuid4()}"
        self.orders[handle_id] = request
        return Handle(handle_id, {"index": request.first_index})


class FakeProvider:
    """A provider that does what a test tells it; left alone, every order succeeds at once."""

    def __init__(
        self,
        vendor: FakeVendor | None = None,
        *,
        name: str = "fake",
        capabilities: Capabilities = SYNCHRONOUS,
        schema: JsonSchema | None = None,
    ) -> None:
        self.name = name
        self.capabilities = capabilities
        self.vendor = vendor or FakeVendor()
        self.closed = False
        self._schema = schema
        self._submits: deque[SubmitStep] = deque()
        self._polls: deque[PollStep] = deque()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FakeProvider:
        """As an entry point of `fleek.providers`: the table may hold `name`."""
        return cls(name=str(config.get("name", "fake")))

    def on_submit(self, *steps: SubmitStep) -> None:
        """Say what the next calls of `submit` do, one step a call."""
        self._submits.extend(steps)

    def on_poll(self, *steps: PollStep) -> None:
        """Say what the next calls of `poll` do, one step a call."""
        self._polls.extend(steps)

    async def submit(self, request: GenerationRequest, context: AttemptContext) -> Accepted | Done:  # noqa: ARG002  the port's signature
        """The next step; as usual: a handle where the backend is resumable, else the outputs."""
        self.vendor.creates.append(request)
        reply: Accepted | Done | None = await _do(self._submits.popleft()) if self._submits else None
        if reply is not None:
            return reply
        if self.capabilities.resumable:
            return Accepted(self.vendor.take(request))
        return fake_outputs(request, self.vendor.price)

    async def poll(self, handle: Handle, context: AttemptContext) -> Pending | Done:  # noqa: ARG002  the port's signature
        """The next step; as usual: the outputs of the order."""
        self.vendor.polled.append(handle.id)
        reply: Pending | Done | None = await _do(self._polls.popleft()) if self._polls else None
        if reply is not None:
            return reply
        if handle.id not in self.vendor.orders:
            raise ProviderError(ProviderErrorKind.PROVIDER_BUG, "The backend does not know this order")
        return fake_outputs(self.vendor.orders[handle.id], self.vendor.price)

    async def cancel(self, handle: Handle) -> None:
        """Note it."""
        self.vendor.canceled.append(handle.id)

    async def find(self, request: GenerationRequest, context: AttemptContext) -> Sequence[Handle]:  # noqa: ARG002  the port's signature
        """The orders that were taken for this very request."""
        found = [handle_id for handle_id, order in self.vendor.orders.items() if order == request]
        return [Handle(handle_id, {"index": request.first_index}) for handle_id in found]

    def parameter_schema(self, ref: str) -> JsonSchema | None:  # noqa: ARG002  the port's signature
        """What was given."""
        return self._schema

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True


def hold(event: asyncio.Event) -> Callable[[], Awaitable[None]]:
    """A step that waits for an event, and then goes on as usual."""

    async def wait() -> None:
        await event.wait()

    return wait


async def _do(step: Any) -> Any:  # noqa: ANN401  a step of either kind, and what it gives
    """Do what a step says; None where it says to go on as usual."""
    if isinstance(step, Exception):
        raise step
    return await step() if callable(step) else step


class RecordingWaker:
    """Notes which queues were to be woken, in order."""

    def __init__(self) -> None:
        self.woken: list[str] = []
        self.closed = False

    def wake(self, queue: str) -> None:
        """Note it."""
        self.woken.append(queue)

    def close(self) -> None:
        """Note it."""
        self.closed = True


class RecordingPubSub:
    """Notes announcements, and hands each to the listeners of this process at once."""

    def __init__(self) -> None:
        self.announced: list[Announcement] = []
        self.closed = False
        self._listeners: list[Callable[[Announcement], None]] = []
        self._on_connect: list[Callable[[], None]] = []

    def announce(self, announcement: Announcement) -> None:
        """Note it, and tell the listeners."""
        self.announced.append(announcement)
        for listener in self._listeners:
            listener(announcement)

    def listen(self, on_announcement: Callable[[Announcement], None], on_connect: Callable[[], None]) -> None:
        """Add a listener."""
        self._listeners.append(on_announcement)
        self._on_connect.append(on_connect)

    def reconnect(self) -> None:
        """Pretend that the connection was lost and is there again."""
        for on_connect in self._on_connect:
            on_connect()

    async def start(self) -> None:
        """Connect."""
        self.reconnect()

    async def aclose(self) -> None:
        """Note it."""
        self.closed = True
