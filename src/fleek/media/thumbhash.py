"""ThumbHash: a placeholder for an image in about 25 bytes.

The format is Evan Wallace's (https://evanw.github.io/thumbhash): an average colour, and a few
cosine coefficients of luminance and of two colour differences, four bits each.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_SIDE = 100
"""Pixels: larger images gain nothing, by the format's definition."""

_OPAQUE = 255
_CHANNELS_WITH_ALPHA = 4
_COEFFICIENTS = 7
"""At most this many cosines per axis, for the luminance of an opaque image."""
_NOISE = 1e-9
"""Smaller coefficients are rounding errors, and ties round up in spite of them."""

# Rows: luminance, yellow minus blue, red minus green, from red, green and blue.
_TO_LPQ = np.array([[1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 2, -1.0], [1.0, -1.0, 0.0]])

Floats = NDArray[np.float64]


def thumbhash(pixels: NDArray[np.uint8]) -> bytes:
    """The hash of an image of shape (height, width, 3 or 4), straight alpha, no side over MAX_SIDE."""
    height, width = pixels.shape[:2]
    colors, alpha = _over_average(pixels)
    limit = _COEFFICIENTS if alpha is None else 5
    across = max(1, _rounded(limit * width / max(width, height)))
    down = max(1, _rounded(limit * height / max(width, height)))
    luminance, *differences = np.tensordot(_TO_LPQ, _cosines(colors), axes=1)
    channels = [
        _Channel(luminance, max(3, across), max(3, down)),
        *(_Channel(difference, 3, 3) for difference in differences),
    ]
    landscape = width > height
    short = down if landscape else across
    head = _header(channels, has_alpha=alpha is not None, landscape=landscape, short=short)
    if alpha is not None:
        opacity = _Channel(_cosines(alpha)[0], 5, 5)
        head += bytes([_rounded(15 * opacity.mean) | _rounded(15 * opacity.scale) << 4])
        channels.append(opacity)
    return head + _packed([value for channel in channels for value in channel.quantized()])


class _Channel:
    """One channel's mean, its varying coefficients, and the largest of these."""

    def __init__(self, coefficients: Floats, across: int, down: int) -> None:
        self.mean = float(coefficients[0, 0])
        self._varying = coefficients[_kept(across, down)]
        largest = float(np.abs(self._varying).max())
        self.scale = largest if largest > _NOISE else 0.0

    def quantized(self) -> list[int]:
        """The coefficients as 0..15, where 7.5 is zero."""
        if not self.scale:
            return [0] * len(self._varying)
        levels = np.floor((0.5 + 0.5 / self.scale * self._varying) * 15 + 0.5 + _NOISE)
        return [int(level) for level in levels]


def _over_average(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats | None]:
    """Colours from 0 to 1, laid over their average where they are not opaque; alpha where there is any."""
    colors = pixels[..., :3] / 255.0
    if pixels.shape[2] < _CHANNELS_WITH_ALPHA or pixels[..., 3].min() == _OPAQUE:
        return colors, None
    alpha = pixels[..., 3:] / 255.0
    average = (colors * alpha).sum(axis=(0, 1)) / max(alpha.sum(), _NOISE)
    return average * (1 - alpha) + colors * alpha, alpha


def _cosines(channels: Floats) -> Floats:
    """The lowest coefficients of the cosine transform: (height, width, c) -> (c, 7 down, 7 across)."""
    height, width, count = channels.shape
    rows = _waves(height) @ channels.reshape(height, width * count)
    both = np.tensordot(rows.reshape(_COEFFICIENTS, width, count), _waves(width), axes=([1], [1]))
    coefficients: Floats = both.transpose(1, 0, 2) / (width * height)
    return coefficients


@lru_cache(maxsize=MAX_SIDE)
def _waves(length: int) -> Floats:
    """Cosines of 0 to 6 half periods over `length` pixels."""
    waves: Floats = np.cos(np.pi / length * np.outer(np.arange(_COEFFICIENTS), np.arange(length) + 0.5))
    return waves


@lru_cache(maxsize=64)
def _kept(across: int, down: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the coefficients that are kept: a triangle of low ones, without the mean."""
    kept = [(y, x) for y in range(down) for x in range(across) if (x or y) and x * down < across * (down - y)]
    rows, columns = np.array(kept).T
    return rows, columns


def _header(channels: list[_Channel], *, has_alpha: bool, landscape: bool, short: int) -> bytes:
    luminance, yellow, red = channels
    first = (
        _rounded(63 * luminance.mean)
        | _rounded(31.5 + 31.5 * yellow.mean) << 6
        | _rounded(31.5 + 31.5 * red.mean) << 12
        | _rounded(31 * luminance.scale) << 18
        | has_alpha << 23
    )
    second = short | _rounded(63 * yellow.scale) << 3 | _rounded(63 * red.scale) << 9 | landscape << 15
    return first.to_bytes(3, "little") + second.to_bytes(2, "little")


def _packed(nibbles: list[int]) -> bytes:
    """Two values a byte, the earlier one in the lower half."""
    padded = nibbles + [0] * (len(nibbles) % 2)
    return bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2], strict=True))


def _rounded(value: float) -> int:
    return math.floor(value + 0.5 + _NOISE)
