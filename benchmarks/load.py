"""The load generator: as little Python between two requests as there can be, in a process of its own.

Keep-alive connections, each with one request in flight. Requests are prepared as bytes before the clock
starts, and an answer is read no further than its status and its length. `stage.Stage.load` starts it:

    python -m benchmarks.load SPECIFICATION RESULT       (two files of JSON: `Load` and `Answers`)
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"content-length:"
_STATUS = slice(9, 12)
"""Where `HTTP/1.1 200 OK` has its digits."""
_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: the requests in turn, over again, for `seconds` or until `count` were sent."""

    port: int
    requests: Sequence[str]
    expected: int
    """The status that every answer must have."""
    connections: int = 16
    seconds: float | None = None
    count: int | None = None
    pause: float = 0.0
    """Seconds of rest of a connection after each answer."""
    keep_bodies: bool = False


@dataclass(slots=True)
class Answers:
    """What came back."""

    seconds: float = 0.0
    """From the first request to the last answer."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, in the order of the answers."""
    bodies: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


def request(method: str, path: str, body: str | None = None, headers: str = "") -> str:
    """One HTTP request as it travels; `headers` are whole lines."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}"
    if body is None:
        return f"{head}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}"


class _Run:
    """The state that all connections share."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.answers = Answers()
        self.failure: str | None = None
        self._requests: Iterator[bytes] = itertools.cycle([text.encode() for text in load.requests])
        self._left = load.count if load.count is not None else sys.maxsize
        self._began = self._until = 0.0

    async def execute(self) -> Answers:
        """Open the connections, then start all of them together."""
        loop = asyncio.get_running_loop()
        connections = [_Connection(self) for _ in range(self.load.connections)]
        for connection in connections:
            await loop.create_connection(lambda own=connection: own, "127.0.0.1", self.load.port)  # type: ignore[misc]  # mypy does not infer the default's type
        self._began = time.perf_counter()
        self._until = self._began + (self.load.seconds or float("inf"))
        for connection in connections:
            connection.send_next()
        await asyncio.gather(*(connection.ended for connection in connections))
        if self.failure is not None:
            raise SystemExit(self.failure)
        return self.answers

    def next_request(self) -> bytes | None:
        """The bytes to send, or None when enough was sent."""
        if self._left <= 0 or self.failure is not None or time.perf_counter() >= self._until:
            return None
        self._left -= 1
        return next(self._requests)

    def note(self, sent: float, status: int, body: bytes) -> None:
        """An answer is complete."""
        now = time.perf_counter()
        self.answers.seconds = now - self._began
        self.answers.latencies.append(now - sent)
        if status != self.load.expected:
            self.failure = f"an answer had the status {status}, not {self.load.expected}: {body[:300]!r}"
        if self.load.keep_bodies:
            self.answers.bodies.append(body.decode())


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request in flight."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = b""
        self._sent = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's is a Transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self._run.failure = f"the server closed a connection ({exc})"
            self.ended.set_result(None)

    def send_next(self) -> None:
        """Send one more request, or end."""
        data = self._run.next_request()
        if data is None:
            self.ended.set_result(None)
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head_end = self._received.find(_END_OF_HEAD)
        if head_end < 0:
            return
        body_start = head_end + len(_END_OF_HEAD)
        if len(self._received) < body_start + _length_of(self._received[:body_start]):
            return
        received, self._received = self._received, b""
        self._run.note(self._sent, int(received[_STATUS]), received[body_start:])
        if self._run.load.pause:
            asyncio.get_running_loop().call_later(self._run.load.pause, self.send_next)
        else:
            self.send_next()


def _length_of(head: bytes) -> int:
    """Of the body, by the head's own words; 0 where it has none, such as 204 and 304."""
    lower = head.lower()
    start = lower.find(_LENGTH)
    if start < 0:
        return 0
    start += len(_LENGTH)
    return int(lower[start : lower.index(b"\r\n", start)])


async def _main(load: Load) -> Answers:
    seconds = load.seconds or 0.0
    async with asyncio.timeout(_TIMEOUT + seconds + (load.count or 0) * (load.pause + 0.1)):
        return await _Run(load).execute()


if __name__ == "__main__":
    _specification, _result = (Path(argument) for argument in sys.argv[1:])
    _answers = uvloop.run(_main(Load(**json.loads(_specification.read_text()))))
    _result.write_text(json.dumps(asdict(_answers)))
