"""Notices a server that has fallen silent while statements wait for it.

A connection cannot tell a slow statement from a server that is gone without a word. So when a statement
takes long, the server is asked on a new connection: if nobody answers there either, whoever waits is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

_PATIENCE = 1.0
"""Seconds that a connection may be in use before its server is asked, and between two questions."""


class Vigil:
    """Over the connections of one pool that are in use; belongs to one event loop."""

    def __init__(self, is_silent: Callable[[], Awaitable[bool]], on_silence: Callable[[], None]) -> None:
        """`is_silent` asks the server, within a bound; `on_silence` comes before connections are dropped."""
        self._is_silent = is_silent
        self._on_silence = on_silence
        self._timers: dict[Any, asyncio.TimerHandle] = {}
        self._waiting: set[Any] = set()
        self._asking: asyncio.Task[None] | None = None

    def begin(self, connection: Any) -> None:  # noqa: ANN401  asyncpg is untyped
        """The driver's connection is in use from now on."""
        loop = asyncio.get_running_loop()
        self._timers[connection] = loop.call_later(_PATIENCE, self._suspect, connection)

    def end(self, connection: Any) -> None:  # noqa: ANN401  asyncpg is untyped
        """It is not in use any more."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self._waiting.discard(connection)

    async def aclose(self) -> None:
        """Ask no more."""
        for connection in list(self._timers):
            self.end(connection)
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._asking

    def _suspect(self, connection: Any) -> None:  # noqa: ANN401  asyncpg is untyped
        self._waiting.add(connection)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="database-vigil")

    async def _ask(self) -> None:
        while self._waiting:
            # Only those that waited before the question was asked are judged by its answer.
            asked_for = set(self._waiting)
            if await self._is_silent():
                self._on_silence()
                for connection in asked_for & self._waiting:
                    self.end(connection)
                    connection.terminate()
            await asyncio.sleep(_PATIENCE)
