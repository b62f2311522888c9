"""Keeps the processes of one `fleek up` running, and ends them together.

Everything happens on the main thread's event loop, because on Linux a child is signalled when the thread that
started it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from fleek.core.errors import FleekError, Unavailable
from fleek.local.process import Process

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a program that ended by itself is started again; doubled every time."""
_STABLE_SECONDS = 60.0
"""A program that ran this long starts with the first pause again."""
_PROGRAMS_SECONDS = 8.3
"""From the stop's begin until programs are killed: well after a worker's grace time (5 s) has passed."""
_SERVERS_SECONDS = 9.0
"""From the stop's begin until servers are told to hurry; everything is gone within 10 s."""
_HURRY_SECONDS = 0.4

Say = Callable[[str], None]


class Layer(IntEnum):
    """What stops first stands first: the servers outlive the programs that use them."""

    PROGRAM = 0
    SERVER = 1


@dataclass(slots=True)
class Kept:
    """A program that is started again when it ends by itself."""

    name: str
    layer: Layer
    start: Callable[[], Process]
    stop_signal: signal.Signals = signal.SIGTERM
    hurry_signal: signal.Signals = signal.SIGKILL
    """What ends it at once: PostgreSQL has a word for that which spares its shared memory."""
    process: Process | None = None
    failures: int = 0
    started: float = 0.0

    def launch(self) -> None:
        """Start it, on the thread of the event loop."""
        self.process = self.start()
        self.started = time.monotonic()

    def next_pause(self) -> float:
        """Seconds to wait before the next start: growing, unless it ran well for a while."""
        if time.monotonic() - self.started >= _STABLE_SECONDS:
            self.failures = 0
        self.failures += 1
        return min(_FIRST_PAUSE * 2.0 ** (self.failures - 1), _LONGEST_PAUSE)


@dataclass(slots=True)
class Supervisor:
    """Starts programs, restarts those that die, and stops all of them within 10 s."""

    say: Say
    kept: list[Kept] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _bell: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def listen_to_signals(self) -> None:
        """Ctrl-C, SIGTERM and a closed terminal stop everything; a second one does it at once."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._ring)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._request_stop)

    def keep(self, kept: Kept) -> None:
        """Start a program and keep it running from now on; raises what its start raises."""
        kept.launch()
        self.kept.append(kept)

    async def run_once(self, process: Process) -> int:
        """Wait for a program that ends by itself; its exit code. Giving up waiting kills it."""
        try:
            return await self._ended(process)
        finally:
            process.kill()

    async def or_stop(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do `work` unless a stop is requested or a kept program dies meanwhile; whether it was done.

        Raises what the work raises, and Unavailable for a program that ended while everything starts.
        """
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        death = asyncio.ensure_future(self._first_death())
        try:
            await asyncio.wait([task, stop, death], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            if death.done():
                death.result()
            return False
        finally:
            await _cancel([task, stop, death])

    async def watch(self) -> None:
        """Restart what dies until a stop is requested."""
        self._tasks = [asyncio.ensure_future(self._restart_forever(kept)) for kept in self.kept]
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait([stop, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel([stop, *self._tasks])

    async def stop(self) -> None:
        """End the programs together, then the servers together; returns when all of them are gone."""
        begin = time.monotonic()
        await self._stop_layer(Layer.PROGRAM, begin + _PROGRAMS_SECONDS)
        await self._stop_layer(Layer.SERVER, begin + _SERVERS_SECONDS)

    async def _stop_layer(self, layer: Layer, hurry_at: float) -> None:
        running = [kept for kept in self.kept if kept.layer is layer and kept.process]
        for kept in running:
            _send(kept, kept.stop_signal)
        ended = asyncio.ensure_future(self._all_ended(running))
        hurry = asyncio.ensure_future(self._hurry.wait())
        seconds = max(hurry_at - time.monotonic(), 0)
        await asyncio.wait([ended, hurry], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for kept in running:
            _send(kept, kept.hurry_signal)
        await asyncio.wait([ended], timeout=_HURRY_SECONDS)
        await _cancel([ended, hurry])
        for kept in running:
            if kept.process is not None:
                kept.process.kill()

    async def _all_ended(self, kept: Iterable[Kept]) -> None:
        for one in kept:
            if one.process is not None:
                await self._ended(one.process)

    async def _restart_forever(self, kept: Kept) -> None:
        while True:
            code = await self._ended(kept.process) if kept.process is not None else None
            pause = kept.next_pause()
            self.say(f"{kept.name} ended unexpectedly ({_describe(code)}); starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            try:
                kept.launch()
            except FleekError as error:
                kept.process = None
                self.say(f"{kept.name} cannot be started: {error.message}")

    async def _first_death(self) -> None:
        """Raises Unavailable once a kept program has ended."""
        while True:
            for kept in self.kept:
                code = kept.process.poll() if kept.process is not None else None
                if code is not None:
                    message = f"{kept.name} ended while starting ({_describe(code)}); the lines above say why"
                    raise Unavailable(message)
            await self._bell.wait()

    async def _ended(self, process: Process) -> int:
        while (code := process.poll()) is None:
            await self._bell.wait()
        return code

    def _ring(self) -> None:
        """A child ended: wake everybody who waits for one."""
        self._bell.set()
        self._bell = asyncio.Event()

    def _request_stop(self) -> None:
        if self.stopping.is_set():
            self._hurry.set()
        self.stopping.set()


def _send(kept: Kept, number: signal.Signals) -> None:
    if kept.process is not None:
        kept.process.send(number)


def _describe(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "it could not be started"
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


async def _cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel and wait; what the tasks raise meanwhile is of no interest any more."""
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
