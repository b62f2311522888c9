"""Placeholders: the format's own vectors, and what a reader of the format gets back."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from fleek.media.thumbhash import MAX_SIDE, thumbhash

# Computed with the format's reference implementation (npm package thumbhash 0.1.1) of `pattern`.
VECTORS = [
    (1, 1, False, "AAgCBwAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    (1, 1, True, "AAiCBQAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="),
    (7, 5, False, "TZkONZaAh3eFiIiIiHiIiICICKd4"),
    (33, 100, False, "3/cJKhpwd4d3dmhkgIkHh4g="),
    (100, 33, False, "3/cJOphwdneGdHd2cHkHiIg="),
    (100, 33, True, "H/iFGowIkIeXdWhgWQh4iIYDiJhIeHE="),
    (64, 64, False, "3/cJNxpwdodnh3d4dneEaJiHB4lpgIgI"),
    (64, 64, True, "H/iFHQwHcId3iIiHZZCZBYh4anF1gLZFZg=="),
    (100, 75, False, "3/cJNZpwd3eHd3h3d3doZ4B4B3iI"),
    (100, 75, True, "H/iFHIwIgIeHd4d4CZiHgIdICISJi4SYCA=="),
]

Pixels = NDArray[np.uint8]


def pattern(width: int, height: int, *, transparent: bool) -> Pixels:
    """Integers only, so that every language draws the same."""
    y, x = np.mgrid[0:height, 0:width]
    alpha = (x * 5 + y * 11) % 256 if transparent else np.full_like(x, 255)
    return np.stack([x * 255 // width, (x * x + 3 * y * y) % 256, (y * 7 + x * 3) % 256, alpha], -1).astype(
        np.uint8
    )


class Placeholder:
    """What the head of a hash says, read by the format's description."""

    def __init__(self, hashed: bytes) -> None:
        first, second = int.from_bytes(hashed[:3], "little"), int.from_bytes(hashed[3:5], "little")
        luminance = (first & 63) / 63
        yellow, red = (first >> 6 & 63) / 31.5 - 1, (first >> 12 & 63) / 31.5 - 1
        blue = luminance - 2 / 3 * yellow
        self.color = np.array([(3 * luminance - blue + red) / 2, (3 * luminance - blue - red) / 2, blue])
        self.has_alpha = bool(first >> 23)
        self.alpha = (hashed[5] & 15) / 15 if self.has_alpha else 1.0
        long, short = 5 if self.has_alpha else 7, second & 7
        self.aspect_ratio = long / short if second >> 15 else short / long
        self.varies = (first >> 18 & 31, second >> 3 & 63, second >> 9 & 63)


@pytest.mark.parametrize(("width", "height", "transparent", "expected"), VECTORS)
def test_hashes_are_those_of_the_reference_implementation(
    width: int, height: int, transparent: bool, expected: str
) -> None:
    assert base64.b64encode(thumbhash(pattern(width, height, transparent=transparent))).decode() == expected


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    pixels = pattern(40, 30, transparent=False)

    assert thumbhash(pixels) == thumbhash(pixels[..., :3])


@given(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE))
def test_the_aspect_ratio_survives(width: int, height: int) -> None:
    placeholder = Placeholder(thumbhash(np.full((height, width, 3), 100, np.uint8)))

    # Sevenths of the longer side, so at most half a seventh away, and never nothing.
    shorter = min(width, height) / max(width, height)
    assert min(placeholder.aspect_ratio, 1 / placeholder.aspect_ratio) == pytest.approx(
        max(shorter, 1 / 7), abs=1 / 13
    )
    assert width == height or (placeholder.aspect_ratio >= 1) == (width > height) or shorter > 6 / 7


@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(4, 20), st.integers(4, 20))
def test_one_color_gives_that_color_and_no_variation(color: tuple[int, ...], width: int, height: int) -> None:
    placeholder = Placeholder(thumbhash(np.full((height, width, 3), color, np.uint8)))

    assert placeholder.color == pytest.approx(np.array(color) / 255, abs=0.05)
    assert placeholder.varies == (0, 0, 0)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, MAX_SIDE), st.integers(2, MAX_SIDE))
def test_the_average_color_survives(seed: int, width: int, height: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    placeholder = Placeholder(thumbhash(pixels))

    assert placeholder.color == pytest.approx(pixels.mean(axis=(0, 1)) / 255, abs=0.05)
    assert not placeholder.has_alpha


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40))
def test_the_average_color_counts_by_opacity(seed: int, width: int, height: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 4), np.uint8)
    placeholder = Placeholder(thumbhash(pixels))
    alpha = pixels[..., 3:] / 255
    expected = (pixels[..., :3] / 255 * alpha).sum(axis=(0, 1)) / max(alpha.sum(), 1e-9)

    assert placeholder.has_alpha
    assert placeholder.alpha == pytest.approx(alpha.mean(), abs=0.04)
    assert placeholder.color == pytest.approx(expected, abs=0.05)


def test_an_invisible_picture_has_a_hash_too() -> None:
    placeholder = Placeholder(thumbhash(np.zeros((10, 10, 4), np.uint8)))

    assert placeholder.alpha == 0
    assert np.isfinite(placeholder.color).all()


@given(st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE), st.booleans())
def test_a_hash_is_small_whatever_the_shape(width: int, height: int, transparent: bool) -> None:
    hashed = thumbhash(pattern(width, height, transparent=transparent))

    assert 5 < len(hashed) <= 25
    assert math.isfinite(Placeholder(hashed).aspect_ratio)
