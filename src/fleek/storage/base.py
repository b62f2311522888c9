"""The port of the object store: S3, a disk, or memory in tests."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol


class ObjectNotFoundError(Exception):
    """No object has this key."""


class StorageError(Exception):
    """The object store refused or did not answer; trying again later may help.

    As text it is `message`, and `remedy` where there is one: what an operator can do about it.
    """

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message if remedy is None else f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


class StorageRefusedError(StorageError):
    """The object store refuses, and will until somebody changes the bucket, the key or the settings."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store knows of one object; `size` in bytes."""

    key: str
    size: int
    last_modified: datetime
    etag: str | None


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A URL that answers with the bytes to whoever holds it, until `expires_at`.

    A store that cannot be reached from outside (a disk, memory) signs a path on Fleek's own API:
    then `url` starts with `/` and the api adds its own base URL.
    """

    url: str
    expires_at: datetime


class ObjectStorage(Protocol):
    """Bytes by key. A key is written once; `put` of the same key again is idempotent."""

    async def put(
        self, key: str, content: AsyncIterable[bytes] | bytes, *, content_type: str, filename: str
    ) -> None:
        """Store a stream without holding it in memory. Nothing is visible unless all of it came.

        An exception raised by `content` ends the write and is passed on unchanged.
        """
        ...

    def get(self, key: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`; the first step raises ObjectNotFoundError."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Size and etag of one object, or ObjectNotFoundError."""
        ...

    async def delete(self, keys: list[str]) -> None:
        """Delete; a key that does not exist is not an error."""
        ...

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        """Every object below a prefix whose key sorts behind `after`.

        In no promised order: a bucket lists by key, a disk does not.
        """
        ...

    async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
        """A URL for one GET-able object; makes no check that the object exists."""
        ...

    async def prepare(self) -> bool:
        """Make the bucket or the folder, where it is missing; whether it was. Safe several times at once.

        Raises StorageRefusedError for what only an operator can change, else StorageError.
        """
        ...

    async def check(self) -> None:
        """Raise StorageError unless the store can be written to and read from."""
        ...
