"""Memory and a disk as object stores: the suite, then what each has of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.contracts import memory_probe
from tests.contracts.storage_suite import (
    KEY,
    LARGE,
    MAX_GROWTH,
    StorageSuite,
    StreamingStorageSuite,
    broken_after,
    chunks_of,
    grown_by,
    put,
    stalled_after,
)

from fleek.core.errors import ConfigurationError
from fleek.storage.base import ObjectStorage, StorageError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SIGNER = UrlSigner(b"a secret key of the tests, 32 bytes")
TEN_MINUTES = timedelta(minutes=10)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does next."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what is waited for is done by a thread, which sets no event
            await asyncio.sleep(0.005)


class TestMemory(StorageSuite):
    @pytest.fixture
    def storage(self) -> ObjectStorage:
        return open_storage("memory://", signer=SIGNER)

    async def test_a_url_is_a_path_of_our_own_that_verifies(self, storage: ObjectStorage) -> None:
        await assert_signs_own_path(storage)


class TestDisk(StreamingStorageSuite):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "new folder" / "store"

    @pytest.fixture
    def storage(self, folder: Path) -> ObjectStorage:
        return open_storage(folder.as_uri(), signer=SIGNER)

    async def test_a_url_is_a_path_of_our_own_that_verifies(self, storage: ObjectStorage) -> None:
        await assert_signs_own_path(storage)

    async def test_the_folder_is_closed_to_other_users(self, storage: ObjectStorage, folder: Path) -> None:
        await put(storage, b"x")

        assert mode_of(folder) == 0o700

    async def test_objects_are_files_under_their_keys(self, storage: ObjectStorage, folder: Path) -> None:
        await put(storage, b"bytes")
        await put(storage, chunks_of(LARGE), key="media/job/large.png")

        assert (folder / KEY).read_bytes() == b"bytes"
        assert (folder / "media/job/large.png").read_bytes() == LARGE
        assert staged(folder) == []

    async def test_a_failed_or_canceled_put_leaves_no_file_at_all(
        self, storage: ObjectStorage, folder: Path
    ) -> None:
        with pytest.raises(ZeroDivisionError):
            await put(storage, broken_after(LARGE, ZeroDivisionError()))
        stalled = asyncio.Event()
        running = asyncio.create_task(put(storage, stalled_after(LARGE, stalled)))
        await stalled.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: staged(folder) == [])

        assert files_below(folder) == []

    async def test_a_put_canceled_at_any_moment_leaves_all_or_nothing(
        self, storage: ObjectStorage, folder: Path
    ) -> None:
        for number in range(60):
            key = f"media/job/{number}.png"
            running = asyncio.create_task(put(storage, chunks_of(LARGE, size=4_000_000), key=key))
            await asyncio.sleep(number / 5_000)
            running.cancel()
            await asyncio.wait({running})

            assert not (folder / key).exists() or (folder / key).stat().st_size == len(LARGE)
        await until(lambda: staged(folder) == [])

    async def test_a_file_that_is_being_written_is_not_listed(
        self, storage: ObjectStorage, folder: Path
    ) -> None:
        stalled = asyncio.Event()
        running = asyncio.create_task(put(storage, stalled_after(b"half", stalled)))
        await stalled.wait()
        await until(lambda: len(staged(folder)) == 1)

        assert [found async for found in storage.list("")] == []

        running.cancel()
        await asyncio.wait({running})

    async def test_only_old_files_of_killed_writers_are_removed_at_the_next_start(self, folder: Path) -> None:
        open_storage(folder.as_uri(), signer=SIGNER)
        old, young = folder / ".staging" / "old", folder / ".staging" / "young"
        for path in (old, young):
            path.write_bytes(b"half")
        two_days_ago = time.time() - 2 * 86_400
        os.utime(old, (two_days_ago, two_days_ago))
        open_storage(folder.as_uri(), signer=SIGNER)

        assert staged(folder) == [young]

    async def test_a_disk_that_refuses_is_a_storage_error_that_names_the_reason(
        self, storage: ObjectStorage, folder: Path
    ) -> None:
        (folder / "media").write_bytes(b"a file where a folder should be")
        for content in (b"x", chunks_of(LARGE)):
            with pytest.raises(
                StorageError, match=r"cannot write media/job/result/1\.png: .*(exists|directory)"
            ):
                await put(storage, content)
        await until(lambda: staged(folder) == [])

        assert files_below(folder) == [folder / "media"]

    async def test_a_folder_that_cannot_be_made_stops_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConfigurationError, match="FLEEK_STORAGE_URL: cannot use the folder"):
            open_storage((tmp_path / "file" / "store").as_uri(), signer=SIGNER)

    async def test_a_store_that_cannot_be_written_fails_its_check(
        self, storage: ObjectStorage, folder: Path
    ) -> None:
        (folder / "fleek-check").write_bytes(b"in the way")
        with pytest.raises(StorageError):
            await storage.check()

    @pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
    async def test_memory_stays_flat_while_200_megabytes_are_stored(self, folder: Path) -> None:
        grown = await grown_by(folder.as_uri(), "")

        assert grown < MAX_GROWTH
        assert (folder / f"media/probe/{memory_probe.SIZE}.mp4").stat().st_size == memory_probe.SIZE


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/a",
        "s3://bucket:443",
        "s3://bucket/a?region=eu-west-1",
        "s3://bucket/a#b",
        "s3://../a",
        "s3://b%2fc",
        "s3://bucket/a//b",
        "s3://bucket/../a",
    ],
)
def test_the_url_of_a_bucket_is_its_name_and_a_prefix(url: str) -> None:
    with pytest.raises(ConfigurationError, match="FLEEK_STORAGE_URL") as raised:
        open_storage(url, signer=SIGNER)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["", "media", "/var/media", "gs://bucket", "s3://", "file:relative", "file://host/a"]
)
def test_a_url_of_no_known_store_stops_the_start_with_an_example(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"FLEEK_STORAGE_URL: .*file:///"):
        open_storage(url, signer=SIGNER)


async def assert_signs_own_path(storage: ObjectStorage) -> None:
    """The URL is a path on the API, and the signer that was given accepts it until it expires."""
    signed = await storage.sign(KEY, expires_in=TEN_MINUTES)
    parts = urlsplit(signed.url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}

    assert parts.path == f"/v1/objects/{KEY}"
    assert int(query["expires"]) == signed.expires_at.timestamp()
    SIGNER.verify(KEY, query["expires"], query["signature"], datetime.now(UTC))


def staged(folder: Path) -> list[Path]:
    """Files that are being written, or were left."""
    return sorted((folder / ".staging").iterdir())


def mode_of(path: Path) -> int:
    """The permission bits."""
    return path.stat().st_mode & 0o777


def files_below(folder: Path) -> list[Path]:
    """Every file, staged ones included."""
    return [path for path in folder.rglob("*") if path.is_file()]
