"""What all stores have in common: reading, listing, deleting and checking through obstore.

Vendor exceptions stop here: callers see ObjectNotFoundError and StorageError only.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import BaseError

from fleek.storage.base import (
    ObjectInfo,
    ObjectNotFoundError,
    SignedUrl,
    StorageError,
    StorageRefusedError,
)
from fleek.storage.keys import require_safe_key
from fleek.storage.refusals import find_refusal

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

READ_BYTES = 256 * 1024
"""Bytes of a chunk that `get` gives at least, except for the last one."""

WRITE = "write"
"""The action of every put, in messages."""

_REASON_LENGTH = 300
_AFTER_REASON = re.compile(r"[\n<]")
_QUERY = re.compile(r"\?\S*")
_NO_CREDENTIALS = re.compile(r"AWS credential provider: (\w+): ([^\n]+)")
_UNSATISFIABLE = re.compile(r"416 Range Not Satisfiable|InvalidRange|[Ii]nvalid range|range was invalid")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Seconds, except `retries`: how long a store may take before it counts as away.

    obstore's own defaults would wait for three minutes, and for ever on a server that stops
    answering in the middle of a body.
    """

    connect: float = 2
    read: float = 15
    """Between two reads, and for the answer to one upload of a part: a slower uplink than about
    6 Mbit/s counts as away, since the HTTP client does not tell sending from waiting."""
    retrying: float = 10
    """No retry begins later than this after the first try."""
    retries: int = 2
    total: float = 20
    """For one call, or for one chunk of a stream, all retries included."""


class StoreAdapter(ABC):
    """An ObjectStorage on top of an obstore store; how bytes are written and URLs signed differs."""

    def __init__(self, store: ObjectStore, limits: StoreLimits, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock

    @abstractmethod
    async def put(
        self, key: str, content: AsyncIterable[bytes] | bytes, *, content_type: str, filename: str
    ) -> None:
        """Store all of `content`, or nothing."""

    @abstractmethod
    async def prepare(self) -> bool:
        """Make what objects are kept in, where it is missing."""

    @abstractmethod
    async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
        """A URL for one GET-able object."""

    async def get(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`; nothing where the object is shorter."""
        require_safe_key(key)
        if end is not None and end <= start:
            await self.head(key)
            return
        try:
            options = _range_options(start, end)
            result = await self._call("read", key, obstore.get_async(self._store, key, options=options))
        except _BehindTheEndError:
            return
        stream = result.stream(min_chunk_size=READ_BYTES)
        while (chunk := await self._call("read", key, anext(stream, None))) is not None:
            yield chunk

    async def head(self, key: str) -> ObjectInfo:
        """Size and etag of one object, or ObjectNotFoundError."""
        require_safe_key(key)
        return _object_info(await self._call("look at", key, obstore.head_async(self._store, key)))

    async def delete(self, keys: list[str]) -> None:
        """Delete; a key that does not exist is not an error."""
        for key in keys:
            require_safe_key(key)
        if keys:
            await self._delete(keys)

    async def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        """Every object below a prefix, whose last segment counts as whole: `a` does not list `ab/c`."""
        batches = obstore.list(self._store, prefix, offset=after)
        while (batch := await self._call("list", prefix, anext(batches, None))) is not None:
            for meta in batch:
                yield _object_info(meta)

    async def check(self) -> None:
        """Write, read and delete a small object, as a job and its client would."""
        key, content = f"fleek-check/{uuid.uuid4().hex}", b"fleek"
        await self.put(key, content, content_type="application/octet-stream", filename="check")
        try:
            found = b"".join([chunk async for chunk in self.get(key)])
        except ObjectNotFoundError:
            found = b""
        await self.delete([key])
        if found != content:
            message = "the object store does not give back what was written"
            raise StorageError(message)

    async def _delete(self, keys: Sequence[str]) -> None:
        await self._call("delete", keys[0], obstore.delete_async(self._store, keys))

    async def _call(self, action: str, key: str, pending: Awaitable[Result]) -> Result:
        """What `pending` gives, within the limit for one call, and with vendor exceptions translated."""
        with translated_errors(action, key):
            async with asyncio.timeout(self._limits.total):
                return await pending


class _BehindTheEndError(StorageError):
    """A range begins at or after the end of its object."""


@contextmanager
def translated_errors(action: str, key: str) -> Iterator[None]:
    """Turn what obstore raises into ObjectNotFoundError or StorageError."""
    try:
        yield
    except (BaseError, OSError, TimeoutError) as error:
        # Not chained: the vendor's text may repeat headers, keys and signed URLs into the logs.
        raise _translated(action, key, error) from None


def _translated(action: str, key: str, error: Exception) -> Exception:
    text = str(error)
    if without := _NO_CREDENTIALS.search(text):
        # obstore gives what our own source raised as text.
        lasting = without[1] == StorageRefusedError.__name__
        return (StorageRefusedError if lasting else StorageError)(f"cannot {action} {key}: {without[2]}")
    if refusal := find_refusal(text, action):
        return StorageRefusedError(f"cannot {action} {key}: {refusal.detail}", refusal.remedy)
    # A put answers 404 only for a bucket that does not exist; a HEAD cannot tell the two apart.
    if isinstance(error, FileNotFoundError) and action != WRITE:
        return ObjectNotFoundError(f"no object {key}")
    kind = _BehindTheEndError if _UNSATISFIABLE.search(text) else StorageError
    return kind(f"cannot {action} {key}: {_reason(text) or type(error).__name__}")


def _reason(text: str) -> str:
    """The vendor's first sentence, without its dump, the server's body and any query of a URL."""
    first = _AFTER_REASON.split(text, maxsplit=1)[0]
    return _QUERY.sub("", first)[:_REASON_LENGTH].rstrip(" :-")


def _range_options(start: int, end: int | None) -> GetOptions | None:
    if end is not None:
        return {"range": (start, end)}
    return {"range": {"offset": start}} if start else None


def _object_info(meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])
