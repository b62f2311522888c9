"""What the first bytes of an output say, and how objects and variants are named."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from fleek.core.media import (
    AVIF,
    DECODABLE,
    FLAC,
    GIF,
    JPEG,
    MEDIA_TYPES,
    MP3,
    MP4,
    OGG,
    PNG,
    SNIFF_BYTES,
    VARIANT_PATTERN,
    VARIANTS,
    WAV,
    WEBM,
    WEBP,
    MediaType,
    OutputFormat,
    Variant,
    by_content_type,
    by_extension,
    object_key,
    parse_variant,
    sniff,
    variant_key,
)

HEADS = [
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", PNG),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", JPEG),
    (b"\xff\xd8\xff\xdb", JPEG),
    (b"RIFF\x24\0\0\0WEBPVP8 ", WEBP),
    (b"GIF89a\x01\0\x01\0", GIF),
    (b"GIF87a\x01\0\x01\0", GIF),
    (b"\0\0\0\x1cftypavif\0\0\0\0", AVIF),
    (b"\0\0\0\x1cftypavis\0\0\0\0", AVIF),
    (b"\0\0\0\x20ftypisom\0\0\x02\0", MP4),
    (b"\0\0\0\x18ftypmp42", MP4),
    (b"\x1aE\xdf\xa3\x9fB\x86\x81", WEBM),
    (b"ID3\x04\0\0\0\0", MP3),
    (b"\xff\xfb\x90d", MP3),
    (b"\xff\xf3\x40\xc4", MP3),
    (b"RIFF\x24\0\0\0WAVEfmt ", WAV),
    (b"fLaC\0\0\0\x22", FLAC),
    (b"OggS\0\x02", OGG),
]
OTHERS = [
    b"",
    b"\x89PNG",
    b"\xff\xd8",
    b"RIFF\x24\0\0\0AVI LIST",
    b"RIFF",
    b"<svg xmlns=",
    b"<!DOCTYPE html>",
    b"%PDF-1.7",
    b"%!PS-Adobe",
    b"II*\0",
    b"8BPS",
    b"{}",
    b"MZ",
    b" \x89PNG\r\n\x1a\n",
]


@pytest.mark.parametrize(("head", "media_type"), HEADS)
def test_the_first_bytes_tell_the_type(head: bytes, media_type: MediaType) -> None:
    assert sniff(head) == media_type
    assert sniff(head.ljust(SNIFF_BYTES, b"\0") + b"<script>") == media_type


@pytest.mark.parametrize("head", OTHERS)
def test_everything_else_has_no_type(head: bytes) -> None:
    assert sniff(head) is None


@given(st.binary(max_size=2 * SNIFF_BYTES))
def test_no_more_than_the_sniffed_bytes_matter(head: bytes) -> None:
    assert sniff(head) == sniff(head[:SNIFF_BYTES])


def test_every_type_is_found_by_extension_and_by_content_type() -> None:
    assert [by_extension(media_type.extension) for media_type in MEDIA_TYPES] == list(MEDIA_TYPES)
    assert [by_content_type(media_type.content_type) for media_type in MEDIA_TYPES] == list(MEDIA_TYPES)


@pytest.mark.parametrize("name", ["svg", "PNG", ".png", "", "html"])
def test_an_unknown_extension_or_content_type_is_none(name: str) -> None:
    assert by_extension(name) is None
    assert by_content_type(f"image/{name}+xml") is None


def test_only_plain_pictures_are_ever_decoded() -> None:
    assert {PNG, JPEG, WEBP} == DECODABLE
    assert all(media_type.is_image for media_type in DECODABLE)


def test_pictures_are_told_from_sound_and_film() -> None:
    assert [t for t in MEDIA_TYPES if t.is_image] == [PNG, JPEG, WEBP, GIF, AVIF]


def test_a_variants_name_is_its_width_and_format() -> None:
    assert {str(variant) for variant in VARIANTS} == {
        f"w{width}.{name}" for width in (256, 512, 1024) for name in ("png", "webp", "jpeg")
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_variant_is_read_back_from_its_name(variant: Variant) -> None:
    assert parse_variant(str(variant)) == variant
    assert re.fullmatch(VARIANT_PATTERN, str(variant))


@pytest.mark.parametrize(
    "name", ["", "w512", "w512.gif", "w511.webp", "W512.webp", "w512.webp ", "w512xwebp", "512.webp"]
)
def test_other_names_are_no_variants(name: str) -> None:
    assert parse_variant(name) is None
    assert re.fullmatch(VARIANT_PATTERN, name) is None


def test_an_objects_key_names_job_result_attempt_and_type() -> None:
    assert object_key("job", "result", 7, JPEG) == "media/job/result/7.jpg"


def test_a_variant_lies_beside_its_original() -> None:
    variant = Variant(512, OutputFormat.WEBP)

    assert variant_key("media/job/result/7.jpg", variant) == "media/job/result/7.w512.webp"


def test_keys_of_one_original_and_all_its_variants_differ() -> None:
    key = object_key("job", "result", 1, PNG)

    assert len({key, *(variant_key(key, variant) for variant in VARIANTS)}) == 1 + len(VARIANTS)
