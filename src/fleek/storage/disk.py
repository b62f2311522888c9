"""The object store of a laptop: files below one folder, and memory for tests."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar

import obstore
from obstore.store import LocalStore, MemoryStore

from fleek.core.errors import ConfigurationError
from fleek.storage.adapter import StoreAdapter, StoreLimits
from fleek.storage.base import ObjectInfo, ObjectNotFoundError, SignedUrl, StorageError
from fleek.storage.keys import require_safe_key
from fleek.storage.signed_urls import UrlSigner

_STAGING = ".staging"
"""Half-written files lie here, out of reach of every key: none begins with a dot."""
_STAGING_AGE = 86_400
"""Seconds after which a staged file belongs to a process that was killed."""
_THREADS = 8
"""They mostly wait for the disk, and a journaling file system answers several waits at once."""
_PUBLISH_TRIES = 10

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class MemoryStorage(StoreAdapter):
    """Objects of this process, for tests; URLs are signed for Fleek's own API."""

    def __init__(self, signer: UrlSigner, limits: StoreLimits, clock: Callable[[], datetime]) -> None:
        super().__init__(MemoryStore(), limits, clock)
        self._signer = signer

    async def put(
        self,
        key: str,
        content: AsyncIterable[bytes] | bytes,
        *,
        content_type: str,  # noqa: ARG002  a row has it; this store keeps no attributes
        filename: str,  # noqa: ARG002
    ) -> None:
        """Keep all of `content`, or nothing."""
        require_safe_key(key)
        if not isinstance(content, bytes):
            content = b"".join([chunk async for chunk in content])
        await self._call("write", key, obstore.put_async(self._store, key, content))

    async def prepare(self) -> bool:
        """Nothing to make."""
        return False

    async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
        """A path on Fleek's API."""
        return sign_own_path(self._signer, key, self._clock() + expires_in)


class DiskStorage(StoreAdapter):
    """Objects are files below `root`; URLs are signed for Fleek's own API.

    obstore reads; writing is done here, because its local store does not wait for the disk. A put
    writes to a staging folder, waits for the disk (fsync), renames, and waits for the object's
    folder, which on a journaling file system (ext4, XFS, Btrfs, ZFS, APFS) takes the new folders
    above along. So a key shows all of an object or nothing, and when `put` returns the object
    survives a kill and, as far as the disk keeps its word, a power cut.
    """

    def __init__(
        self, root: Path, signer: UrlSigner, limits: StoreLimits, clock: Callable[[], datetime]
    ) -> None:
        self._root = root
        self._staging = root / _STAGING
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fleek-disk")
        self._signer = signer
        self._is_new = not root.exists()
        _prepare_folders(self._root, self._staging)
        super().__init__(LocalStore(prefix=root, automatic_cleanup=True), limits, clock)

    async def put(
        self,
        key: str,
        content: AsyncIterable[bytes] | bytes,
        *,
        content_type: str,  # noqa: ARG002  a row has it; files carry no attributes
        filename: str,  # noqa: ARG002
    ) -> None:
        """Write all of `content`, or nothing."""
        require_safe_key(key)
        target = self._root / key
        if isinstance(content, bytes):
            await self._in_thread(key, self._write_whole, target, content)
            return
        staged = _StagedFile(self._staging)
        try:
            async for chunk in content:
                await self._in_thread(key, staged.write, chunk)
            await self._in_thread(key, staged.publish, target)
        except BaseException:
            # In a thread, but not waited for: a canceled put must end at once.
            self._threads.submit(staged.discard)
            raise

    async def prepare(self) -> bool:
        """The folder was made when the store was opened; whether it was missing."""
        return self._is_new

    async def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        """Every object below a prefix; files that are still being written are none."""
        async for found in super().list(prefix, after=after):
            if not found.key.startswith(f"{_STAGING}/"):
                yield found

    async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
        """A path on Fleek's API."""
        return sign_own_path(self._signer, key, self._clock() + expires_in)

    async def _delete(self, keys: Sequence[str]) -> None:
        # One by one: the local store calls a missing file an error, and stops there.
        for key in keys:
            with suppress(ObjectNotFoundError):
                await self._call("delete", key, obstore.delete_async(self._store, key))

    def _write_whole(self, target: Path, content: bytes) -> None:
        staged = _StagedFile(self._staging)
        try:
            staged.write(content)
            staged.publish(target)
        except BaseException:
            staged.discard()
            raise

    async def _in_thread(
        self,
        key: str,
        function: Callable[Parameters, Result],
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        except OSError as error:
            message = f"cannot write {key}: {error.strerror}"
            raise StorageError(message) from error


class _StagedFile:
    """A file on its way to a key. Its calls come from several threads, one after the other.

    The lock is for a canceled put: it discards the file while another thread may still be writing.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / uuid.uuid4().hex
        self._file: io.FileIO | None = None
        self._discarded = False
        self._lock = threading.Lock()

    def write(self, chunk: bytes) -> None:
        """Append; a raw file may take less than it was given."""
        rest = memoryview(chunk)
        with self._lock:
            file = self._opened()
            while rest:
                rest = rest[file.write(rest) :]

    def publish(self, target: Path) -> None:
        """Make the whole file visible as `target`, for good."""
        with self._lock:
            file = self._opened()
            os.fsync(file.fileno())
            file.close()
            _move_below(self._path, target)
            _sync_folder(target.parent)

    def discard(self) -> None:
        """Leave nothing behind; a published file is no longer here and stays."""
        with self._lock:
            self._discarded = True
            if self._file is not None:
                self._file.close()
                self._path.unlink(missing_ok=True)

    def _opened(self) -> io.FileIO:
        if self._discarded:
            message = "the put was canceled"
            raise OSError(message)
        if self._file is None:
            self._file = io.FileIO(self._path, "xb")
        return self._file


def _move_below(source: Path, target: Path) -> None:
    """Rename, making the folders above; a delete next to it may take these away at any moment."""
    for tries_left in reversed(range(_PUBLISH_TRIES)):
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            source.rename(target)
        except (FileNotFoundError, FileExistsError):
            if not tries_left:
                raise
        else:
            return


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; one that a delete took away needs nothing."""
    with suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prepare_folders(root: Path, staging: Path) -> None:
    """Make both, closed to other users, and remove what killed processes left."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging.mkdir(mode=0o700, exist_ok=True)
        for left in staging.iterdir():
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _STAGING_AGE:
                    left.unlink()
    except OSError as error:
        message = f"FLEEK_STORAGE_URL: cannot use the folder {root}: {error.strerror}"
        raise ConfigurationError(message) from error


def sign_own_path(signer: UrlSigner, key: str, expires_at: datetime) -> SignedUrl:
    """A path on Fleek's API; signatures count in whole seconds, so the answer does too."""
    expires_at = expires_at.replace(microsecond=0)
    return SignedUrl(signer.sign(key, expires_at), expires_at)
