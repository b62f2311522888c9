"""Run as a process: stores 200 MB from a stream and prints by how many bytes its memory grew at most.

Usage: memory_probe.py STORAGE_URL ENDPOINT (an empty ENDPOINT for a disk). Linux only.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fleek.storage.base import ObjectStorage
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SIZE = 200_000_000
_CHUNK = 64_000


async def source(size: int) -> AsyncIterator[bytes]:
    """Fresh memory in every chunk: whoever holds on to chunks grows."""
    for number in range(size // _CHUNK):
        yield number.to_bytes(8) * (_CHUNK // 8)


def peak() -> int:
    """Bytes of memory this program has had at most; getrusage would count the parent's as well."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


async def put(storage: ObjectStorage, size: int) -> None:
    """Store a stream of `size` bytes."""
    await storage.put(f"media/probe/{size}.mp4", source(size), content_type="video/mp4", filename="probe.mp4")


async def main(url: str, endpoint: str) -> None:
    """Store a little first, so that clients and threads are not counted."""
    storage = open_storage(url, signer=UrlSigner(bytes(32)), endpoint=endpoint or None)
    await put(storage, _CHUNK)
    before = peak()
    await put(storage, SIZE)
    sys.stdout.write(str(peak() - before))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
