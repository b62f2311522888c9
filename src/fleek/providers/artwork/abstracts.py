"""Posters that are no landscape: large flowers, sheets of paper, tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from fleek.providers.artwork.canvas import (
    Backdrop,
    Band,
    Color,
    Floats,
    Glow,
    Layer,
    Ridge,
    Shape,
    Shapes,
    Veil,
    ellipse,
    gradient,
    mix,
    polygon,
    rectangle,
)
from fleek.providers.artwork.stage import Dice, Stage, rolling

Point: TypeAlias = tuple[float, float]

_BLACK: Color = (0.0, 0.0, 0.0)
_WHITE: Color = (255.0, 255.0, 255.0)
_LEAF: Color = (70.0, 140.0, 96.0)
_POLLEN: Color = (245.0, 180.0, 60.0)
_LATTICE = 32
"""Values a side of two-dimensional noise; a power of two, so that a mask repeats it."""
_MASK = _LATTICE - 1
_APART = 90
"""Sum of the channels' differences from which two inks can be told apart, of 765."""
_PETALS = ((1, 0), (0.7, 0.7), (0, 1), (-0.7, 0.7), (-1, 0), (-0.7, -0.7), (0, -1), (0.7, -0.7))
_TULIP = (
    (-0.6, -0.75),
    (-0.3, -0.35),
    (0, -0.9),
    (0.3, -0.35),
    (0.6, -0.75),
    (0.5, 0.2),
    (0, 0.6),
    (-0.5, 0.2),
)


def garden(stage: Stage) -> list[Layer]:
    """Large flowers before a sun."""
    dice, unit, palette = stage.dice, stage.unit, stage.palette
    paper = mix(palette.sky[2], _WHITE, 0.35)
    x, y = stage.along(dice.between(0.35, 0.65)), stage.down(dice.between(0.3, 0.45))
    disc = mix(palette.sky[1], palette.sun, dice.between(0.2, 0.6))
    layers: list[Layer] = [
        Backdrop((mix(paper, palette.sky[1], 0.25), paper), float(stage.height)),
        Shapes([ellipse(x, y, unit * dice.between(0.24, 0.34), disc)]),
    ]
    for nearness in (0.35, 0.7, 1.0):
        shapes = list[Shape]()
        for _ in range(max(3, int(4.5 * stage.width / unit))):
            root = stage.along(dice.between(-0.03, 1.03)), stage.height + unit * 0.05
            tall = min(stage.height * 0.82, unit * dice.between(0.32, 0.82)) * (1.12 - 0.3 * nearness)
            shapes += _flower(stage, root, tall, nearness)
        layers.append(Shapes(shapes))
    return layers


def _flower(stage: Stage, root: Point, tall: float, nearness: float) -> list[Shape]:
    """A stem with leaves and a blossom; the farther, the paler."""
    dice, unit, palette = stage.dice, stage.unit, stage.palette
    green = mix(mix(palette.near, _LEAF, 0.4), palette.sky[2], 0.75 - 0.75 * nearness)
    lean, thick = unit * dice.between(-0.09, 0.09), unit * 0.0055
    spine = [(root[0] + lean * (i / 8) * (i / 8), root[1] - tall * i / 8) for i in range(9)]
    left, right = ([(x + side, y) for x, y in spine] for side in (-thick, thick))
    shapes = [polygon([*left, *reversed(right)], green)]
    for i in range(2, 7):
        reach = unit * dice.between(0.07, 0.12) * (1 if i % 2 else -1)
        shapes.append(_leaf(spine[i], reach, unit * dice.between(0.03, 0.09), green))
    warm, deep = mix(palette.accent, palette.sun, 0.5), mix(palette.accent, palette.near, 0.35)
    ink = dice.pick((palette.accent, warm, palette.sky[0], deep))
    heart = mix(palette.sun, _POLLEN, 0.6)
    blossom = dice.pick((_daisy, _dahlia, _tulip))
    return shapes + blossom(
        spine[-1], unit * dice.between(0.045, 0.085), mix(ink, palette.sky[2], 0.6 - 0.6 * nearness), heart
    )


def _leaf(at: Point, reach: float, lift: float, color: Color) -> Shape:
    """A leaf between two parabolas."""
    upper, lower = list[Point](), list[Point]()
    for i in range(9):
        t = i / 8
        x, y, belly = at[0] + reach * t, at[1] - lift * t * (2 - t), abs(reach) * t * (1 - t)
        upper.append((x, y - belly))
        lower.append((x, y + belly * 0.6))
    return polygon([*upper, *reversed(lower)], color)


def _daisy(at: Point, size: float, color: Color, heart: Color) -> list[Shape]:
    x, y = at
    petals = [ellipse(x + a * size * 0.7, y + b * size * 0.7, size * 0.36, color) for a, b in _PETALS]
    return [*petals, ellipse(x, y, size * 0.42, heart)]


def _dahlia(at: Point, size: float, color: Color, heart: Color) -> list[Shape]:
    dark, pale = mix(color, _BLACK, 0.12), mix(color, _WHITE, 0.25)
    rings = ((1.0, dark), (0.74, color), (0.48, pale), (0.24, heart))
    return [ellipse(at[0], at[1], size * part, ink) for part, ink in rings]


def _tulip(at: Point, size: float, color: Color, heart: Color) -> list[Shape]:
    cup = polygon([(at[0] + a * size, at[1] + b * size) for a, b in _TULIP], color)
    return [ellipse(at[0], at[1] - size * 0.45, size * 0.2, heart), cup]


def ribbons(stage: Stage) -> list[Layer]:
    """Sheets of coloured paper in long waves, each throwing a shadow on the one behind."""
    dice, unit, palette = stage.dice, stage.unit, stage.palette
    layers: list[Layer] = [Backdrop(palette.sky, stage.down(0.5))]
    if dice.chance(0.7):
        x, y = stage.along(dice.between(0.2, 0.8)), stage.down(dice.between(0.12, 0.24))
        layers.append(Glow((x, y), unit * 0.3, palette.sun, 0.5))
        layers.append(Shapes([ellipse(x, y, unit * dice.between(0.07, 0.13), palette.sun)]))
    stops = (palette.sky[2], palette.accent, palette.far, palette.water, palette.near)
    count, wavelength = dice.count(7, 11), unit * dice.between(0.7, 1.3)
    slant = stage.height * dice.between(-0.14, 0.14)
    tilt = np.linspace(-1, 1, stage.width, dtype=np.float32) * np.float32(slant)
    shadow = mix(palette.near, _BLACK, 0.5)
    for i in range(count):
        base = stage.down(0.24 + 0.72 * i / count)
        line = rolling(stage, base, unit * dice.between(0.09, 0.16), wavelength, 2) + tilt
        color = _along(stops, i / (count - 1))
        sheet = (mix(color, _WHITE, 0.14), color, mix(color, _BLACK, 0.1))
        layers += [Veil(line, unit * 0.06, shadow, 0.32), Ridge(line, sheet, base + unit * 0.3)]
    return layers


def _along(stops: tuple[Color, ...], share: float) -> Color:
    """One colour of a gradient."""
    index = min(int(share * (len(stops) - 1)), len(stops) - 2)
    return mix(stops[index], stops[index + 1], share * (len(stops) - 1) - index)


@dataclass(frozen=True, slots=True)
class _Terraces:
    """Sheet under sheet of paper with holes: the contour lines of a random surface."""

    stage: Stage
    center: Point
    bumps: Floats
    """Random heights, -1 to 1, of a square lattice of 32 by 32, row by row; it repeats."""
    colors: Floats
    density: float
    """Levels in one unit of the surface's height."""

    def paint(self, band: Band) -> None:
        """Cut the surface into levels; each level's edge throws a shadow on the one below."""
        level, slope = self._surface(band)
        index = np.minimum(level.astype(np.int32), self.colors.shape[1] - 1)
        distance = (level - index.astype(np.float32)) / slope
        shadow = np.maximum(1 - distance / np.float32(self.stage.unit * 0.035), 0)
        edge = np.minimum(distance, 1)
        # In a hollow, where there is hardly a slope, the distance means nothing.
        steep = np.minimum(slope * np.float32(self.stage.unit / self.density * 2), 1)
        light = 1 - shadow * shadow * steep * steep * np.float32(0.4)
        above = np.maximum(index - 1, 0)
        for channel, colors in zip(band.pixels, self.colors, strict=True):
            behind = colors.take(above)
            channel[:] = behind + (colors.take(index) * light - behind) * edge

    def _surface(self, band: Band) -> tuple[Floats, Floats]:
        """The level at every pixel, and how much it changes from one pixel to the next."""
        # One more pixel on each side: neighbouring bands then agree about the slope at their seam.
        down = band.row_centers(-1, band.rows + 1) - np.float32(self.center[1])
        across = band.column_centers(-1, band.width + 1) - np.float32(self.center[0])
        wide, high = across / np.float32(self.stage.width), down / np.float32(self.stage.height)
        radius = np.sqrt(wide * wide + high * high + np.float32(0.01))
        across, down = across / np.float32(self.stage.unit), down / np.float32(self.stage.unit)
        # The second surface is turned by the angle of the 3-4-5 triangle: no grid shows through.
        turned = (
            across * np.float32(0.8) - down * np.float32(0.6),
            across * np.float32(0.6) + down * np.float32(0.8),
        )
        bumps = self._bump(across, down, 1.7) * np.float32(0.2) + self._bump(*turned, 2.9) * np.float32(0.15)
        level = np.maximum((radius + bumps + np.float32(0.1)) * np.float32(self.density), 0)
        step_x, step_y = level[1:-1, 2:] - level[1:-1, :-2], level[2:, 1:-1] - level[:-2, 1:-1]
        slope = np.sqrt(step_x * step_x + step_y * step_y) / 2 + np.float32(1e-6)
        return level[1:-1, 1:-1], slope

    def _bump(self, across: Floats, down: Floats, frequency: float) -> Floats:
        """Two-dimensional value noise, -1 to 1."""
        x, y = across * np.float32(frequency), down * np.float32(frequency)
        column, row = np.floor(x), np.floor(y)
        share_x, share_y = x - column, y - row
        share_x, share_y = share_x * share_x * (3 - 2 * share_x), share_y * share_y * (3 - 2 * share_y)
        left, top = column.astype(np.int32) & _MASK, (row.astype(np.int32) & _MASK) * _LATTICE
        right, low = (left + 1) & _MASK, (top + _LATTICE) & (_LATTICE * _MASK)
        upper_left, lower_left = self.bumps.take(top + left), self.bumps.take(low + left)
        upper = upper_left + (self.bumps.take(top + right) - upper_left) * share_x
        lower = lower_left + (self.bumps.take(low + right) - lower_left) * share_x
        bump: Floats = upper + (lower - upper) * share_y
        return bump


def terraces(stage: Stage) -> list[Layer]:
    """Stacked paper with a view into the depth."""
    dice, palette = stage.dice, stage.palette
    center = stage.along(dice.between(0.3, 0.7)), stage.down(dice.between(0.3, 0.7))
    bright = (palette.sun, palette.sky[2], palette.accent, palette.far, palette.water, palette.near)
    calm = (palette.near, palette.water, *palette.sky)
    density = dice.between(9, 15)
    shares = np.linspace(0, 1, int(density * 0.85) + 1, dtype=np.float32)
    colors = gradient(bright if dice.chance(0.5) else calm, shares)
    return [_Terraces(stage, center, dice.many(_LATTICE * _LATTICE), colors, density)]


def tiles(stage: Stage) -> list[Layer]:
    """A grid of flat figures: arcs, discs, triangles, stripes."""
    dice, palette = stage.dice, stage.palette
    paper = mix(palette.sky[2], _WHITE, 0.4)
    inks = list[Color]()
    for ink in (palette.near, palette.accent, palette.sun, palette.sky[1], palette.water, paper):
        if all(sum(abs(a - b) for a, b in zip(ink, other, strict=True)) > _APART for other in inks):
            inks.append(ink)
    size = stage.unit / dice.count(3, 5)
    shapes = list[Shape]()
    for row in range(int(stage.height / size) + 1):
        for column in range(int(stage.width / size) + 1):
            shapes += _tile(dice, (column * size, row * size), size, inks)
    return [Shapes(shapes)]


@dataclass(frozen=True, slots=True)
class _Cell:
    """One tile: its corner and the way from there into it, both along x and y, and two inks."""

    x: float
    y: float
    right: float
    down: float
    ink: Color
    second: Color

    def at(self, across: float, down: float) -> Point:
        """A point by its shares of the way."""
        return self.x + self.right * across, self.y + self.down * down

    def quarter(self, across: float, down: float, reach: Point, color: Color) -> Shape:
        """A quarter of a disc around a point, both in shares of the way."""
        points = [self.at(across, down)]
        for i in range(17):
            s = i / 16
            # The rational form of the circle needs no sine.
            cosine, sine = (1 - s * s) / (1 + s * s), 2 * s / (1 + s * s)
            points.append(self.at(across + reach[0] * cosine, down + reach[1] * sine))
        return polygon(points, color)

    def disc(self, center: Point, radius: float, color: Color) -> Shape:
        """A disc, in shares of the way."""
        return ellipse(*self.at(*center), radius * abs(self.right), color)


def _tile(dice: Dice, corner: Point, size: float, inks: list[Color]) -> list[Shape]:
    """A ground and one figure."""
    ground, ink, second = dice.pick(inks), dice.pick(inks), dice.pick(inks)
    while ink == ground:
        ink = dice.pick(inks)
    x, y = corner
    right, low = dice.chance(0.5), dice.chance(0.5)
    way = (-size if right else size), (-size if low else size)
    cell = _Cell(x + size * right, y + size * low, *way, ink, second)
    return [rectangle(x, y, x + size, y + size, ground), *dice.pick(_FIGURES)(cell)]


def _arcs(cell: _Cell) -> list[Shape]:
    return [cell.quarter(0, 0, (1, 1), cell.ink), cell.quarter(0, 0, (0.6, 0.6), cell.second)]


def _arc(cell: _Cell) -> list[Shape]:
    return [cell.quarter(0, 0, (1, 1), cell.ink)]


def _eye(cell: _Cell) -> list[Shape]:
    return [cell.disc((0.5, 0.5), 0.4, cell.ink), cell.disc((0.5, 0.5), 0.17, cell.second)]


def _triangle(cell: _Cell) -> list[Shape]:
    return [polygon([cell.at(0, 0), cell.at(1, 0), cell.at(0, 1)], cell.ink)]


def _stripes(cell: _Cell) -> list[Shape]:
    bars = ((i / 6, (i + 1) / 6) for i in (0, 2, 4))
    return [polygon([cell.at(0, a), cell.at(1, a), cell.at(1, b), cell.at(0, b)], cell.ink) for a, b in bars]


def _leaves(cell: _Cell) -> list[Shape]:
    shapes = list[Shape]()
    for left in (0.0, 0.5):
        shapes.append(cell.quarter(left, 0, (0.5, 0.5), cell.ink))
        shapes.append(cell.quarter(left + 0.5, 1, (-0.5, -0.5), cell.second))
    return shapes


def _sunrise(cell: _Cell) -> list[Shape]:
    half = [cell.quarter(0.5, 0, (side * 0.5, 0.5), cell.ink) for side in (-1, 1)]
    return [*half, cell.disc((0.5, 0.72), 0.16, cell.second)]


_FIGURES: tuple[Callable[[_Cell], list[Shape]], ...] = (
    _arcs,
    _arc,
    _eye,
    _triangle,
    _stripes,
    _leaves,
    _sunrise,
)
