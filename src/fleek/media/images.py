"""Decoding of pictures that somebody else made: their size, a placeholder, smaller copies.

Every function here is CPU work for `ImageWorker`'s threads. A file is opened by the class of the
one format that its first bytes declare, so none of Pillow's forty other decoders ever sees it.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, TypeVar, TypeVarTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fleek.core.errors import InvalidRequest, OutputInvalid
from fleek.core.media import (
    DECODABLE,
    JPEG,
    MAX_DECODED_PIXELS,
    PNG,
    SNIFF_BYTES,
    WEBP,
    MediaType,
    OutputFormat,
    Variant,
    sniff,
)
from fleek.media.thumbhash import thumbhash

_OPENERS: dict[MediaType, Callable[[IO[bytes]], ImageFile]] = {
    PNG: PngImageFile,
    JPEG: JpegImageFile,
    WEBP: WebPImageFile,
}
MAX_IMAGE_BYTES = 64 * 1024 * 1024
"""Larger files are stored, but never decoded."""

_WEBP_HEADER = 30
"""Bytes: enough for the size of every kind of WebP."""
_HASHED_SIDE = 64
"""Pixels: a placeholder keeps seven waves a side, so that more would only cost time."""
_SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_SHRINKABLE = frozenset({"L", "RGB", "RGBA", "CMYK"})
"""Modes in which neighboring pixels can be averaged as they are."""
_MAX_VARIANT_HEIGHT = 16_383
"""Pixels: the longest side that WebP can hold."""
_SAVE_OPTIONS: dict[OutputFormat, dict[str, Any]] = {
    OutputFormat.WEBP: {"format": "WEBP", "quality": 82, "method": 4},
    OutputFormat.JPEG: {"format": "JPEG", "quality": 85, "optimize": True, "progressive": True},
    OutputFormat.PNG: {"format": "PNG", "compress_level": 6},
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation."""
_ON_ITS_SIDE = 5
"""From this EXIF orientation on, width and height change places."""

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class ImageWorker:
    """A bounded number of threads for the work of this module; the decoders release the GIL."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="fleek-image")

    async def run(self, function: Callable[[*Arguments], Result], *args: *Arguments) -> Result:
        """What `function(*args)` gives, computed in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def close(self) -> None:
        """Drop what waits, and end the threads when what runs is done."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Pixels as a viewer shows them, EXIF orientation applied, and the base64 text of a ThumbHash."""

    width: int
    height: int
    thumbhash: str | None
    """None for a picture with more than MAX_DECODED_PIXELS: its size is what its header claims."""


def probe(content: bytes | IO[bytes], media_type: MediaType) -> ImageFacts:
    """Decode a picture of a `DECODABLE` type once, from its beginning.

    Raises OutputInvalid when it is not whole, or not what its first bytes declare.
    """
    with _invalid_when_undecodable():
        try:
            image = _open(content, media_type)
        except _TooManyPixelsError as error:
            return ImageFacts(*error.size, thumbhash=None)
        width, height = image.size
        orientation = _orientation(image)
        if orientation >= _ON_ITS_SIDE:
            width, height = height, width
        small = _shrunk(image, (_HASHED_SIDE, _HASHED_SIDE), Image.Resampling.BOX, reducing_gap=1)
        pixels = np.asarray(_upright(small, orientation))
        return ImageFacts(width, height, base64.b64encode(thumbhash(pixels)).decode())


def encode_variant(content: bytes, variant: Variant) -> bytes:
    """A copy that is at most `variant.width` pixels wide, without any metadata.

    Raises InvalidRequest for what is no picture or has too many pixels, OutputInvalid for what
    cannot be decoded.
    """
    media_type = sniff(content[:SNIFF_BYTES])
    if media_type not in DECODABLE:
        raise no_variants()
    with _invalid_when_undecodable():
        try:
            image = _open(content, media_type)
        except _TooManyPixelsError:
            raise no_variants() from None
        orientation = _orientation(image)
        limits = variant.width, _MAX_VARIANT_HEIGHT
        if orientation >= _ON_ITS_SIDE:
            limits = limits[::-1]
        small = _shrunk(image, limits, Image.Resampling.LANCZOS, reducing_gap=3)
        return _encoded(_upright(small, orientation), variant.output_format)


def no_variants() -> InvalidRequest:
    """The error for a result that variants cannot be made of."""
    return InvalidRequest("Only PNG, JPEG and WebP pictures of up to 40 megapixels have variants")


class _TooManyPixelsError(Exception):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.size = size


@contextmanager
def _invalid_when_undecodable() -> Iterator[None]:
    try:
        yield
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:
        # Hostile files make Pillow raise nearly anything: OSError, SyntaxError, ValueError,
        # struct.error, IndexError, ... Here all of them mean the same.
        message = "The picture is damaged or is not what its first bytes declare"
        raise OutputInvalid(message) from error


def _open(content: bytes | IO[bytes], media_type: MediaType) -> ImageFile:
    """The picture, its pixels not decoded yet, once it is known that decoding them is bounded."""
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    if media_type == WEBP:
        # Pillow's decoder of WebP takes memory for all pixels as soon as it opens a file.
        _require_few_pixels(_webp_size(file.read(_WEBP_HEADER)))
        file.seek(0)
    image = _OPENERS[media_type](file)
    _require_few_pixels(image.size)
    return image


def _require_few_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_DECODED_PIXELS:
        raise _TooManyPixelsError(size)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height as the first chunk declares them (RFC 9649, sections 2.5 to 2.7)."""
    chunk = head[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    sides = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    return sides[0] & 0x3FFF, sides[1] & 0x3FFF


def _orientation(image: ImageFile) -> int:
    """The EXIF orientation; metadata that cannot be read says nothing about the pixels."""
    with suppress(Exception):
        value = image.getexif().get(ExifTags.Base.Orientation)
        return value if value in _UPRIGHT else 1
    return 1


def _shrunk(
    image: Image.Image, limits: tuple[int, int], resampling: Image.Resampling, *, reducing_gap: float
) -> Image.Image:
    """Decoded, within `limits`, as 8-bit RGB, or RGBA where something is transparent."""
    if image.mode not in _SHRINKABLE or "transparency" in image.info:
        image = _plain(image)
    image.thumbnail(limits, resampling, reducing_gap=reducing_gap)
    image.load()
    return _plain(image)


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS:
        # Pillow's own conversion to 8 bits clips instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _encoded(image: Image.Image, output_format: OutputFormat) -> bytes:
    if output_format is OutputFormat.JPEG and image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    # What Pillow would write again by itself: colour profile, comment, resolution, EXIF.
    image.info.clear()
    file = io.BytesIO()
    image.save(file, **_SAVE_OPTIONS[output_format])
    return file.getvalue()
