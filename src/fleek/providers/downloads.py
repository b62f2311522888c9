"""Fetching outputs from the URLs that a backend names, without trusting those URLs.

A model's author decides what a model answers, so an output's URL is foreign input: it may point into the
operator's network. Therefore every connection, also after a redirect, is checked at the socket: the host
is resolved once, all of its addresses must be public, and the connection goes to an address that was
checked, while TLS and the `Host` header keep the name.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpcore2
import httpx2
import structlog

from fleek.core.addresses import Address, AllowList, address_or_none, is_public
from fleek.core.errors import OutputInvalid, ProviderError, ProviderErrorKind

_log = structlog.get_logger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""Every address of a host, in the order in which they are tried; raises OSError."""
Endpoint = tuple[str, int]
"""A host in ASCII and a port."""

_MAX_REDIRECTS = 3
_HOST = re.compile(r"[a-z0-9._:-]{1,253}")
_MAX_ADDRESSES = 4
"""Addresses of one host that are tried, one after the other."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK, _TOO_MANY_REQUESTS, _SERVER_ERROR = 200, 429, 500
_PORTS = {"https": 443, "http": 80}

_TROUBLES = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    OSError,
)
"""What a connection raises; time-outs are OSErrors too, and so is TLS that breaks in the middle."""

_REFUSED = "The model named an output at an address that Fleek does not fetch from"
_MISSING = "An output of the model is not where the provider says it is"
_TROUBLE = "An output of the model could not be fetched"


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Seconds: for a connection, between two pieces, and for a fetch as a whole."""

    connect: float = 5.0
    read: float = 20.0
    total: float = 600.0


async def resolve_by_system(host: str, port: int) -> Sequence[Address]:
    """What the machine's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = (address_or_none(str(entry[4][0])) for entry in found)
    return [address for address in addresses if address is not None]


class OutputFetcher:
    """Streams what lies behind a URL. The reader bounds how much that may be."""

    def __init__(  # noqa: PLR0913  what it may reach, how, and for how long
        self,
        allowed: AllowList,
        ssl_context: ssl.SSLContext,
        *,
        own: httpx2.URL | None = None,
        headers_for: Callable[[httpx2.URL], Mapping[str, str]] = lambda _: {},
        limits: FetchLimits | None = None,
        resolve: Resolve = resolve_by_system,
    ) -> None:
        """`own` is the backend's API: from its host and port everything is fetched, wherever they are.

        `headers_for` is asked again after every redirect, so that no key follows one to a foreign host.
        """
        self._gate = _Gate(allowed, _endpoint(own) if own is not None else None)
        self._backend = _GuardedBackend(self._gate, resolve)
        self._headers_for = headers_for
        self._limits = limits or FetchLimits()
        self._ssl_context = ssl_context

    async def fetch(self, url: str) -> AsyncGenerator[bytes, None]:
        """The bytes behind `url`; nothing is connected before the first piece is asked for.

        Raises OutputInvalid where there is nothing to be had, and a transient ProviderError for trouble on
        the way. The messages name neither the URL nor what it answered: the log does.
        """
        until = asyncio.get_running_loop().time() + self._limits.total
        target = _parse(url)
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._asked(target, until) as response:
                if response.status not in _REDIRECTS:
                    _expect_output(response, target)
                    # A time-out must not span a `yield`: it would interrupt whoever reads.
                    async with aclosing(response.aiter_stream()) as pieces:
                        while (piece := await _next(pieces, until, target)) is not None:
                            yield piece
                    return
                target = _parse(_header(response, b"location"), base=target)
        raise _refused("too many redirects", target)

    @asynccontextmanager
    async def _asked(self, url: httpx2.URL, until: float) -> AsyncIterator[httpcore2.Response]:
        """One request over a connection of its own."""
        self._gate.check(url)
        host, port = _endpoint(url)
        connection = httpcore2.AsyncHTTPConnection(
            httpcore2.Origin(url.raw_scheme, host.encode(), port),
            ssl_context=self._ssl_context,
            network_backend=self._backend,
        )
        async with connection:
            with _reporting(url):
                async with asyncio.timeout_at(until):
                    response = await connection.handle_async_request(self._request(url))
            yield response

    def _request(self, url: httpx2.URL) -> httpcore2.Request:
        host, port = _endpoint(url)
        headers = {
            "Host": url.netloc.decode(),
            "User-Agent": "fleek",
            "Accept": "*/*",
            # What is compressed has no size that could be bounded before it is unpacked.
            "Accept-Encoding": "identity",
            **self._headers_for(url),
        }
        return httpcore2.Request(
            "GET",
            httpcore2.URL(scheme=url.raw_scheme, host=host.encode(), port=port, target=url.raw_path),
            headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            extensions={
                "timeout": {
                    "connect": self._limits.connect,
                    "read": self._limits.read,
                    "write": self._limits.read,
                }
            },
        )


class _NotAllowedError(Exception):
    """The host has an address that is not public."""


@dataclass(frozen=True, slots=True)
class _Gate:
    """Where an output may come from."""

    allowed: AllowList
    own: Endpoint | None

    def is_listed(self, host: str, port: int) -> bool:
        """Whether the operator named this host: then it may be anywhere, and speak plain HTTP."""
        return (host, port) == self.own or self.allowed.names(host)

    def check(self, url: httpx2.URL) -> None:
        """Refuse what the text of a URL can be refused for; raises OutputInvalid."""
        host, port = _endpoint(url)
        if not _HOST.fullmatch(host) or url.userinfo:
            raise _refused("strange authority", url)
        if not self.is_listed(host, port) and (url.scheme != "https" or port != _PORTS["https"]):
            raise _refused("neither https nor listed", url)

    def admit(self, host: str, port: int, addresses: Sequence[Address]) -> Sequence[Address]:
        """The addresses, if all of them are allowed: one that is not could be meant for the next request."""
        listed = self.is_listed(host, port)
        if not all(listed or is_public(found) or self.allowed.covers(found) for found in addresses):
            raise _NotAllowedError
        return addresses[:_MAX_ADDRESSES]


class _GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were checked; what is checked and what is connected to is the same."""

    def __init__(self, gate: _Gate, resolve: Resolve) -> None:
        self._gate = gate
        self._resolve = resolve
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, check, and connect to the first address that answers."""
        try:
            async with asyncio.timeout(timeout):
                literal = address_or_none(host)
                found = [literal] if literal is not None else await self._resolve(host, port)
                admitted = self._gate.admit(host, port, found)
                # An address that swallows packets must leave time for the next one.
                share = timeout / len(admitted) if timeout is not None and admitted else None
                return await self._connect(admitted, port, share, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout from error
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error

    async def _connect(
        self,
        addresses: Sequence[Address],
        port: int,
        seconds: float | None,
        local_address: str | None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception = httpcore2.ConnectError("no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(
                    str(address), port, seconds, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


def _parse(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    try:
        url = httpx2.URL(text) if base is None else base.join(text)
    except (httpx2.InvalidURL, ValueError):
        url = httpx2.URL("")
    if url.scheme not in _PORTS:
        raise _refused("no web address", base)
    return url


def _endpoint(url: httpx2.URL) -> Endpoint:
    return url.raw_host.decode("ascii").lower(), url.port or _PORTS.get(url.scheme, 0)


async def _next(pieces: AsyncGenerator[bytes, None], until: float, url: httpx2.URL) -> bytes | None:
    with _reporting(url):
        async with asyncio.timeout_at(until):
            return await anext(pieces, None)


def _header(response: httpcore2.Response, name: bytes) -> str:
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("latin-1")


def _expect_output(response: httpcore2.Response, url: httpx2.URL) -> None:
    """Raise unless the answer is a body as it was stored."""
    status = response.status
    if status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR:
        raise _trouble(f"status {status}", url)
    if status != _OK or _header(response, b"content-encoding") not in {"", "identity"}:
        _log.warning("output_missing", host=url.host, status=status)
        raise OutputInvalid(_MISSING)


@contextmanager
def _reporting(url: httpx2.URL) -> Iterator[None]:
    """Turn what the connection raises into what the engine understands."""
    try:
        yield
    except _NotAllowedError:
        raise _refused("not public", url) from None
    except _TROUBLES as error:
        raise _trouble(type(error).__name__, url) from error


def _refused(why: str, url: httpx2.URL | None) -> OutputInvalid:
    _log.warning("output_refused", why=why, host=url.host if url is not None else None)
    return OutputInvalid(_REFUSED)


def _trouble(why: str, url: httpx2.URL) -> ProviderError:
    _log.warning("output_fetch_failed", why=why, host=url.host)
    return ProviderError(ProviderErrorKind.TRANSIENT, _TROUBLE)
