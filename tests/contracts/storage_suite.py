"""What every object store must do. A class per store inherits these tests and gives the `storage` fixture."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.contracts import memory_probe

from fleek.storage.base import ObjectInfo, ObjectNotFoundError, ObjectStorage

KEY = "media/job/result/1.png"
MEBIBYTE = 1024 * 1024
LARGE = bytes(range(256)) * (12 * MEBIBYTE // 256)
"""More than two parts of a multipart upload, so that the third one is shorter."""


MAX_GROWTH = 40_000_000
"""Bytes a process may grow by while it stores 200 MB."""


async def chunks_of(content: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    """`content` as a provider's reply brings it."""
    for start in range(0, len(content), size):
        await asyncio.sleep(0)
        yield content[start : start + size]


async def broken_after(content: bytes, error: BaseException) -> AsyncIterator[bytes]:
    """A source that fails after it gave `content`."""
    async for chunk in chunks_of(content):
        yield chunk
    raise error


async def stalled_after(content: bytes, stalled: asyncio.Event) -> AsyncIterator[bytes]:
    """A source that sets `stalled` after it gave `content`, and then gives nothing for ever."""
    async for chunk in chunks_of(content):
        yield chunk
    stalled.set()
    await asyncio.Event().wait()


async def put(storage: ObjectStorage, content: AsyncIterator[bytes] | bytes, key: str = KEY) -> None:
    """A put whose type and name do not matter."""
    await storage.put(key, content, content_type="image/png", filename="result.png")


async def read(storage: ObjectStorage, key: str = KEY, **bounds: Any) -> bytes:
    """A whole object, or a range of it."""
    return b"".join([chunk async for chunk in storage.get(key, **bounds)])


async def exists(storage: ObjectStorage, key: str = KEY) -> bool:
    """Whether an object is visible."""
    try:
        await storage.head(key)
    except ObjectNotFoundError:
        return False
    return True


async def grown_by(url: str, endpoint: str) -> int:
    """What the memory probe prints, as a process of its own."""
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-m", memory_probe.__name__, url, endpoint, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await probe.communicate()
    return int(output)


class StorageSuite:
    """The contract of fleek.storage.base.ObjectStorage."""

    @pytest.mark.parametrize("content", [b"", b"x", LARGE], ids=["empty", "one-byte", "large"])
    async def test_bytes_come_back_as_they_were_put(self, storage: ObjectStorage, content: bytes) -> None:
        await put(storage, content)

        assert await read(storage) == content

    @pytest.mark.parametrize("content", [b"", b"x", LARGE], ids=["empty", "one-byte", "large"])
    async def test_a_stream_comes_back_as_it_was_put(self, storage: ObjectStorage, content: bytes) -> None:
        await put(storage, chunks_of(content))

        assert await read(storage) == content

    async def test_a_stream_of_one_large_chunk_is_stored(self, storage: ObjectStorage) -> None:
        await put(storage, chunks_of(LARGE, size=len(LARGE)))

        assert (await storage.head(KEY)).size == len(LARGE)

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 3, b"012"),
            (3, 7, b"3456"),
            (7, None, b"789"),
            (7, 100, b"789"),
            (0, 100, b"0123456789"),
            (10, None, b""),
            (10, 12, b""),
            (100, 200, b""),
            (5, 5, b""),
            (5, 4, b""),
        ],
    )
    async def test_a_range_gives_what_the_object_has_of_it(
        self, storage: ObjectStorage, start: int, end: int | None, expected: bytes
    ) -> None:
        await put(storage, b"0123456789")

        assert await read(storage, start=start, end=end) == expected

    async def test_a_range_of_an_empty_object_is_empty(self, storage: ObjectStorage) -> None:
        await put(storage, b"")

        assert await read(storage, start=0, end=10) == b""

    @pytest.mark.parametrize("bounds", [{}, {"start": 2}, {"end": 2}, {"start": 2, "end": 2}])
    async def test_reading_an_unknown_key_fails_at_the_first_step(
        self, storage: ObjectStorage, bounds: dict[str, int]
    ) -> None:
        with pytest.raises(ObjectNotFoundError):
            await anext(storage.get(KEY, **bounds))

    async def test_the_head_tells_size_and_a_stable_etag(self, storage: ObjectStorage) -> None:
        before = datetime.now(UTC) - timedelta(seconds=2)
        await put(storage, b"0123456789")
        found = await storage.head(KEY)

        assert (found.key, found.size) == (KEY, 10)
        assert found.etag
        assert found.etag == (await storage.head(KEY)).etag
        assert found.last_modified >= before

    async def test_the_head_of_an_unknown_key_is_not_found(self, storage: ObjectStorage) -> None:
        with pytest.raises(ObjectNotFoundError):
            await storage.head(KEY)

    async def test_putting_a_key_again_replaces_the_object(self, storage: ObjectStorage) -> None:
        await put(storage, b"first")
        await put(storage, chunks_of(b"second"))

        assert await read(storage) == b"second"

    @pytest.mark.parametrize("content", [b"", b"short", LARGE], ids=["nothing", "short", "large"])
    async def test_a_source_that_fails_leaves_no_object_and_its_error_is_passed_on(
        self, storage: ObjectStorage, content: bytes
    ) -> None:
        error = TimeoutError("the provider's reply ended too early")
        with pytest.raises(TimeoutError) as raised:
            await put(storage, broken_after(content, error))

        assert raised.value is error
        assert not await exists(storage)

    @pytest.mark.parametrize("content", [b"short", LARGE], ids=["short", "large"])
    async def test_a_canceled_put_leaves_no_object(self, storage: ObjectStorage, content: bytes) -> None:
        stalled = asyncio.Event()
        running = asyncio.create_task(put(storage, stalled_after(content, stalled)))
        await stalled.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert not await exists(storage)

    async def test_a_source_is_read_in_the_task_that_puts(self, storage: ObjectStorage) -> None:
        tasks = set()

        async def source() -> AsyncIterator[bytes]:
            async with asyncio.timeout(30):  # a time-out belongs to one task: this fails in another
                for _ in range(12):
                    tasks.add(asyncio.current_task())
                    yield bytes(MEBIBYTE)

        await put(storage, source())

        assert tasks == {asyncio.current_task()}

    async def test_deleted_objects_are_gone_and_others_stay(self, storage: ObjectStorage) -> None:
        for name in ("a", "b", "c"):
            await put(storage, b"x", key=f"media/job/{name}.png")
        await storage.delete(["media/job/a.png", "media/job/unknown.png", "media/job/b.png"])

        assert [found.key async for found in storage.list("media")] == ["media/job/c.png"]

    async def test_deleting_what_is_not_there_is_no_error(self, storage: ObjectStorage) -> None:
        await storage.delete([])
        await storage.delete([KEY])
        await storage.delete([KEY, "media/other.png"])

        assert not await exists(storage)

    async def test_a_key_can_be_used_again_after_a_delete(self, storage: ObjectStorage) -> None:
        await put(storage, b"first")
        await storage.delete([KEY])
        await put(storage, b"second")

        assert await read(storage) == b"second"

    async def test_puts_and_deletes_of_neighbors_do_not_disturb_each_other(
        self, storage: ObjectStorage
    ) -> None:
        async def come_and_go(name: int) -> None:
            key = f"media/job/{name % 2}/{name}.png"
            await put(storage, b"x", key=key)
            await storage.delete([key])

        await asyncio.gather(*(come_and_go(name) for name in range(40)))

        assert [found async for found in storage.list("media")] == []

    async def test_a_list_can_begin_behind_a_key(self, storage: ObjectStorage) -> None:
        keys = [f"media/job-{number}/result/1.png" for number in range(5)]
        for key in keys:
            await put(storage, b"x", key)
        await put(storage, b"x", "other/job-9/result/1.png")

        assert {found.key async for found in storage.list("media", after=keys[2])} == set(keys[3:])
        assert {found.key async for found in storage.list("media", after="media/job-2")} == set(keys[2:])
        assert [found async for found in storage.list("media", after=keys[4])] == []

    async def test_a_list_has_every_object_below_the_prefix(self, storage: ObjectStorage) -> None:
        keys = {f"media/job-{job}/{name}.png" for job in range(3) for name in range(40)}
        for key in keys:
            await put(storage, key.encode(), key=key)
        below: list[ObjectInfo] = [found async for found in storage.list("media/job-1")]

        assert {found.key async for found in storage.list("media")} == keys
        assert {found.key for found in below} == {key for key in keys if key.startswith("media/job-1/")}
        assert all(found.size == len(found.key) for found in below)

    async def test_a_prefix_ends_where_a_segment_does(self, storage: ObjectStorage) -> None:
        await put(storage, b"x", key="media/ab/1.png")

        assert [found async for found in storage.list("media/a")] == []
        assert [found async for found in storage.list("nothing/here")] == []

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "/media/a",
            "media/../a",
            "media//a",
            "media/a/",
            "../a",
            "media/.a",
            "media/a b",
            "media/ä",
            "a" * 600,
        ],
    )
    async def test_keys_that_could_leave_the_store_are_refused(
        self, storage: ObjectStorage, key: str
    ) -> None:
        with pytest.raises(ValueError, match="not an object key"):
            await put(storage, b"x", key=key)
        with pytest.raises(ValueError, match="not an object key"):
            await anext(storage.get(key))
        with pytest.raises(ValueError, match="not an object key"):
            await storage.head(key)
        with pytest.raises(ValueError, match="not an object key"):
            await storage.delete([key])

    async def test_a_signed_url_says_when_it_ends(self, storage: ObjectStorage) -> None:
        before = datetime.now(UTC)
        signed = await storage.sign(KEY, expires_in=timedelta(minutes=10))
        after = datetime.now(UTC)

        assert before - timedelta(seconds=1) <= signed.expires_at - timedelta(minutes=10) <= after

    async def test_a_healthy_store_passes_its_check_and_keeps_nothing_of_it(
        self, storage: ObjectStorage
    ) -> None:
        await storage.check()

        assert [found async for found in storage.list("")] == []


class StreamingStorageSuite(StorageSuite):
    """The contract of stores whose objects do not lie in this process's memory."""

    async def test_a_large_object_is_read_in_chunks(self, storage: ObjectStorage) -> None:
        await put(storage, LARGE)
        sizes = [len(chunk) async for chunk in storage.get(KEY)]

        assert max(sizes) < len(LARGE)
        assert sum(sizes) == len(LARGE)
