"""Bringing a provider's output into the object store: sniffed, capped, hashed and measured on the way.

A picture is examined before it is put, so that a damaged one is never visible; to that end one that
comes as a stream is spooled first. All other streams, however long, go straight through.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from fleek.core.errors import OutputInvalid, OutputTooLarge
from fleek.core.media import DECODABLE, SNIFF_BYTES, MediaType, sniff
from fleek.media.images import MAX_IMAGE_BYTES, ImageFacts, ImageWorker, probe
from fleek.providers.base import BytesOutput, Output
from fleek.storage.base import ObjectStorage

_STEP_BYTES = 1024 * 1024
"""What is moved in one step; a stream that is shorter is treated as bytes in memory."""
_SPOOL_MEMORY = 8 * 1024 * 1024
"""Bytes of a picture beyond which its spool moves from memory to the disk."""
_HASHED_INLINE = 64 * 1024
"""Bytes that are hashed in less time than a thread needs to take them over."""


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """What a media row records of an output; `sha256` is hexadecimal."""

    key: str
    content_type: str
    size_bytes: int
    sha256: str
    width: int | None
    height: int | None
    thumbhash: str | None


async def store_output(
    storage: ObjectStorage,
    output: Output,
    *,
    key_for: Callable[[MediaType], str],
    max_bytes: int,
    images: ImageWorker,
) -> StoredOutput:
    """Store one output under `key_for(its sniffed type)`; nothing is visible unless all went well.

    Raises OutputInvalid for what is not a media type that Fleek stores or a damaged picture,
    OutputTooLarge, StorageError, and whatever the provider's stream raises.
    """
    storing = _Storing(storage, key_for, max_bytes, images)
    if isinstance(output, BytesOutput):
        return await storing.store_bytes(output.data)
    try:
        return await storing.store_stream(output.chunks)
    finally:
        # A refused stream is still connected to the provider.
        close = getattr(output.chunks, "aclose", None)
        if close is not None:
            await close()


def download_name(key: str) -> str:
    """The file name that a browser saves an object under: the result's id, then the key's extensions."""
    path = PurePosixPath(key)
    return path.parent.name + "." + path.name.partition(".")[2]


@dataclass(frozen=True, slots=True)
class _Storing:
    """One output on its way."""

    storage: ObjectStorage
    key_for: Callable[[MediaType], str]
    max_bytes: int
    images: ImageWorker

    async def store_bytes(self, content: bytes) -> StoredOutput:
        """The short way for most results: one step in a thread, one put."""
        if len(content) > self.max_bytes:
            raise _too_large(self.max_bytes)
        media_type = _require_media_type(content)
        sha256, facts = await self.images.run(_examined, content, media_type)
        key = await self._put(media_type, content)
        return _stored(key, media_type, len(content), sha256, facts)

    async def store_stream(self, chunks: AsyncIterator[bytes]) -> StoredOutput:
        """The long way, for what does not come at once."""
        source = _capped(chunks, self.max_bytes)
        head = await _take(source)
        if len(head) < _STEP_BYTES:
            return await self.store_bytes(head)
        media_type = _require_media_type(head)
        if media_type not in DECODABLE:
            return await self._pass_through(media_type, _chained(head, source), None)
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_MEMORY) as spool:
            whole = await self._spool(spool, head, source)
            facts = await self.images.run(_probed_from_start, spool, media_type) if whole else None
            return await self._pass_through(media_type, self._read_again(spool, source), facts)

    async def _spool(self, spool: IO[bytes], head: bytes, source: AsyncIterator[bytes]) -> bool:
        """Keep a picture until its end, or until it is too large to be decoded: then False."""
        step, size = head, 0
        while step and size <= MAX_IMAGE_BYTES:
            size += await self.images.run(spool.write, step)
            step = await _take(source) if size <= MAX_IMAGE_BYTES else b""
        return size <= MAX_IMAGE_BYTES

    async def _read_again(self, spool: IO[bytes], source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """What was spooled, then what was not."""
        await self.images.run(spool.seek, 0)
        while step := await self.images.run(spool.read, _STEP_BYTES):
            yield step
        async for chunk in source:
            yield chunk

    async def _pass_through(
        self, media_type: MediaType, content: AsyncIterator[bytes], facts: ImageFacts | None
    ) -> StoredOutput:
        """Put a stream, counted and hashed on the way."""
        digest, size = hashlib.sha256(), 0

        async def hashed() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in content:
                size += len(chunk)
                if len(chunk) <= _HASHED_INLINE:
                    digest.update(chunk)
                else:
                    await self.images.run(digest.update, chunk)
                yield chunk

        key = await self._put(media_type, hashed())
        return _stored(key, media_type, size, digest.hexdigest(), facts)

    async def _put(self, media_type: MediaType, content: AsyncIterator[bytes] | bytes) -> str:
        key = self.key_for(media_type)
        await self.storage.put(
            key, content, content_type=media_type.content_type, filename=download_name(key)
        )
        return key


def _stored(
    key: str, media_type: MediaType, size: int, sha256: str, facts: ImageFacts | None
) -> StoredOutput:
    return StoredOutput(
        key=key,
        content_type=media_type.content_type,
        size_bytes=size,
        sha256=sha256,
        width=facts.width if facts else None,
        height=facts.height if facts else None,
        thumbhash=facts.thumbhash if facts else None,
    )


def _examined(content: bytes, media_type: MediaType) -> tuple[str, ImageFacts | None]:
    decoded = media_type in DECODABLE and len(content) <= MAX_IMAGE_BYTES
    facts = probe(content, media_type) if decoded else None
    return hashlib.sha256(content).hexdigest(), facts


def _probed_from_start(file: IO[bytes], media_type: MediaType) -> ImageFacts:
    file.seek(0)
    return probe(file, media_type)


def _require_media_type(content: bytes) -> MediaType:
    media_type = sniff(content[:SNIFF_BYTES])
    if media_type is None:
        message = "The provider's output is not of a media type that Fleek stores"
        raise OutputInvalid(message)
    return media_type


def _too_large(max_bytes: int) -> OutputTooLarge:
    return OutputTooLarge(f"The provider's output is larger than the allowed {max_bytes} bytes")


async def _capped(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    """The same chunks, until there are too many bytes: then OutputTooLarge."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


async def _take(source: AsyncIterator[bytes]) -> bytes:
    """The next `_STEP_BYTES` or somewhat more; less only at the end."""
    taken: list[bytes] = []
    size = 0
    while size < _STEP_BYTES and (chunk := await anext(source, None)) is not None:
        taken.append(chunk)
        size += len(chunk)
    return b"".join(taken)


async def _chained(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for chunk in rest:
        yield chunk
