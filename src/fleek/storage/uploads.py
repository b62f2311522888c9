"""Uploads that end cleanly: a source that fails, or a canceled put, aborts its multipart upload.

obstore reads an async iterator from tasks of its own, and forgets the parts it has sent when its
future is canceled. So the source is read here, in the caller's task, and handed over by a pipe;
when it ends badly the pipe fails too, which is what makes obstore tell the store to drop the parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

ABORT_SECONDS = 5.0
"""How long a failed upload may take to tell the store; later, only a lifecycle rule cleans up."""


class SourceFailedError(Exception):
    """Goes through the vendor's code: no more will come, and what came is void."""


class Pipe:
    """Chunks on their way from the task that reads a source to those that upload, one at a time."""

    def __init__(self) -> None:
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._failed = False
        self._released = False

    def __aiter__(self) -> Pipe:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._chunks.get()
        if self._failed:
            raise SourceFailedError
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def send(self, chunk: bytes | None) -> bool:
        """Hand a chunk over, None for the end; False once nobody reads any more."""
        if not self._released:
            await self._chunks.put(chunk)
        return not self._released

    def fail(self) -> None:
        """Make the reader raise at its next step, whatever was sent before."""
        self._failed = True
        self._drain()
        self._chunks.put_nowait(None)

    def release(self) -> None:
        """The reader is gone: wake a sender that waits for room."""
        self._released = True
        self._drain()

    def _drain(self) -> None:
        while not self._chunks.empty():
            self._chunks.get_nowait()


async def upload(start: Callable[[Pipe], Awaitable[object]], source: AsyncIterable[bytes]) -> None:
    """Run the upload that `start` begins with all of `source`.

    An exception of `source`, or being canceled, is passed on once the upload has been aborted, or
    after `ABORT_SECONDS`. An exception of the upload ends the reading of `source`.
    """
    pipe = Pipe()
    uploading = asyncio.ensure_future(start(pipe))
    uploading.add_done_callback(lambda _: pipe.release())
    try:
        async for chunk in source:
            if not await pipe.send(chunk):
                break
        await pipe.send(None)
        await asyncio.shield(uploading)
    except BaseException:
        pipe.fail()
        await _settle(uploading)
        raise


async def _settle(uploading: asyncio.Future[object]) -> None:
    """Wait for an upload whose outcome no longer matters."""
    try:
        await asyncio.wait({uploading}, timeout=ABORT_SECONDS)
    finally:
        uploading.cancel()
    if not uploading.cancelled():
        uploading.exception()


async def joined(source: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in chunks of at least `size`, except for the last: fewer steps for large contents."""
    pending: list[bytes] = []
    length = 0
    async for chunk in source:
        pending.append(chunk)
        length += len(chunk)
        if length >= size:
            yield b"".join(pending)
            pending, length = [], 0
    if pending:
        yield b"".join(pending)


async def sliced(content: bytes, size: int) -> AsyncIterator[bytes]:
    """The chunks of bytes that are in memory already."""
    for start in range(0, len(content), size):
        yield content[start : start + size]
