"""The port every generation backend implements (the requirements call it `MediaGeneratorModel`).

A provider turns one order into outputs. It either answers at once with `Done`, or accepts the
order with a durable `Handle` that any worker can poll later, also in another process.
Errors are raised as `core.errors.ProviderError`; vendor exceptions stop at the adapter's edge.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from fleek.core.errors import ConfigurationError
from fleek.core.media import DEFAULT_SIDE, OutputFormat

JsonSchema = Mapping[str, Any]


class ProviderUnavailable(ConfigurationError):
    """The provider lacks what only its operator can give it, such as a key; the message says what.

    Its models are listed as unavailable, and Fleek starts all the same.
    """


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; the engine asks this and never a provider's name."""

    resumable: bool = False
    """`submit` answers `Accepted`, and `poll` continues from its handle in any process."""
    client_chosen_id: bool = False
    lookup: bool = False
    """`find` can look an order up after an ambiguous submission."""
    cancel: bool = False
    progress: bool = False
    seed: bool = False
    """The same request with the same seed gives the same output."""
    max_outputs: int = 1
    """Outputs of one order; more are split into several orders."""
    batch: bool = False
    paid: bool = False
    """An order costs money, so it is never repeated silently."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One order: `count` outputs, the first of which is output `first_index` of the job."""

    model: str
    ref: str
    prompt: str
    seed: int
    """Seed of the first output; output i of the order has (seed + i) mod 2^32."""
    first_index: int = 0
    count: int = 1
    width: int = DEFAULT_SIDE
    height: int = DEFAULT_SIDE
    size_asked: bool = False
    """The client asked for this width and height; else a model with a size of its own may use that."""
    negative_prompt: str | None = None
    output_format: OutputFormat = OutputFormat.PNG
    input: Mapping[str, Any] = field(default_factory=dict)
    """What the model itself takes, already validated against `parameter_schema`."""


@dataclass(frozen=True, slots=True)
class AttemptContext:
    """What a provider may know about the attempt it works for."""

    job_id: UUID
    number: int
    """The attempt's number, which is the claim's fence: it grows over the job's life."""
    failures: int
    """Counted failures of the job before this attempt."""
    deadline: datetime
    """When the attempt must have ended (aware, UTC)."""
    time_left: timedelta
    """Until the client's deadline, by the database's clock: an order may live so long, and be resumed by
    later attempts. Nothing that an order is told about its end comes from this machine's clock."""
    report_progress: Callable[[float], None]
    """Takes a fraction from 0 to 1; cheap, may be called often, only from the event loop's thread."""
    intent_at: datetime | None = None
    """For `find`: when the intent of the lost order was committed (aware, UTC)."""


@dataclass(frozen=True, slots=True)
class Handle:
    """A durable reference to an accepted order: `id` is unique within the provider."""

    id: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BytesOutput:
    """A result that is already in memory."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """A result that is read once, chunk by chunk; it is never held whole in memory."""

    chunks: AsyncIterator[bytes]


Output = BytesOutput | StreamOutput


@dataclass(frozen=True, slots=True)
class Done:
    """The order is finished; the engine stores the outputs, in the order of their indexes."""

    outputs: tuple[Output, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    cost: Decimal | None = None
    """US dollars, when the backend says what it charged."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The backend took the order; the engine commits the handle before the first poll."""

    handle: Handle
    poll_after: timedelta = timedelta(seconds=0.5)


@dataclass(frozen=True, slots=True)
class Pending:
    """The order is still running."""

    progress: float | None = None
    poll_after: timedelta | None = None
    """What the backend asked for; None leaves the growing interval to the engine."""


@runtime_checkable
class Provider(Protocol):
    """One backend. Constructed once a process; every method may run for many jobs at once."""

    name: str
    capabilities: Capabilities

    async def submit(self, request: GenerationRequest, context: AttemptContext) -> Accepted | Done:
        """Place the order. One create, no retry of its own: retries are the job's."""
        ...

    async def poll(self, handle: Handle, context: AttemptContext) -> Pending | Done:
        """Ask for an accepted order."""
        ...

    async def cancel(self, handle: Handle) -> None:
        """Ask the backend to stop. Best effort: it never raises."""
        ...

    async def find(self, request: GenerationRequest, context: AttemptContext) -> Sequence[Handle]:
        """Look for an order whose reply was lost: every one that may be it; none when it cannot be told.

        Which of them belong to other orders is for the caller to know.
        """
        ...

    def parameter_schema(self, ref: str) -> JsonSchema | None:
        """JSON Schema (2020-12) of the request's `input`, or None when it is not known."""
        ...

    async def aclose(self) -> None:
        """Give back clients and threads."""
        ...


@runtime_checkable
class OpenProvider(Provider, Protocol):
    """A provider whose backend has more models than an operator wants to declare."""

    accepts_undeclared: bool
    """Whether the operator lets clients ask for models that are not declared."""

    def accepts(self, ref: str) -> bool:
        """Whether this may be a model of the backend. Asked for every unknown name, so it asks nobody."""
        ...
