"""S3 and what speaks like it."""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from fleek.core.errors import ConfigurationError
from fleek.storage.adapter import WRITE, StoreAdapter, StoreLimits, translated_errors
from fleek.storage.base import ObjectNotFoundError, SignedUrl, StorageRefusedError
from fleek.storage.bucket import BucketMaker, Method
from fleek.storage.credential_cache import CredentialCache
from fleek.storage.credentials import Credentials, find_source
from fleek.storage.keys import require_safe_key
from fleek.storage.uploads import Pipe, joined, sliced, upload

if TYPE_CHECKING:
    from obstore import Attributes
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential, S3CredentialProvider

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
# Seconds between our reading of the clock and the store's, for the end of credentials.
_MARGIN = timedelta(seconds=2)
_SHORTEST = timedelta(seconds=1)
_DELETES_AT_ONCE = 10
_BUCKET_URL = timedelta(minutes=1)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


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
    """Objects in a bucket; URLs are pre-signed GETs, which never outlive what signed them.

    Credentials come from the environment (`AWS_*`), a web identity, the container or the instance.
    """

    def __init__(
        self,
        location: S3Location,
        limits: StoreLimits,
        clock: Callable[[], datetime],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        location = self._location = _placed(location, environment)
        self._credentials = CredentialCache(find_source(environment, location.region), clock)
        store = _store(location, location.endpoint, limits, self._credentials.provide)
        super().__init__(store, limits, clock)
        self._signing: tuple[Credentials, S3Store] | None = None

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

    async def prepare(self) -> bool:
        """Make the bucket, private, where it is missing."""

        async def sign(method: Method) -> str:
            signing = obstore.sign_async(store, method, "", _BUCKET_URL)
            return await self._call("create", bucket, signing)

        location, limits, bucket = self._location, self._limits, self._location.bucket
        # What has no credentials says so itself, with its remedy: obstore passes on the words alone.
        await self._call("create", bucket, self._credentials.obtain(_BUCKET_URL))
        whole = replace(location, prefix="")
        store = _store(whole, location.endpoint, limits, self._credentials.provide)
        return await BucketMaker(bucket, location.region, sign, limits).ensure()

    async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
        """A pre-signed URL at the public endpoint; content type and disposition were set at put.

        It ends sooner than asked for where the credentials do: `expires_at` says when.
        """
        require_safe_key(key)
        credentials = self._credentials.at_hand(expires_in)
        if credentials is None:
            credentials = await self._call("sign", key, self._credentials.obtain(expires_in))
        # The signature's date has whole seconds: never claim more than it gives.
        now = self._clock().replace(microsecond=0)
        expires_in = _within(credentials, expires_in, now)
        signing = obstore.sign_async(self._signing_store(credentials), "GET", key, expires_in)
        return SignedUrl(await self._call("sign", key, signing), now + expires_in)

    def _signing_store(self, credentials: Credentials) -> S3Store:
        """A store that signs with these credentials and no others: obstore may hold on to earlier ones."""
        if self._signing is None or self._signing[0] != credentials:
            public = self._location.public_endpoint or self._location.endpoint
            store = _store(self._location, public, self._limits, lambda: _lasting(credentials))
            self._signing = (credentials, store)
        return self._signing[1]

    async def _delete(self, keys: Sequence[str]) -> None:
        """All at once; one by one where the store says 404 of a key that is not there, as Google's does."""
        try:
            await super()._delete(keys)
        except ObjectNotFoundError:
            turns = asyncio.Semaphore(_DELETES_AT_ONCE)
            ended = await asyncio.gather(
                *(self._delete_one(key, turns) for key in keys), return_exceptions=True
            )
            for failure in filter(None, ended):
                raise failure from None

    async def _delete_one(self, key: str, turns: asyncio.Semaphore) -> None:
        async with turns:
            with suppress(ObjectNotFoundError):
                await super()._delete([key])

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


def _within(credentials: Credentials, wanted: timedelta, now: datetime) -> timedelta:
    """As much of the wanted life, in whole seconds, as the credentials have left."""
    # A signature says whole seconds, too.
    wanted = timedelta(seconds=wanted // _SHORTEST)
    left = credentials.life_left(now)
    if left is None:
        return wanted
    left = timedelta(seconds=(left - _MARGIN) // _SHORTEST)
    if left < _SHORTEST:
        detail = "cannot sign: the credentials for S3 have ended"
        raise StorageRefusedError(detail, "set new ones, AWS_SESSION_TOKEN included")
    return min(wanted, left)


def _lasting(credentials: Credentials) -> S3Credential:
    """For a store that is dropped before they end, so that it need not ask for them again."""
    return {
        "access_key_id": credentials.access_key_id,
        "secret_access_key": credentials.secret_access_key,
        "token": credentials.token,
        "expires_at": None,
    }


def _placed(location: S3Location, environment: Mapping[str, str]) -> S3Location:
    """With the endpoint that the environment names for all of AWS's tools, unless a setting names one.

    obstore would take it, too, but without the bucket in its host. Plain HTTP takes a setting of our own.
    """
    if location.endpoint is not None:
        return replace(location, endpoint=location.endpoint.rstrip("/"))
    name = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if name is None:
        return location
    if _scheme(environment[name]) != "https":
        message = f"{name} is not https: set FLEEK_STORAGE_ENDPOINT, where plain http is meant"
        raise ConfigurationError(message)
    return replace(location, endpoint=environment[name].rstrip("/"))


def _store(
    location: S3Location, endpoint: str | None, limits: StoreLimits, provider: S3CredentialProvider
) -> S3Store:
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
    try:
        return S3Store(
            location.bucket,
            prefix=location.prefix or None,
            config=config,
            client_options=client,
            retry_config=retries,
            credential_provider=provider,
        )
    except (BaseError, ValueError) as error:
        # obstore reads other AWS_* variables by itself, and takes no prefix with an empty part.
        reason = str(error).partition("\n")[0]
        message = f"FLEEK_STORAGE_URL, or a variable AWS_*, cannot be used: {reason}"
        raise ConfigurationError(message) from None


def _scheme(endpoint: str) -> str:
    """`http` or `https`; anything else is refused, since obstore would only fail at the first request."""
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "An S3 endpoint is a URL such as https://s3.example.com or http://127.0.0.1:4566"
        raise ConfigurationError(message)
    return parts.scheme


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint of one bucket, which is what obstore expects for virtual-hosted requests."""
    parts = urlsplit(endpoint.rstrip("/"))
    host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
    return urlunsplit(parts._replace(netloc=host))
