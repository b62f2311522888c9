"""HTTP/1.1 on asyncio streams, by hand: a fake backend must be able to answer what no HTTP server would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_REASONS = {200: "OK", 201: "Created", 404: "Not Found"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, or None when it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection, or None at its end."""
    first = (await reader.readline()).decode("latin-1").split()
    if len(first) != 3:
        return None
    headers: dict[str, str] = {}
    while line := (await reader.readline()).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    target = urlsplit(first[1])
    return Request(first[0], target.path, dict(parse_qsl(target.query)), headers, body)


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """Status line and headers."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Said')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def whole(status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer."""
    named = {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})}
    return head(status, named) + body


def as_json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer in JSON."""
    return whole(status, json.dumps(body).encode(), "application/json", headers)


def chunk(data: bytes) -> bytes:
    """One piece of a chunked body; the empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)
