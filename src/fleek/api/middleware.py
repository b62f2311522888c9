"""The front door: one pass of pure ASGI around everything else.

It gives a request its id, checks its Host header, leads the routes without a version to the current
one, adds the headers that every answer has, and is the last to catch what nobody expected.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleek.api.problems import document, respond, unexpected
from fleek.observability.metrics import HttpMetrics

_log = structlog.get_logger(__name__)

UNMATCHED = "unmatched"
"""The route of a request that no route fits, or that was refused before one was looked for."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
BESIDE = "other"
"""The route of every page that is no operation of the API, such as those of the documentation."""
CURRENT_VERSION = "/v1"
UNVERSIONED = "/media"
"""Routes below this path answer without the version prefix too, as the current version's."""

MAX_HEADER_BYTES = 32 * 1024

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_ANY_HOST = "*"
_ANY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104  no name of a host: they mean "every address"
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))(?::[0-9]{1,5})?")
_PORT = re.compile(r":[0-9]*\Z")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")

_DEFAULT_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
"""For every answer whose route did not set its own."""


def allowed_host_names(allowed: Iterable[str], listening_on: str, public_url: str | None) -> frozenset[str]:
    """The names that a Host header may have: loopback's, the configured ones, and our own."""
    names = {*_LOOPBACK_NAMES, *allowed}
    if listening_on not in _ANY_ADDRESS:
        names.add(f"[{listening_on}]" if ":" in listening_on else listening_on)
    if public_url is not None:
        names.add(_PORT.sub("", urlsplit(public_url).netloc))
    return frozenset(name.lower() for name in names)


class FrontDoor:
    """ASGI middleware; see the module."""

    def __init__(
        self,
        app: ASGIApp,
        allowed_hosts: frozenset[str],
        metrics: HttpMetrics | None = None,
        *,
        log_requests: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics or HttpMetrics(CollectorRegistry())
        self._log_requests = log_requests
        self._allowed_hosts = allowed_hosts
        self.is_allowed = lru_cache(maxsize=256)(self._check_host)
        # Unique, not secret: a counter behind a random beginning asks the system for nothing.
        self._new_id = map(f"{secrets.token_hex(8)}-{{:x}}".format, itertools.count(1)).__next__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts, sent_id, size = _read_headers(scope)
        request_id = sent_id or self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        # The server answers requests that came at once in one context: nothing of another's must stay bound.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        answer = _Answer(send, request_id)
        self._metrics.began()
        try:
            await self._check_and_answer(scope, receive, answer, hosts, size)
        finally:
            self._metrics.ended(scope["method"], _route_of(scope), answer.status, answer.seconds)
            if self._log_requests or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                _tell(scope, answer)

    async def _check_and_answer(
        self, scope: Scope, receive: Receive, answer: _Answer, hosts: list[bytes], size: int
    ) -> None:
        request_id = answer.request_id
        if size > MAX_HEADER_BYTES:
            await _refuse_headers(request_id)(scope, receive, answer.send)
            return
        if len(hosts) != 1 or not self.is_allowed(hosts[0]):
            await _refuse_host(request_id)(scope, receive, answer.send)
            return
        _lead_to_current_version(scope)
        await self._answer(scope, receive, answer)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            return
        except Exception:  # noqa: BLE001  the last to catch; it is logged and answered
            _log.exception("request_crashed", method=scope["method"], path=scope["path"])
            # An answer that has begun cannot be taken back: the server cuts the connection, since it
            # was not completed, and the client knows that something is missing.
            if not answer.started:
                await unexpected(answer.request_id)(scope, receive, answer.send)

    def _check_host(self, host: bytes) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        return _ANY_HOST in self._allowed_hosts or match[1].decode().lower() in self._allowed_hosts


class _Answer:
    """Wraps `send`: adds headers to the answer's start, and knows whether it has begun."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 0
        self._arrived = time.perf_counter()
        self._begun: float | None = None

    @property
    def started(self) -> bool:
        return self._begun is not None

    @property
    def seconds(self) -> float:
        """Until the answer's begin: how long its client takes to read it says nothing about this server."""
        return (self._begun or time.perf_counter()) - self._arrived

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self._begun = message["status"], time.perf_counter()
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            names = [name for name, _ in headers]
            headers += [default for default in _DEFAULT_HEADERS if default[0] not in names]
            message = {**message, "headers": headers}
        await self._send(message)


def _tell(scope: Scope, answer: _Answer) -> None:
    """One record a request. Reads that went well are most of all, and for those who look into something."""
    is_read = scope["method"] in _READS and answer.status < HTTPStatus.INTERNAL_SERVER_ERROR
    facts = {
        "method": scope["method"],
        "route": _route_of(scope),
        "status": answer.status or None,
        "milliseconds": round(answer.seconds * 1000, 1),
    }
    if is_read:
        _log.debug("request_finished", **facts)
    else:
        _log.info("request_finished", **facts)


def _route_of(scope: Scope) -> str:
    """The template of the route that was found: paths are as many as there are clients' ideas."""
    found = getattr(scope.get("route"), "path_format", None)
    return found or (BESIDE if "endpoint" in scope else UNMATCHED)


def _read_headers(scope: Scope) -> tuple[list[bytes], str | None, int]:
    """All Host headers, the client's id for this request where it is well-formed, and the size of all."""
    hosts: list[bytes] = []
    request_id: str | None = None
    size = 0
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        if name == b"host":
            hosts.append(value)
        elif name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = value.decode()
    return hosts, request_id, size


def _refuse_host(request_id: str) -> Response:
    detail = "The Host header is not one of this server's names; FLEEK_ALLOWED_HOSTS adds names"
    return respond(document(HTTPStatus.BAD_REQUEST, "invalid_host", detail, request_id))


def _refuse_headers(request_id: str) -> Response:
    detail = f"The headers may have at most {MAX_HEADER_BYTES} bytes"
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return respond(document(status, "headers_too_large", detail, request_id))


def _lead_to_current_version(scope: Scope) -> None:
    """`/media/...` is an alias of `/v1/media/...`: one operation, one route, one set of links."""
    root: str = scope.get("root_path", "")
    rest = scope["path"][len(root) :]
    if rest == UNVERSIONED or rest.startswith(f"{UNVERSIONED}/"):
        scope["path"] = f"{root}{CURRENT_VERSION}{rest}"
