"""The HTTP client of remote providers.

It says of every request that failed whether the backend can have seen it: only a request that was never
sent may be sent again when it costs money. It follows no redirect, obeys no proxy variable, retries
nothing by itself, and has a bound on every wait and on every body.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import SecretStr

CONNECT_SECONDS = 2.0
"""For one connection, and again for its TLS handshake: a request's own time must be well beyond both."""
MAX_BODY_BYTES = 32 * 1024 * 1024
"""Bytes of an answer that are read; an answer that goes on is treated like one that broke off."""
_PARSED_INLINE = 256 * 1024
"""Bytes of JSON that are parsed in less time than a thread needs to take them over."""


class NotSentError(Exception):
    """The request never left: no connection came about. The backend cannot have acted on it."""


class ReplyLostError(Exception):
    """The request was sent, in part or as a whole, and no answer was seen. Nobody knows what came of it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. Its body may have broken off: then it is no JSON."""

    status: int
    headers: httpx2.Headers
    content: bytes

    async def json(self) -> Any:  # noqa: ANN401  any JSON value
        """The body as JSON, or None when it is none. A long one is parsed in a thread."""
        if len(self.content) <= _PARSED_INLINE:
            return _parse(self.content)
        return await asyncio.to_thread(_parse, self.content)


class ApiClient:
    """Requests to one backend, each with its key."""

    def __init__(self, base_url: str, authorization: SecretStr, ssl_context: ssl.SSLContext) -> None:
        self._base_url = base_url.rstrip("/")
        self._authorization = authorization
        self._reading = _client(ssl_context, httpx2.Limits(max_keepalive_connections=16, keepalive_expiry=15))
        self._writing = _client(ssl_context, httpx2.Limits(max_keepalive_connections=0))

    async def send(  # noqa: PLR0913  the parts of a request
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request. `path` begins with a slash, `seconds` bounds all of it.

        Raises NotSentError or ReplyLostError. Only a GET may go over a connection that was used before:
        the server may be closing that one, and then nobody could tell whether it read the request.
        """
        client = self._reading if method == "GET" else self._writing
        request = client.build_request(
            method,
            self._base_url + path,
            json=body,
            params=query,
            headers={"Authorization": self._authorization.get_secret_value(), **(headers or {})},
            timeout=httpx2.Timeout(seconds, connect=CONNECT_SECONDS),
        )
        until = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(until):
                response = await client.send(request, stream=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise NotSentError(type(error).__name__) from error
        except (httpx2.TransportError, OSError) as error:
            # Time-outs are OSErrors too, and so is TLS that breaks in the middle.
            raise ReplyLostError(type(error).__name__) from error
        return await _read(response, until)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._reading.aclose()
        await self._writing.aclose()


def create_ssl_context() -> ssl.SSLContext:
    """The machine's certificates, or those that `SSL_CERT_FILE` or `SSL_CERT_DIR` name. Takes about 30 ms."""
    return httpx2.create_ssl_context()


def _client(ssl_context: ssl.SSLContext, limits: httpx2.Limits) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        verify=ssl_context, limits=limits, trust_env=False, headers={"User-Agent": "fleek"}
    )


async def _read(response: httpx2.Response, until: float) -> Reply:
    """Read the body as far as it comes: the status alone already says much."""
    content = bytearray()
    try:
        async with asyncio.timeout_at(until):
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > MAX_BODY_BYTES:
                    content.clear()
                    break
    except (httpx2.TransportError, httpx2.DecodingError, OSError):
        content.clear()
    finally:
        await response.aclose()
    return Reply(response.status_code, response.headers, bytes(content))


def _parse(content: bytes) -> Any:  # noqa: ANN401  any JSON value
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
