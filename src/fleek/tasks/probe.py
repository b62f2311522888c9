"""A worker's own port: `/livez`, `/readyz`, and whatever page is plugged in, such as `/metrics`.

For container engines and monitors, so it speaks as much HTTP as they do: one GET a connection. It runs
on the event loop that the jobs run on, which is the point: a loop that does not turn answers nobody.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable, Mapping
from http import HTTPStatus

import structlog

from fleek.core.errors import ConfigurationError

_log = structlog.get_logger(__name__)

Page = Callable[[], tuple[bytes, str]]
"""Makes a body and its content type. It is called on the event loop, so it takes milliseconds and no I/O."""
Check = Callable[[], str | None]
"""None where all is well, else one line that says why not; as quick as a page."""

_REQUEST_SECONDS = 5.0
_LONGEST_HEAD = 16 * 1024
_MOST_CONNECTIONS = 64
"""A probe and a monitor need two; more than these are cut off at once."""
_BACKLOG = 64
_CLOSE_SECONDS = 1.0
_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"


class ProbeServer:
    """Answers on one port until it is closed. Belongs to one event loop."""

    def __init__(
        self,
        is_live: Check,
        is_ready: Check,
        pages: Mapping[str, Page] | None = None,
        *,
        patience: float = _REQUEST_SECONDS,
    ) -> None:
        """`pages`: what else there is, by path, such as `{"/metrics": render}`.

        `patience`: seconds for a whole request to arrive, and again for its answer to be taken.
        """
        checks = {"/livez": is_live, "/readyz": is_ready}
        self._routes: dict[str, Callable[[], tuple[HTTPStatus, bytes, str]]] = {
            **{path: _page(page) for path, page in (pages or {}).items()},
            **{path: _verdict(check) for path, check in checks.items()},
        }
        self._patience = patience
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; the port, which is a free one where 0 was asked for.

        Raises ConfigurationError where the port is taken or the address is not one of this machine.
        """
        try:
            self._server = await asyncio.start_server(
                self._accept, host, port, limit=_LONGEST_HEAD, backlog=_BACKLOG
            )
        except OSError as error:
            raise ConfigurationError(_why_not(host, port, error)) from error
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        """Listen no more, and drop who is still being answered."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.wait([asyncio.ensure_future(self._server.wait_closed())], timeout=_CLOSE_SECONDS)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="probe")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request. Whoever takes too long, leaves, or sends no end is dropped without an answer."""
        try:
            async with asyncio.timeout(self._patience):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer(head))
            async with asyncio.timeout(self._patience):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # Out of time is an OSError as well.
        finally:
            # After an orderly end this does nothing.
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in {"GET", "HEAD"}:
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET is answered here\n", _TEXT, method)
        route = self._routes.get(path)
        if route is None:
            known = f"here are {', '.join(sorted(self._routes))}\n".encode()
            return _response(HTTPStatus.NOT_FOUND, known, _TEXT, method)
        try:
            return _response(*route(), method)
        except Exception:  # noqa: BLE001  a page that fails must be seen as failing, and end nothing else
            _log.exception("probe_page_failed", path=path)
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, b"the log says why\n", _TEXT, method)


def _page(page: Page) -> Callable[[], tuple[HTTPStatus, bytes, str]]:
    return lambda: (HTTPStatus.OK, *page())


def _verdict(check: Check) -> Callable[[], tuple[HTTPStatus, bytes, str]]:
    def answer() -> tuple[HTTPStatus, bytes, str]:
        detail = check()
        if detail is None:
            return HTTPStatus.OK, json.dumps({"status": "ok"}).encode(), _JSON
        body = json.dumps({"status": "unavailable", "detail": detail}).encode()
        return HTTPStatus.SERVICE_UNAVAILABLE, body, _JSON

    return answer


def _response(status: HTTPStatus, body: bytes, content_type: str, method: str) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n"
    )
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        head += "Allow: GET, HEAD\r\n"
    return head.encode() + b"\r\n" + (b"" if method == "HEAD" else body)


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"FLEEK_WORKER_PORT: port {port} is busy on {host}; every worker needs a port of its own"
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    return f"FLEEK_WORKER_HOST: cannot listen on {host} port {port}: {reason.lower()}; such as 127.0.0.1"
