"""The built-in provider: it draws a poster, takes its time over it, and fails when it is told to.

It needs no key, no network and no model weights, so everything about Fleek can be tried with it.
Its parameters rehearse what real backends do: errors of every kind, crashes, hangs, slow, huge
and broken outputs.
"""

from __future__ import annotations

import asyncio
import math
import os
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleek.core.errors import ConfigurationError, ProviderError, ProviderErrorKind
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
    Output,
    Pending,
    StreamOutput,
)
from fleek.providers.drawing import draw, encode

_MAX_SECONDS = 600
_MAX_FAILURES = 100
_MAX_HUGE_BYTES = 2**40
_MAX_OUTPUTS = 8
_THREADS = 4
_CHUNK = 64 * 1024
"""Bytes of one piece of a streamed output."""
_STEPS_PER_SECOND = 20
"""How often the progress moves while the provider waits."""
_SECONDS_PER_PIXEL = 1e-7
"""About what a pixel costs to draw and encode: it weighs the drawing against the delay."""
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_LONGEST_PNG_CHUNK = 2**31 - 1
_NO_MEDIA = b"<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>\n"
_CRASH_STATUS = 70
_CRASH_REFUSED = (
    "The operator does not allow the demo model to crash; "
    "`allow_crash = true` under [providers.demo] in fleek.toml does"
)


class _Config(BaseModel):
    """The `[providers.demo]` table."""

    model_config = ConfigDict(extra="forbid")

    default_delay: float = Field(default=1.0, ge=0, le=_MAX_SECONDS, allow_inf_nan=False)
    allow_crash: bool = False


@dataclass(frozen=True, slots=True)
class _Parameters:
    """The request's `input`; the names and bounds are those of `parameter_schema`."""

    delay_seconds: float
    fail_times: int = 0
    error: str | None = None
    retry_after_seconds: float = 1
    crash: bool = False
    hang: bool = False
    slow_output_seconds: float = 0
    huge_output_bytes: int = 0
    wrong_type: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any], default_delay: float) -> Self:
        """The parameters of a request that was validated, with defaults for what it left out."""
        known = {field.name for field in fields(cls)}
        values = {"delay_seconds": default_delay} | {key: given[key] for key in given if key in known}
        # JSON Schema takes 5.0 for an integer.
        return cls(**values | {"huge_output_bytes": int(values.get("huge_output_bytes", 0))})


class DemoProvider:
    """Draws deterministic pictures in threads of its own; `negative_prompt` changes nothing."""

    name = "demo"
    capabilities = Capabilities(progress=True, seed=True, max_outputs=_MAX_OUTPUTS)

    def __init__(self, *, default_delay: float = 1.0, allow_crash: bool = False) -> None:
        self._default_delay = default_delay
        self._allow_crash = allow_crash
        threads = min(_THREADS, os.cpu_count() or 1)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="fleek-demo")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A provider from its `[providers.demo]` table; ConfigurationError names the key that is wrong."""
        try:
            settings = _Config.model_validate(dict(config))
        except ValidationError as error:
            problems = "; ".join(
                f"providers.demo.{item['loc'][0]}: {item['msg']}"
                for item in error.errors(include_input=False, include_url=False)
            )
            raise ConfigurationError(f"{problems} (known keys: {', '.join(_Config.model_fields)})") from None
        return cls(default_delay=settings.default_delay, allow_crash=settings.allow_crash)

    async def submit(self, request: GenerationRequest, context: AttemptContext) -> Accepted | Done:
        """Wait, perhaps fail as the request asks, and draw; raises ProviderError."""
        parameters = _Parameters.read(request.input, self._default_delay)
        self._crash_if_asked(parameters)
        work = request.count * request.width * request.height * _SECONDS_PER_PIXEL
        progress = _Progress(context.report_progress, parameters.delay_seconds, work)
        try:
            # A simulated failure comes half-way, as it does when a real model breaks at its work.
            await progress.wait(0, 0.5)
            await _misbehave(parameters, context)
            await progress.wait(0.5, 1)
            outputs = [await self._output(request, i, parameters, progress) for i in range(request.count)]
            progress.finish()
        finally:
            progress.close()
        return Done(tuple(outputs))

    async def poll(self, handle: Handle, context: AttemptContext) -> Pending | Done:  # noqa: ARG002
        """Nothing is ever accepted for later, so `handle` cannot be one of this provider's."""
        raise ProviderError(ProviderErrorKind.PROVIDER_BUG, "The demo provider has no orders to poll")

    async def cancel(self, handle: Handle) -> None:
        """Nothing runs elsewhere; cancelling `submit` itself stops the work."""

    async def find(
        self,
        request: GenerationRequest,  # noqa: ARG002  the port's signature
        context: AttemptContext,  # noqa: ARG002  the port's signature
    ) -> Sequence[Handle]:
        """No order outlives `submit`."""
        return ()

    def parameter_schema(self, ref: str) -> JsonSchema | None:  # noqa: ARG002  the port's signature
        """What `input` may hold; the same for every `ref`."""
        return _schema(self._default_delay)

    async def aclose(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)

    def _crash_if_asked(self, parameters: _Parameters) -> None:
        if not parameters.crash:
            return
        if not self._allow_crash:
            raise ProviderError(ProviderErrorKind.PERMANENT_INPUT, _CRASH_REFUSED)
        os._exit(_CRASH_STATUS)

    async def _output(
        self, request: GenerationRequest, index: int, parameters: _Parameters, progress: _Progress
    ) -> Output:
        """Output `index` of the order, in the shape that the parameters ask for."""
        if parameters.huge_output_bytes:
            return StreamOutput(_huge_stream(request, parameters.huge_output_bytes))
        data = _NO_MEDIA
        if not parameters.wrong_type:
            data = await self._picture(request, index, progress)
        if parameters.slow_output_seconds:
            return StreamOutput(_slow_stream(data, parameters.slow_output_seconds))
        return BytesOutput(data)

    async def _picture(self, request: GenerationRequest, index: int, progress: _Progress) -> bytes:
        """Draw and encode in a thread, which stops at its next step when this is cancelled."""
        loop, stopped = asyncio.get_running_loop(), threading.Event()
        seed = (request.seed + index) % (MAX_SEED + 1)

        def on_progress(share: float) -> None:
            if stopped.is_set():
                raise _StoppedError
            loop.call_soon_threadsafe(progress.draw, (index + share) / request.count)

        def work() -> bytes:
            image = draw(request.prompt, seed, request.width, request.height, on_progress=on_progress)
            return encode(image, request.output_format)

        try:
            return await loop.run_in_executor(self._executor, work)
        finally:
            stopped.set()


class _StoppedError(Exception):
    """Ends a drawing that nobody waits for any more."""


class _Progress:
    """One bar over the delay and the drawing, each as long as it takes; it never goes back."""

    def __init__(self, report: Callable[[float], None], delay: float, work: float) -> None:
        self._report: Callable[[float], None] | None = report
        self._delay = delay
        self._delay_share = delay / (delay + work)
        self._last = 0.0

    async def wait(self, start: float, end: float) -> None:
        """Sleep through a part of the delay."""
        seconds = self._delay * (end - start)
        steps = math.ceil(seconds * _STEPS_PER_SECOND)
        for step in range(1, steps + 1):
            await asyncio.sleep(seconds / steps)
            self._set((start + (end - start) * step / steps) * self._delay_share)

    def draw(self, share: float) -> None:
        """A share of all pictures is drawn; the last step is left to `finish`, since encoding follows."""
        self._set(self._delay_share + (1 - self._delay_share) * share * 0.95)

    def finish(self) -> None:
        """Everything is there."""
        self._set(1.0)

    def close(self) -> None:
        """Be silent from now on: a thread may still be about to report."""
        self._report = None

    def _set(self, value: float) -> None:
        if self._report is not None and value > self._last:
            self._last = value
            self._report(value)


async def _misbehave(parameters: _Parameters, context: AttemptContext) -> None:
    """Hang or raise, when the parameters say so."""
    if parameters.hang:
        left = context.deadline - datetime.now(UTC)
        await asyncio.sleep(max(0.0, left.total_seconds()))
        raise ProviderError(ProviderErrorKind.TIMEOUT, "The demo model hung until its deadline, as asked")
    if parameters.error is not None:
        kind = ProviderErrorKind(parameters.error)
        is_throttled = kind is ProviderErrorKind.THROTTLED
        retry_after = timedelta(seconds=parameters.retry_after_seconds) if is_throttled else None
        raise ProviderError(kind, f"The demo model failed as asked: {kind}", retry_after=retry_after)
    if context.failures < parameters.fail_times:
        message = f"The demo model failed as asked: {context.failures + 1} of {parameters.fail_times} times"
        raise ProviderError(ProviderErrorKind.TRANSIENT, message)


async def _slow_stream(data: bytes, seconds: float) -> AsyncIterator[bytes]:
    """The data in equal pieces, spread over a time."""
    pieces = math.ceil(seconds * _STEPS_PER_SECOND)
    size = max(1, math.ceil(len(data) / pieces))
    for piece in range(pieces):
        await asyncio.sleep(seconds / pieces)
        if part := data[piece * size : (piece + 1) * size]:
            yield part


async def _huge_stream(request: GenerationRequest, size: int) -> AsyncIterator[bytes]:
    """Exactly `size` bytes that begin like a PNG of the size asked for, and go on with zeros."""
    head = _png_head(request.width, request.height, size)
    yield head[:size]
    left = size - len(head)
    zeros = bytes(_CHUNK)
    while left > 0:
        # The reader may never wait for anything itself: others must get their turn.
        await asyncio.sleep(0)
        yield zeros[:left]
        left -= _CHUNK


def _png_head(width: int, height: int, size: int) -> bytes:
    """Signature and header of an RGB picture, and where its data begins (PNG, sections 5.2, 5.3, 11.2)."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    data = min(size, _LONGEST_PNG_CHUNK)
    return _PNG_MAGIC + header + struct.pack(">I", data) + b"IDAT"


def _schema(default_delay: float) -> JsonSchema:
    kinds = [kind.value for kind in ProviderErrorKind]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "delay_seconds": _number(
                "Seconds of visible progress before the drawing begins.", default_delay, _MAX_SECONDS
            ),
            "fail_times": _number(
                "Fail this many attempts with a transient error, then succeed.", 0, _MAX_FAILURES, "integer"
            ),
            "error": {
                "description": "Fail every attempt with this kind of error.",
                "type": ["string", "null"],
                "enum": [*kinds, None],
                "default": None,
            },
            "retry_after_seconds": _number(
                "With `error` = `throttled`: the wait that the provider asks for.", 1, 86_400
            ),
            "crash": _switch(
                "End the whole worker process at once, for trying the recovery after a crash. "
                "Refused unless the operator allows it."
            ),
            "hang": _switch("Never answer: the attempt ends by its deadline, or by a cancel."),
            "slow_output_seconds": _number(
                "Deliver each output piece by piece over this time.", 0, _MAX_SECONDS
            ),
            "huge_output_bytes": _number(
                "Deliver a stream of this many bytes that begins like a PNG; 0 draws a picture.",
                0,
                _MAX_HUGE_BYTES,
                "integer",
            ),
            "wrong_type": _switch("Deliver a page of HTML in place of a picture."),
        },
    }


def _number(description: str, default: float, maximum: int, kind: str = "number") -> JsonSchema:
    return {"description": description, "type": kind, "minimum": 0, "maximum": maximum, "default": default}


def _switch(description: str) -> JsonSchema:
    return {"description": description, "type": "boolean", "default": False}
