"""What stands between two parts and can do to their connections what a network can.

It runs on a loop in a thread of its own, so that plain code can turn its switches::

    with FaultProxy(Path("/run/server.sock")) as proxy:
        ... connect to 127.0.0.1:proxy.port ...
        proxy.fall_silent()
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Address = Path | tuple[str, int]
"""A Unix socket, or a host and a port."""
_CHUNK = 65_536
_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")


@dataclass(eq=False, slots=True)
class _Connection:
    """One that is open: both of its ends."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    is_doomed: bool = False
    """The next thing that the server says is not delivered; the connection ends instead."""

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class FaultProxy:
    """A TCP proxy on 127.0.0.1 with switches. Every switch holds until `heal`."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._delay = 0.0
        self._needle: bytes | None = None
        self._status: int | None = None
        self.answered: list[bytes] = []
        """The first line of every request that was answered here."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._flowing.set()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection that is open; new ones work."""
        self._call(self._abort_all)

    def refuse(self) -> None:
        """Reset what is open and refuse what comes, as where nothing listens."""
        self._run(self._stop_listening())

    def fall_silent(self) -> None:
        """Nothing travels any more and nothing ends; what comes is accepted, and hangs."""
        self._call(self._flowing.clear)

    def slow_down(self, seconds: float) -> None:
        """Everything arrives so much later, each way."""
        self._delay = seconds

    def lose_reply_to(self, needle: bytes) -> None:
        """Once: what carries `needle` is delivered, and its connection ends in place of the reply."""
        self._needle = needle

    def answer_with(self, status: int) -> None:
        """Before an HTTP server: every request gets this status from here, with an empty body."""
        self._status = status

    @property
    def has_lost_reply(self) -> bool:
        """Whether what `lose_reply_to` waited for has come by."""
        return self._needle is None

    def heal(self) -> None:
        """Everything works again; what hung goes on."""
        self._delay = 0.0
        self._needle = None
        self._status = None
        self._run(self._listen())
        self._call(self._flowing.set)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _call(self, switch: Callable[[], object]) -> None:
        async def turn() -> None:
            switch()

        self._run(turn())

    async def _listen(self) -> None:
        if self._server is not None:
            return
        if self._listener.fileno() == -1:
            self._listener = socket.create_server(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._converse, sock=self._listener)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._abort_all()

    async def _close(self) -> None:
        await self._stop_listening()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _abort_all(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection([writer])
        self._connections.add(connection)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            # Canceled at the end of all; asyncio's streams would complain of that (until Python 3.12).
            with suppress(asyncio.CancelledError):
                await self._pump(connection, reader, writer)
        finally:
            connection.abort()
            self._connections.discard(connection)
            self._tasks.discard(task)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            there, back = await self._reach()
            connection.writers.append(back)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._ask(connection, reader, back))
                pumps.create_task(self._answer(connection, there, writer))
        except* OSError:
            pass  # One end is gone, or nobody is behind: the other end hears of it.

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection(*self._target)

    async def _ask(
        self, connection: _Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        while chunk := await source.read(_CHUNK):
            if self._needle is not None and self._needle in chunk:
                self._needle = None
                connection.is_doomed = True
            if self._status is None:
                await self._carry(chunk, sink)
            elif chunk.startswith(_METHODS):
                self.answered.append(chunk.partition(b"\r\n")[0])
                answer = f"HTTP/1.1 {self._status} Refused\r\nContent-Length: 0\r\n\r\n"
                await self._carry(answer.encode(), connection.writers[0])
        with suppress(OSError):
            sink.write_eof()

    async def _answer(
        self, connection: _Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        while chunk := await source.read(_CHUNK):
            if connection.is_doomed:
                break
            await self._carry(chunk, sink)
        connection.abort()

    async def _carry(self, chunk: bytes, sink: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._delay)
        await self._flowing.wait()
        sink.write(chunk)
        await sink.drain()
