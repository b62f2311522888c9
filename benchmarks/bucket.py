"""Says of every object that it exists, some milliseconds after it was asked: a bucket's answer to HEAD.

python -m benchmarks.bucket FD SECONDS       (a listening socket that was inherited)
"""

from __future__ import annotations

import asyncio
import socket
import sys

import uvloop

_ANSWER = (
    b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\netag: "made"\r\n'
    b"last-modified: Sat, 21 Nov 2026 08:00:00 GMT\r\ncontent-type: image/webp\r\n\r\n"
)


class _Bucket(asyncio.Protocol):
    """A client of a pool sends one request at a time, each in one piece."""

    def __init__(self, latency: float) -> None:
        self._latency = latency

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's is a Transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002  what is asked does not matter
        asyncio.get_running_loop().call_later(self._latency, self._transport.write, _ANSWER)


async def _serve(descriptor: int, latency: float) -> None:
    listener = socket.socket(fileno=descriptor)
    server = await asyncio.get_running_loop().create_server(lambda: _Bucket(latency), sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
