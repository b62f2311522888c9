"""Decoding of pictures that somebody else made: facts, variants, and files that mean harm."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from tests.pictures import (
    average,
    decoded,
    encoded,
    gradient,
    jpeg_that_claims,
    noise,
    png_that_claims,
    png_with_text_bomb,
    webp_that_claims,
)

from fleek.core.errors import InvalidRequest, OutputInvalid
from fleek.core.media import JPEG, PNG, VARIANTS, WEBP, MediaType, OutputFormat, Variant
from fleek.media.images import ImageFacts, ImageWorker, encode_variant, probe

TYPES = [("PNG", PNG), ("JPEG", JPEG), ("WEBP", WEBP)]
SMALL_PNG = Variant(256, OutputFormat.PNG)


def with_orientation(image: Image.Image, orientation: int, file_format: str) -> bytes:
    """A file whose EXIF data says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, file_format, exif=exif)


def corners(image: Image.Image) -> list[tuple[bool, bool]]:
    """For each corner, whether red and whether green is high: where the gradient's corners have gone."""
    right, bottom = image.width - 1, image.height - 1
    pixels = np.asarray(image.convert("RGB"))
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [(bool(pixels[place][0] > 127), bool(pixels[place][1] > 127)) for place in places]


class TestProbe:
    @pytest.mark.parametrize(("file_format", "media_type"), TYPES)
    @pytest.mark.parametrize("size", [(64, 64), (1, 1), (3, 200), (640, 360)], ids=str)
    def test_a_picture_tells_its_size(
        self, file_format: str, media_type: MediaType, size: tuple[int, int]
    ) -> None:
        facts = probe(encoded(gradient(*size), file_format), media_type)

        assert (facts.width, facts.height) == size
        assert facts.thumbhash

    @pytest.mark.parametrize(("file_format", "media_type"), TYPES)
    def test_a_file_is_probed_like_bytes(self, file_format: str, media_type: MediaType) -> None:
        content = encoded(gradient(640, 360), file_format)

        assert probe(io.BytesIO(content), media_type) == probe(content, media_type)

    def test_the_placeholder_is_that_of_the_shown_picture_whatever_its_format_and_size(self) -> None:
        placeholders = [
            probe(encoded(gradient(*size), file_format), media_type).thumbhash
            for size in ((64, 48), (640, 480))
            for file_format, media_type in TYPES
        ]
        heads = [base64.b64decode(text or "")[:3] for text in placeholders]
        luminances = [int.from_bytes(head, "little") & 63 for head in heads]

        assert max(luminances) - min(luminances) <= 1

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
    def test_every_mode_of_png_is_understood(self, mode: str) -> None:
        facts = probe(encoded(gradient(80, 40).convert(mode)), PNG)

        assert (facts.width, facts.height) == (80, 40)

    @pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
    def test_every_mode_of_jpeg_is_understood(self, mode: str) -> None:
        facts = probe(encoded(gradient(80, 40).convert(mode), "JPEG"), JPEG)

        assert (facts.width, facts.height) == (80, 40)

    def test_sixteen_bits_are_scaled_and_not_clipped(self) -> None:
        gray = np.full((64, 64), 0x4000, np.uint16)
        deep = probe(encoded(Image.fromarray(gray)), PNG)
        flat = probe(encoded(Image.new("L", (64, 64), 0x40)), PNG)

        assert deep == flat

    def test_transparency_is_in_the_placeholder(self) -> None:
        picture = gradient(64, 64)
        opaque = probe(encoded(picture), PNG)
        picture.putalpha(Image.linear_gradient("L").resize((64, 64)))
        transparent = probe(encoded(picture), PNG)

        assert opaque.thumbhash
        assert transparent.thumbhash
        assert not base64.b64decode(opaque.thumbhash)[2] >> 7
        assert base64.b64decode(transparent.thumbhash)[2] >> 7

    @pytest.mark.parametrize(("file_format", "media_type"), TYPES)
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_size_and_placeholder_are_those_a_viewer_shows(
        self, file_format: str, media_type: MediaType, orientation: int
    ) -> None:
        facts = probe(with_orientation(gradient(80, 40), orientation, file_format), media_type)

        assert (facts.width, facts.height) == ((40, 80) if orientation >= 5 else (80, 40))
        assert bool(base64.b64decode(facts.thumbhash or "")[4] >> 7) == (orientation < 5)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_unreadable_metadata_does_not_matter(self) -> None:
        content = encoded(gradient(80, 40), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")

        assert probe(content, JPEG).width == 80

    def test_of_an_animation_the_first_picture_counts(self) -> None:
        frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "blue")]
        animation = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

        assert probe(animation, WEBP) == probe(encoded(frames[0], "WEBP", lossless=True), WEBP)

    def test_what_follows_the_picture_is_not_read(self) -> None:
        content = encoded(gradient(64, 64))

        assert probe(content + b"<script>alert(1)</script>", PNG) == probe(content, PNG)


class TestHostileFiles:
    @pytest.mark.parametrize(
        ("content", "media_type"),
        [
            (png_that_claims(60_000, 60_000), PNG),
            (png_that_claims(9_500, 9_500), PNG),
            (png_that_claims(40_000_001, 1), PNG),
            (jpeg_that_claims(65_000, 65_000), JPEG),
            (webp_that_claims(16_383, 16_383), WEBP),
            (webp_that_claims(8_000, 8_000), WEBP),
        ],
        ids=["png-60000", "png-9500", "png-thin", "jpeg-65000", "webp-16383", "webp-8000"],
    )
    def test_a_picture_of_too_many_pixels_is_not_decoded_but_its_claim_is_kept(
        self, content: bytes, media_type: MediaType
    ) -> None:
        begun = time.monotonic()
        facts = probe(content, media_type)

        assert facts.thumbhash is None
        assert facts.width * facts.height > 40_000_000
        assert time.monotonic() - begun < 1

    @pytest.mark.parametrize("lossless", [False, True])
    def test_a_large_webp_without_extended_header_is_not_decoded_either(self, lossless: bool) -> None:
        content = bytearray(encoded(gradient(64, 64), "WEBP", lossless=lossless))
        if lossless:
            content[21:25] = ((16_000 - 1) | (15_000 - 1) << 14).to_bytes(4, "little")
        else:
            content[26:30] = (16_000).to_bytes(2, "little") + (15_000).to_bytes(2, "little")

        assert probe(bytes(content), WEBP) == ImageFacts(16_000, 15_000, None)

    @pytest.mark.parametrize(
        ("content", "media_type"),
        [
            (png_that_claims(1000, 1000), PNG),
            (png_with_text_bomb(), PNG),
            (b"\x89PNG\r\n\x1a\n", PNG),
            (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, PNG),
            (b"\xff\xd8\xff", JPEG),
            (b"\xff\xd8\xff\xe0" + b"\0" * 100, JPEG),
            (b"RIFF\x24\0\0\0WEBP", WEBP),
            (b"RIFF\x24\0\0\0WEBPVP8 " + b"\0" * 100, WEBP),
            (b"", PNG),
            (encoded(gradient(64, 64), "JPEG"), PNG),
            (encoded(gradient(64, 64)), WEBP),
        ],
    )
    def test_a_file_that_lies_is_invalid(self, content: bytes, media_type: MediaType) -> None:
        with pytest.raises(OutputInvalid):
            probe(content, media_type)

    @pytest.mark.parametrize(("file_format", "media_type"), TYPES)
    @pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
    def test_a_truncated_file_is_invalid(self, file_format: str, media_type: MediaType, kept: float) -> None:
        content = encoded(noise(200, 200), file_format)
        with pytest.raises(OutputInvalid, match="damaged"):
            probe(content[: int(len(content) * kept)], media_type)

    @pytest.mark.parametrize(("file_format", "media_type"), TYPES)
    def test_flipped_bytes_never_raise_anything_else(self, file_format: str, media_type: MediaType) -> None:
        content = encoded(noise(40, 40), file_format)
        places = np.random.default_rng(3)
        outcomes: set[type] = set()
        for _ in range(200):
            damaged = bytearray(content)
            for place in places.integers(0, len(content), 3):
                damaged[place] ^= 0xFF
            try:
                outcomes.add(type(probe(bytes(damaged), media_type)))
            except OutputInvalid:
                outcomes.add(OutputInvalid)

        assert OutputInvalid in outcomes


class TestVariants:
    @pytest.mark.parametrize(("file_format", "_media_type"), TYPES)
    @pytest.mark.parametrize("variant", VARIANTS, ids=str)
    def test_a_variant_has_its_width_format_and_the_originals_shape(
        self, file_format: str, _media_type: MediaType, variant: Variant
    ) -> None:
        made = decoded(encode_variant(encoded(gradient(1600, 900), file_format), variant))

        assert made.size == (variant.width, variant.width * 9 // 16)
        assert made.format == variant.output_format.upper()
        assert average(made) == pytest.approx(average(gradient(1600, 900)), abs=0.02)

    @pytest.mark.parametrize("size", [(100, 300), (256, 20), (1, 1)], ids=str)
    def test_a_picture_is_never_enlarged(self, size: tuple[int, int]) -> None:
        assert decoded(encode_variant(encoded(gradient(*size)), SMALL_PNG)).size == size

    def test_a_tall_picture_keeps_its_shape(self) -> None:
        assert decoded(encode_variant(encoded(gradient(512, 2048)), SMALL_PNG)).size == (256, 1024)

    def test_a_picture_too_tall_for_webp_is_shrunk_until_it_fits(self) -> None:
        made = decoded(encode_variant(encoded(gradient(64, 32_766)), Variant(256, OutputFormat.WEBP)))

        assert made.size == (32, 16_383)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
    def test_a_turned_picture_is_set_upright(self, orientation: int, file_format: str) -> None:
        upright = gradient(400, 300)
        undo = {
            1: None,
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }[orientation]
        turned = upright if undo is None else upright.transpose(undo)
        made = decoded(encode_variant(with_orientation(turned, orientation, file_format), SMALL_PNG))

        assert made.size == (256, 192)
        assert corners(made) == corners(upright)

    @pytest.mark.parametrize("output_format", list(OutputFormat))
    @pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
    def test_metadata_is_dropped(self, file_format: str, output_format: OutputFormat) -> None:
        exif = Image.Exif()
        exif[0x010E] = "a secret place"
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        options: dict[str, object] = {"exif": exif, "icc_profile": profile}
        if file_format == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_text("prompt", "a secret prompt")  # type: ignore[attr-defined]  # it is a PngInfo
        if file_format == "JPEG":
            options |= {"comment": b"a secret comment", "dpi": (300, 300)}
        original = encoded(gradient(400, 300), file_format, **options)
        made = encode_variant(original, Variant(256, output_format))

        assert b"secret" in original
        assert b"secret" not in made
        assert b"sRGB" not in made
        assert not {"exif", "icc_profile", "comment", "dpi", "prompt"} & decoded(made).info.keys()

    def test_transparency_is_kept_where_the_format_can(self) -> None:
        picture = Image.new("RGBA", (400, 300), (255, 0, 0, 0))
        for output_format in (OutputFormat.PNG, OutputFormat.WEBP):
            made = decoded(encode_variant(encoded(picture), Variant(256, output_format)))

            assert made.convert("RGBA").getpixel((5, 5))[3] == 0  # type: ignore[index]  # RGBA has four parts

    def test_jpeg_shows_transparency_as_white(self) -> None:
        picture = Image.new("RGBA", (400, 300), (255, 0, 0, 0))
        made = decoded(encode_variant(encoded(picture), Variant(256, OutputFormat.JPEG)))

        assert average(made) == pytest.approx(np.ones(3), abs=0.01)

    @pytest.mark.parametrize(
        "picture",
        [
            encoded(gradient(400, 300).convert("CMYK"), "JPEG"),
            encoded(gradient(400, 300).quantize(256)),
            encoded(Image.fromarray(np.asarray(gradient(400, 300).convert("L")).astype(np.uint16) << 8)),
            encoded(gradient(400, 300).convert("LA")),
        ],
        ids=["cmyk", "palette", "16-bit", "gray-with-alpha"],
    )
    @pytest.mark.parametrize("output_format", list(OutputFormat))
    def test_odd_modes_become_plain_pictures(self, picture: bytes, output_format: OutputFormat) -> None:
        made = decoded(encode_variant(picture, Variant(256, output_format)))

        assert made.mode in {"RGB", "RGBA"}
        assert made.size == (256, 192)
        assert average(made).mean() == pytest.approx(average(gradient(400, 300)).mean(), abs=0.08)

    @pytest.mark.parametrize(
        "content",
        [b"", b"GIF89a\x01\0\x01\0", b"\0\0\0\x20ftypisom", b"<svg/>", png_that_claims(9_500, 9_500)],
    )
    def test_what_is_no_picture_or_too_large_has_no_variants(self, content: bytes) -> None:
        with pytest.raises(InvalidRequest):
            encode_variant(content, SMALL_PNG)

    def test_a_damaged_picture_is_invalid(self) -> None:
        with pytest.raises(OutputInvalid):
            encode_variant(encoded(noise(400, 300))[:-5000], SMALL_PNG)


class TestWorker:
    async def test_work_runs_in_the_workers_threads_and_no_more_of_them(self) -> None:
        worker = ImageWorker(2)
        running, most = [0], [0]
        lock = threading.Lock()

        def work(number: int) -> tuple[int, str]:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.01)
            with lock:
                running[0] -= 1
            return number, threading.current_thread().name

        results = await asyncio.gather(*(worker.run(work, number) for number in range(10)))
        worker.close()

        assert [number for number, _ in results] == list(range(10))
        assert most == [2]
        assert all(name.startswith("fleek-image") for _, name in results)

    async def test_an_error_of_the_work_is_passed_on(self) -> None:
        worker = ImageWorker(1)
        with pytest.raises(OutputInvalid):
            await worker.run(probe, b"", PNG)
        worker.close()
