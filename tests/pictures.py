"""Pictures for tests, drawn here: plain, odd and hostile ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def gradient(width: int, height: int) -> Image.Image:
    """A picture whose corners differ: red grows to the right, green downwards."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = 96
    return Image.fromarray(pixels)


def noise(width: int, height: int) -> Image.Image:
    """A picture that hardly compresses."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """The file's bytes."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(content: bytes) -> Image.Image:
    """The picture in a file, whatever its format, with all its pixels."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that are a valid PNG up to where its pixels should be."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_png_chunk, chunks))


def png_with_text_bomb() -> bytes:
    """A PNG whose compressed comment is 100 times larger than Pillow allows."""
    whole = encoded(gradient(64, 64))
    bomb = _png_chunk((b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))))
    return whole[:33] + bomb + whole[33:]


def jpeg_that_claims(width: int, height: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose frame header says otherwise."""
    whole = encoded(gradient(8, 8), "JPEG")
    frame = whole.index(b"\xff\xc0")
    return whole[: frame + 5] + struct.pack(">HH", height, width) + whole[frame + 9 :]


def webp_that_claims(width: int, height: int) -> bytes:
    """A WebP whose extended header says how large its canvas is, with one small picture on it."""
    inner = encoded(gradient(8, 8), "WEBP")[12:]
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def average(image: Image.Image) -> NDArray[np.float64]:
    """The mean colour, each part from 0 to 1."""
    mean: NDArray[np.float64] = np.asarray(image.convert("RGB")).mean(axis=(0, 1)) / 255
    return mean


def _png_chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, content = chunk
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
