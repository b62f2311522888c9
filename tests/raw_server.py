"""A bare HTTP server on a real socket, which answers as a test says: also wrongly, late, or not at all."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived. Names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[socket.socket], None]


def send(content: bytes) -> Answer:
    """These bytes, and then the connection is closed."""
    return lambda connection: connection.sendall(content)


def reply(
    body: object = b"", status: int = 200, content_type: str = "application/json", **headers: str
) -> Answer:
    """A whole answer; a body that is no bytes is sent as JSON. `retry_after` is the header Retry-After."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in named.items()]
    return send("\r\n".join([*lines, "Connection: close", "", ""]).encode() + content)


def problem(status: int, code: str, detail: str, **more: object) -> Answer:
    """A problem document."""
    return reply(
        {"detail": detail, "code": code, "status": status, **more}, status, "application/problem+json"
    )


def stream(*pieces: str, pause: float = 0.0) -> Answer:
    """An event stream, piece by piece, that ends without a terminal chunk."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n")
        for piece in pieces:
            connection.sendall(piece.encode())
            time.sleep(pause)

    return answer


def event(name: str, sequence: int | None = None, **data: object) -> str:
    """One event of a stream."""
    number = "" if sequence is None else f"id: {sequence}\n"
    return f"event: {name}\n{number}data: {json.dumps(data)}\n\n"


def hang_up(_connection: socket.socket) -> None:
    """The request was read, and no answer comes."""


@dataclass(slots=True)
class RawServer:
    """Answers by method and path; of several answers for one route the last is repeated."""

    routes: dict[str, list[Answer]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    _listener: socket.socket = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def on(self, route: str, *answers: Answer) -> None:
        """Answer `GET /path` (without a query) so."""
        self.routes[route] = list(answers)

    def requests_to(self, route: str) -> list[Received]:
        """What arrived at a route."""
        return [got for got in self.received if f"{got.method} {got.path.partition('?')[0]}" == route]

    def stop(self) -> None:
        """Refuse connections from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):  # a client may leave, or speak TLS
            got = _receive(connection)
            if got is None:
                return
            self.received.append(got)
            answers = self.routes.get(f"{got.method} {got.path.partition('?')[0]}") or [_NOT_FOUND]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            answer(connection)


_NOT_FOUND = problem(404, "not_found", "No such route")


def _receive(connection: socket.socket) -> Received | None:
    """One request, to the end of its body."""
    with connection.makefile("rb") as reader:
        first = reader.readline().decode()
        if not first:
            return None
        method, path, _ = first.split()
        headers: dict[str, str] = {}
        while line := reader.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Received(method, path, headers, reader.read(int(headers.get("content-length", 0))))
