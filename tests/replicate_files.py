"""The files that the fake Replicate serves: as they should be, and in every way that goes wrong."""

from __future__ import annotations

import asyncio
import gzip

from tests.http_wire import chunk, head, whole
from tests.replicate_predictions import Script

HTML = b"<!doctype html><title>502 Bad Gateway</title><h1>502 Bad Gateway</h1>\n"
_ZEROS = bytes(64 * 1024)
_PIECES = 6


async def serve_file(
    writer: asyncio.StreamWriter, content: bytes, script: Script, elsewhere: str, itself: str
) -> None:
    """Write one answer; the connection is closed after it.

    `elsewhere` is where a file really is that is answered by a redirect; `itself` is its own address.
    """
    match script.file:
        case "huge":
            await _stream(writer, content, script.size)
        case "endless":
            await _stream(writer, content, None)
        case "slow":
            await _dribble(writer, content)
        case "truncated":
            writer.write(head(200, {"Content-Length": str(len(content) + 100)}) + content)
        case _:
            writer.write(_answer(content, script, elsewhere, itself))
    await writer.drain()


def _answer(content: bytes, script: Script, elsewhere: str, itself: str) -> bytes:
    answers = {
        "png": whole(200, content, "image/png"),
        "html": whole(200, HTML, "image/png"),
        "empty": whole(200, b"", "image/png"),
        "missing": whole(404, HTML, "text/html"),
        "error": whole(503, HTML, "text/html"),
        "gzip": whole(200, gzip.compress(content), "image/png", {"Content-Encoding": "gzip"}),
        "redirect": whole(302, b"", "text/html", {"Location": elsewhere}),
        "loop": whole(302, b"", "text/html", {"Location": itself}),
    }
    return answers[script.file]


async def _stream(writer: asyncio.StreamWriter, content: bytes, size: int | None) -> None:
    """A picture that goes on with zeros: `size` bytes in all, or for ever, in a chunked body."""
    writer.write(head(200, {"Content-Type": "image/png", "Transfer-Encoding": "chunked"}) + chunk(content))
    sent = len(content)
    while size is None or sent < size:
        piece = _ZEROS if size is None else _ZEROS[: size - sent]
        writer.write(chunk(piece))
        await writer.drain()
        sent += len(piece)
    writer.write(chunk(b""))


async def _dribble(writer: asyncio.StreamWriter, content: bytes) -> None:
    """The content in a few pieces, with pauses of a tenth of a second."""
    writer.write(head(200, {"Content-Type": "image/png", "Content-Length": str(len(content))}))
    size = -(-len(content) // _PIECES)
    for start in range(0, len(content), size):
        await asyncio.sleep(0.1)
        writer.write(content[start : start + size])
        await writer.drain()
