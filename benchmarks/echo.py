"""Answers every request with the same bytes: what the load generator itself can reach on this machine.

python -m benchmarks.echo FD       (a listening socket that was inherited)
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop

_ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{"status":"ok"}'


class _Echo(asyncio.Protocol):
    """The generator sends one request at a time, each in one piece."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's is a Transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002  what is asked does not matter
        self._transport.write(_ANSWER)


async def _serve(descriptor: int) -> None:
    listener = socket.socket(fileno=descriptor)
    server = await asyncio.get_running_loop().create_server(_Echo, sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
