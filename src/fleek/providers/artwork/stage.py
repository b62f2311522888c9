"""What every scene is given: the picture's size, its chances, its colours; and lines of terrain."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fleek.providers.artwork.canvas import Color, Floats, mix
from fleek.providers.artwork.palettes import Palette

_T = TypeVar("_T")
_LONGEST = 16
"""How many units the longer side may have."""


class Dice:
    """Chances that are the same on every machine: PCG64 seeded with a SHA-256."""

    def __init__(self, text: str) -> None:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))

    def between(self, low: float, high: float) -> float:
        """A number from `low` up to `high`."""
        return low + (high - low) * float(self._generator.random())

    def count(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._generator.integers(high - low + 1))

    def chance(self, probability: float) -> bool:
        """True as often as `probability` says."""
        return float(self._generator.random()) < probability

    def pick(self, choices: Sequence[_T]) -> _T:
        """One of several."""
        return choices[int(self._generator.integers(len(choices)))]

    def many(self, size: int) -> Floats:
        """Numbers from -1 up to 1."""
        return (self._generator.random(size) * 2 - 1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a scene is built. Lengths are pixels."""

    width: int
    height: int
    dice: Dice
    palette: Palette
    subject: str | None = None
    """What the prompt asks to see, when it is something that can be drawn."""

    @property
    def unit(self) -> float:
        """The shorter side, in pixels; in a very long picture a part of the longer one.

        It bounds how many trees, towers or waves stand side by side.
        """
        return max(float(min(self.width, self.height)), max(self.width, self.height) / _LONGEST)

    @property
    def accent(self) -> Color:
        """The colour that stands out."""
        return self.palette.accent

    def along(self, share: float) -> float:
        """A distance from the left."""
        return self.width * share

    def down(self, share: float) -> float:
        """A distance from the top."""
        return self.height * share

    def lights(self, share: float) -> Color:
        """The near land's colour moved towards the sun's."""
        return mix(self.palette.near, self.palette.sun, share)

    def height_at(self, line: Floats, x: float) -> float:
        """A line's height at a distance from the left, inside the picture."""
        return float(line[min(self.width - 1, max(0, int(x)))])


def noise(stage: Stage, wavelength: float, octaves: int, *, sharp: bool = False) -> Floats:
    """A random line across the picture, about -1 to 1: value noise, summed over octaves.

    `wavelength` is the longest wave in pixels; `sharp` joins the values by straight lines.
    """
    total = np.zeros(stage.width, dtype=np.float32)
    columns = np.arange(stage.width, dtype=np.float32) + np.float32(0.5)
    weight, weights = 1.0, 0.0
    for _ in range(octaves):
        place = columns / np.float32(wavelength) + np.float32(stage.dice.between(0, 1))
        index = place.astype(np.intp)
        values = stage.dice.many(math.ceil(stage.width / wavelength) + 3)
        share = place - index.astype(np.float32)
        if not sharp:
            share = share * share * (3 - 2 * share)
        total += (values[index] + (values[index + 1] - values[index]) * share) * np.float32(weight)
        weights += weight
        weight, wavelength = weight * 0.45, wavelength * 0.47
    return total / np.float32(weights)


def rolling(stage: Stage, base: float, swing: float, wavelength: float, octaves: int = 3) -> Floats:
    """A soft line around the height `base`, all in pixels."""
    return np.float32(base) - noise(stage, wavelength, octaves) * np.float32(swing)


@dataclass(frozen=True, slots=True)
class Peak:
    """A top of a line, with the valleys beside it, in pixels from the left."""

    left: float
    x: float
    right: float


def alternating(
    stage: Stage, base: float, swing: float, spacing: float, *, sharp_tops: bool = False
) -> tuple[Floats, list[Peak]]:
    """A line of tops and valleys, about `spacing` apart, and where its tops are."""
    dice, count = stage.dice, math.ceil(stage.width / spacing) + 4
    phase = dice.between(-2, -1)
    places = [(phase + i + dice.between(-0.28, 0.28)) * spacing for i in range(count)]
    is_top = [i % 2 == 0 for i in range(count)]
    heights = [base - swing * (dice.between(0.55, 1) if top else dice.between(0, 0.3)) for top in is_top]
    columns = np.arange(stage.width, dtype=np.float32) + np.float32(0.5)
    x, y = np.array(places, dtype=np.float32), np.array(heights, dtype=np.float32)
    index = np.clip(np.searchsorted(x, columns, side="right") - 1, 0, count - 2)
    share = (columns - x[index]) / (x[index + 1] - x[index])
    if sharp_tops:
        # A parabola that is flat in the valley and steepest at the top, on both flanks.
        rising = np.array(is_top, dtype=np.bool_)[index + 1]
        share = np.where(rising, share * share, 1 - (1 - share) * (1 - share))
    line = y[index] + (y[index + 1] - y[index]) * share
    peaks = [Peak(places[i - 1], places[i], places[i + 1]) for i in range(1, count - 1) if is_top[i]]
    return line, peaks
