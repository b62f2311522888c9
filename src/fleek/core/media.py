"""Media types: which bytes Fleek stores, under which extension, and which variants it makes.

The type of an output is what its first bytes say, never what a provider or a header claims.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from fleek.core.ids import parse_id

SNIFF_BYTES = 64
"""How many leading bytes `sniff` needs at most."""

DEFAULT_SIDE = 1024
"""Pixels of a picture's side when neither width nor height was asked for."""

MIN_SIDE, MAX_SIDE, SIDE_STEP = 64, 4096, 8
"""Pixels: the sides a request may ask for."""

MAX_DECODED_PIXELS = 40_000_000
"""Pixels: larger pictures are stored, but never decoded (a 48 kB file can claim 3.6 gigapixels)."""

MAX_SEED = 2**32 - 1


class OutputFormat(StrEnum):
    """Image formats a request may ask for."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


@dataclass(frozen=True, slots=True)
class MediaType:
    """A stored type: its MIME name and the extension of its object key."""

    content_type: str
    extension: str

    @property
    def is_image(self) -> bool:
        """Whether width, height, a thumbhash and variants make sense."""
        return self.content_type.startswith("image/")


PNG = MediaType("image/png", "png")
JPEG = MediaType("image/jpeg", "jpg")
WEBP = MediaType("image/webp", "webp")
GIF = MediaType("image/gif", "gif")
AVIF = MediaType("image/avif", "avif")
MP4 = MediaType("video/mp4", "mp4")
WEBM = MediaType("video/webm", "webm")
MP3 = MediaType("audio/mpeg", "mp3")
WAV = MediaType("audio/wav", "wav")
FLAC = MediaType("audio/flac", "flac")
OGG = MediaType("audio/ogg", "ogg")

MEDIA_TYPES = (PNG, JPEG, WEBP, GIF, AVIF, MP4, WEBM, MP3, WAV, FLAC, OGG)
DECODABLE = frozenset({PNG, JPEG, WEBP})
"""The only formats that are ever handed to a decoder."""

_BY_EXTENSION = {media_type.extension: media_type for media_type in MEDIA_TYPES}
_BY_CONTENT_TYPE = {media_type.content_type: media_type for media_type in MEDIA_TYPES}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"\x1aE\xdf\xa3", WEBM),
    (b"ID3", MP3),
    (b"\xff\xfb", MP3),
    (b"\xff\xf3", MP3),
    (b"fLaC", FLAC),
    (b"OggS", OGG),
)


def sniff(head: bytes) -> MediaType | None:
    """The media type that the first bytes declare, or None when it is not one that Fleek stores."""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF":
        return {b"WEBP": WEBP, b"WAVE": WAV}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return AVIF if head[8:12] in {b"avif", b"avis"} else MP4
    return None


def by_extension(extension: str) -> MediaType | None:
    """The media type behind a stored object's extension."""
    return _BY_EXTENSION.get(extension)


def by_content_type(content_type: str) -> MediaType | None:
    """The media type behind a stored row's content type."""
    return _BY_CONTENT_TYPE.get(content_type)


@dataclass(frozen=True, slots=True)
class Variant:
    """A smaller copy of an image: at most `width` pixels wide, in another format."""

    width: int
    output_format: OutputFormat

    def __str__(self) -> str:
        return f"w{self.width}.{self.output_format}"


VARIANT_WIDTHS = (256, 512, 1024)
VARIANTS = tuple(Variant(width, fmt) for width in VARIANT_WIDTHS for fmt in OutputFormat)
_VARIANT_NAMES = {str(variant): variant for variant in VARIANTS}
VARIANT_PATTERN = "^(" + "|".join(re.escape(name) for name in _VARIANT_NAMES) + ")$"


def parse_variant(name: str) -> Variant | None:
    """`w512.webp` as a variant; None for every name that is not offered."""
    return _VARIANT_NAMES.get(name)


def object_key(job_id: object, media_id: object, fence: int, media_type: MediaType) -> str:
    """Where an output is stored. The fence is in the key, so no key is ever written twice."""
    return f"media/{job_id}/{media_id}/{fence}.{media_type.extension}"


_OBJECT_KEY = re.compile(
    r"(?P<stem>media/(?P<job>[0-9a-f-]{36})/(?P<media>[0-9a-f-]{36})/(?P<fence>[1-9][0-9]{0,8}))"
    r"(?:\.(?P<variant>w[0-9]+))?\.(?P<extension>[a-z0-9]{1,5})"
)


@dataclass(frozen=True, slots=True)
class ObjectName:
    """What the key of a stored output, or of a variant of it, says."""

    key: str
    stem: str
    """The key up to its extensions: the same for an output and its variants."""
    job_id: UUID
    media_id: UUID
    fence: int
    is_variant: bool


def parse_object_key(key: str) -> ObjectName | None:
    """What `object_key` and `variant_key` have put into a key; None for one that they did not make."""
    match = _OBJECT_KEY.fullmatch(key)
    if match is None:
        return None
    job_id, media_id = parse_id(match["job"]), parse_id(match["media"])
    if job_id is None or media_id is None:
        return None
    is_variant = match["variant"] is not None
    return ObjectName(key, match["stem"], job_id, media_id, int(match["fence"]), is_variant)


def variant_key(key: str, variant: Variant) -> str:
    """Where a variant of the object `key` is stored: beside it."""
    stem, _, _ = key.rpartition(".")
    return f"{stem}.{variant}"
