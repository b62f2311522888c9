"""HTTP for the command line, by the standard library alone.

A command lives for a second or two and sends a handful of requests. Measured: the first one leaves 0.2 s
after `fleek generate` was started, and 0.3 s after it with the client library that the rest of Fleek uses.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib import request as urllib_request
from urllib.error import HTTPError, URLError

_LONGEST_LINE = 1024 * 1024
"""Bytes of one line of an event stream; a longer one is no event of ours."""
_CHUNK = 64 * 1024
_NOBODY_THERE = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class NoAnswerError(Exception):
    """No answer came, or half of one. `may_have_arrived`: whether the server can have seen the request."""

    def __init__(self, reason: str, *, may_have_arrived: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_have_arrived = may_have_arrived


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event (https://html.spec.whatwg.org/multipage/server-sent-events.html); `id` may be empty."""

    name: str
    data: str
    id: str


class Answer:
    """Status and headers of an answer, and a body that is read as it comes."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    @property
    def is_success(self) -> bool:
        """2xx."""
        return self.status // 100 == 2  # noqa: PLR2004  the class of success

    def read(self) -> bytes:
        """The whole body."""
        with _translated():
            return self._response.read()

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces. An answer that breaks off may look complete: compare a checksum."""
        with _translated():
            while chunk := self._response.read(_CHUNK):
                yield chunk

    def events(self) -> Iterator[ServerEvent]:
        """The body as server-sent events; comments, and events without data, are left out."""
        name, event_id = "message", ""
        data: list[str] = []
        for line in self._lines():
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if data:
                    yield ServerEvent(name, "\n".join(data), event_id)
                name, data, event_id = "message", [], ""
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                event_id = value

    def _lines(self) -> Iterator[str]:
        with _translated():
            while line := self._response.readline(_LONGEST_LINE):
                yield line.decode(errors="replace").rstrip("\r\n")


class Http:
    """Sends requests, each on a connection of its own; follows redirects of GET."""

    def __init__(self, *, use_proxies: bool) -> None:
        # Only these handlers: the usual set would follow a redirect to ftp, too.
        self._opener = urllib_request.OpenerDirector()
        for handler in (
            urllib_request.ProxyHandler(None if use_proxies else {}),
            urllib_request.UnknownHandler(),
            urllib_request.HTTPHandler(),
            urllib_request.HTTPSHandler(),
            urllib_request.HTTPDefaultErrorHandler(),
            urllib_request.HTTPRedirectHandler(),
            _OnlyRedirects(),
        ):
            self._opener.add_handler(handler)
        self._opener.addheaders = [("User-Agent", "fleek")]

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Iterator[Answer]:
        """The answer, open for reading until the block ends. `timeout` bounds every wait, in seconds.

        Raises NoAnswerError, also from within the block's reading.
        """
        request = urllib_request.Request(url, body, dict(headers or {}), method=method)  # noqa: S310  only HTTP has a handler
        with _translated():
            response = self._opener.open(request, timeout=timeout)
        assert isinstance(response, HTTPResponse)  # noqa: S101  the handlers above give nothing else
        with response:
            yield Answer(response)


class _OnlyRedirects(urllib_request.HTTPErrorProcessor):
    """Answers that are no success are answers; only redirects need more work."""

    def http_response(self, request: urllib_request.Request, response: HTTPResponse) -> Any:  # noqa: ANN401  as typeshed has it
        """Hand a redirect of GET to its handler, and everything else to the caller."""
        if request.get_method() != "GET" or response.status not in _REDIRECTS:
            return response
        try:
            return super().http_response(request, response)
        except ValueError as error:
            response.close()
            reason = "it redirects to what is no URL"
            raise URLError(reason) from error

    https_response = http_response


@contextmanager
def _translated() -> Iterator[None]:
    """Turns what sockets, TLS and HTTP raise into NoAnswerError."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise NoAnswerError("it redirects in circles, or to nowhere", may_have_arrived=True) from error
    except URLError as error:
        cause = error.reason if isinstance(error.reason, Exception) else HTTPException(error.reason)
        raise NoAnswerError(_describe(cause), may_have_arrived=not _never_connected(cause)) from error
    except (OSError, HTTPException) as error:
        raise NoAnswerError(_describe(error), may_have_arrived=True) from error


def _never_connected(error: Exception) -> bool:
    """Whether nothing can have been sent: connecting failed, or finding the host, or TLS."""
    if isinstance(error, socket.gaierror | ssl.SSLError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _NOBODY_THERE


def _describe(error: Exception) -> str:
    """Why, in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
