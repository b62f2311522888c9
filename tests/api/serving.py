"""Runs an ASGI application behind a real socket, in a thread of the test's process.

The same process, so that a test can count the statements that an answer takes.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn import Config, Server

from fleek.api.app import create_app
from fleek.settings import Settings, load_settings

_START_SECONDS = 20


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Api:
    """A running api and what stands behind it."""

    url: str
    port: int
    settings: Settings
    app: FastAPI

    def ask(
        self,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        with_length: bool = True,
    ) -> RawAnswer:
        """See `ask`."""
        return ask(self.port, method, path, headers, body, with_length=with_length)

    def exchange(self, request: bytes, *, seconds: float = 10) -> bytes:
        """Everything that comes back for these bytes on a connection of their own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(request)
            received = b""
            while chunk := connection.recv(65_536):
                received += chunk
            return received


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """The port on which `app` answers, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="api")
    thread.start()
    try:
        _wait_until_started(server, thread)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def running_api(home: Path, **flags: object) -> Iterator[Api]:
    """An api with these settings; whatever is not given is a default of the product."""
    settings = load_settings(home=home, **flags)
    app = create_app(settings)
    with serving(app) as port:
        yield Api(f"http://127.0.0.1:{port}", port, settings, app)


def ask(
    port: int,
    method: str,
    path: str,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    with_length: bool = True,
) -> RawAnswer:
    """One request as given: nothing is checked, completed or escaped on the way.

    Header values are Latin-1. Host and Content-Length come by themselves unless given.
    """
    given = {name.lower() for name, _ in headers}
    own = {"Host": f"127.0.0.1:{port}"}
    if with_length:
        own["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in own.items() if name.lower() not in given]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join(lines).encode("latin-1")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head + b"\r\n\r\n" + body)
        return _receive(connection, method)


def _receive(connection: socket.socket, method: str) -> RawAnswer:
    with HTTPResponse(connection, method=method) as response:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        try:
            return RawAnswer(response.status, headers, response.read())
        except IncompleteRead as error:
            raise ConnectionError("the answer is incomplete") from error


def problem(answer: Mapping[str, object]) -> tuple[object, object]:
    """What a client decides by."""
    return answer["status"], answer["code"]


def _wait_until_started(server: Server, thread: threading.Thread) -> None:
    pause = threading.Event()
    for _ in range(_START_SECONDS * 100):
        if server.started:
            return
        assert thread.is_alive(), "the server ended while it started"
        pause.wait(0.01)
    raise TimeoutError("the server did not start")
