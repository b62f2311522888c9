"""A server's connections as a network can make them: open, and silent for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Middle:
    """Stands before a server that listens on a Unix socket, and carries what is said over TCP."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._silent = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()

    def fall_silent(self) -> None:
        """Nothing travels on the present connections any more, and none of them ends; new ones work."""
        self._silent.set()
        self._silent = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        there, back = await asyncio.open_unix_connection(self._socket)
        for source, sink in ((reader, back), (there, writer)):
            self._pumps.add(asyncio.create_task(_pump(source, sink, self._silent)))

    async def aclose(self) -> None:
        """End what is open."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, silent: asyncio.Event) -> None:
    try:
        while chunk := await source.read(65_536):
            if not silent.is_set():
                sink.write(chunk)
    finally:
        sink.close()


@asynccontextmanager
async def middle_of(socket: Path) -> AsyncIterator[tuple[Middle, int]]:
    """What stands before a server, and the port of 127.0.0.1 that leads there."""
    middle = Middle(socket)
    server = await asyncio.start_server(middle.accept, "127.0.0.1", 0)
    yield middle, server.sockets[0].getsockname()[1]
    server.close()
    await middle.aclose()
