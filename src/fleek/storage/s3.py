"""S3 and what speaks like it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import obstore
from obstore.store import S3Store

from fleek.core.errors import ConfigurationError
from fleek.storage.adapter import WRITE, StoreAdapter, StoreLimits, translated_errors
from fleek.storage.base import SignedUrl
from fleek.storage.keys import require_safe_key
from fleek.storage.uploads import Pipe, joined, sliced, upload

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import ClientConfig, RetryConfig, S3Config

PART_BYTES = 5 * 1024 * 1024
"""S3's smallest part. What is smaller goes up in one request."""
PARTS_AT_ONCE = 2
"""With the part that is being filled and what the HTTP client holds, an upload of any size takes
about 15 MB of memory (measured with 200 MB)."""
_STEP_BYTES = 512 * 1024

# A key is written once, so its bytes never change; private, because the signature is the only lock.
_CACHING = "private, max-age=31536000, immutable"
_UNSAFE_IN_FILENAME = re.compile(r"[^A-Za-z0-9._-]")
# A body may take as long as its reader: what must not take long is bounded by the read time-out.
_WHOLE_BODY = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class S3Location:
    """Where the objects are: `s3://bucket/prefix` at an endpoint (None: the region's own)."""

    bucket: str
    prefix: str
    region: str
    path_style: bool
    endpoint: str | None = None
    public_endpoint: str | None = None
    """What clients reach, where it differs: the host is part of what is signed."""


class S3Storage(StoreAdapter):
    """Objects in a bucket; URLs are pre-signed GETs.

    Credentials come from the environment (`AWS_*`), a web identity, the container or the instance.
    """

    def __init__(self, location: S3Location, limits: StoreLimits, clock: Callable[[], datetime]) -> None:
        super().__init__(_store(location, location.endpoint, limits), limits, clock)
        public = location.public_endpoint or location.endpoint
        self._signing_store = _store(location, public, limits)

    async def put(
        self, key: str, content: AsyncIterable[bytes] | bytes, *, content_type: str, filename: str
    ) -> None:
        """Upload all of `content`, or nothing: S3 shows an object when its last part is confirmed."""
        require_safe_key(key)
        attributes = _attributes(content_type, filename)
        if isinstance(content, bytes):
            content = sliced(content, _STEP_BYTES)
        steps = joined(content, _STEP_BYTES)
        head = await _read_part(steps)
        if sum(map(len, head)) < PART_BYTES:
            await self._put_whole(key, b"".join(head), attributes)
        else:
            await self._put_parts(key, _chained(head, steps), attributes)

    async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
        """A pre-signed URL at the public endpoint; content type and disposition were set at put."""
        require_safe_key(key)
        # The signature's date has whole seconds: never claim more than it gives.
        expires_at = self._clock().replace(microsecond=0) + expires_in
        signing = obstore.sign_async(self._signing_store, "GET", key, expires_in)
        return SignedUrl(await self._call("sign", key, signing), expires_at)

    async def _put_whole(self, key: str, content: bytes, attributes: Attributes) -> None:
        put = obstore.put_async(self._store, key, content, attributes=attributes, use_multipart=False)
        await self._call(WRITE, key, put)

    async def _put_parts(self, key: str, parts: AsyncIterator[bytes], attributes: Attributes) -> None:
        async def start(pipe: Pipe) -> None:
            with translated_errors(WRITE, key):
                await obstore.put_async(
                    self._store,
                    key,
                    pipe,
                    attributes=attributes,
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                )

        await upload(start, parts)


async def _read_part(steps: AsyncIterator[bytes]) -> deque[bytes]:
    """The chunks of the first part; less than a part means that there is no more."""
    head: deque[bytes] = deque()
    length = 0
    while length < PART_BYTES and (step := await anext(steps, None)) is not None:
        head.append(step)
        length += len(step)
    return head


async def _chained(head: deque[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """All chunks; those of the head are let go one by one."""
    while head:
        yield head.popleft()
    async for chunk in rest:
        yield chunk


def _attributes(content_type: str, filename: str) -> Attributes:
    """Set at put, since a pre-signed URL of obstore cannot override the headers of an answer."""
    name = _UNSAFE_IN_FILENAME.sub("_", filename)
    return {
        "Content-Type": content_type,
        "Content-Disposition": f'inline; filename="{name}"',
        "Cache-Control": _CACHING,
    }


def _store(location: S3Location, endpoint: str | None, limits: StoreLimits) -> S3Store:
    plain = endpoint is not None and _scheme(endpoint) == "http"
    client: ClientConfig = {
        "allow_http": plain,
        "connect_timeout": timedelta(seconds=limits.connect),
        "read_timeout": timedelta(seconds=limits.read),
        "timeout": _WHOLE_BODY,
    }
    retries: RetryConfig = {
        "max_retries": limits.retries,
        "retry_timeout": timedelta(seconds=limits.retrying),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=1), "base": 2},
    }
    config: S3Config = {
        "region": location.region,
        "virtual_hosted_style_request": not location.path_style,
    }
    if endpoint is not None:
        config["endpoint"] = endpoint if location.path_style else _with_bucket(endpoint, location.bucket)
    return S3Store(
        location.bucket,
        prefix=location.prefix or None,
        config=config,
        client_options=client,
        retry_config=retries,
    )


def _scheme(endpoint: str) -> str:
    """`http` or `https`; anything else is refused, since obstore would only fail at the first request."""
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "An S3 endpoint is a URL such as https://s3.example.com or http://127.0.0.1:4566"
        raise ConfigurationError(message)
    return parts.scheme


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint of one bucket, which is what obstore expects for virtual-hosted requests."""
    parts = urlsplit(endpoint)
    host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
    return urlunsplit(parts._replace(netloc=host))
