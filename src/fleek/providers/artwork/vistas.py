"""Views that are no countryside: a city and space."""

from __future__ import annotations

from dataclasses import dataclass

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
    gradient,
    mix,
    polygon,
    rectangle,
)
from fleek.providers.artwork.elements import sky, stars
from fleek.providers.artwork.stage import Stage
from fleek.providers.artwork.subjects import place_subject

_BLACK: Color = (0.0, 0.0, 0.0)
_NIGHT: Color = (8.0, 9.0, 28.0)
_LAMPLIGHT: Color = (255.0, 205.0, 110.0)
_ROWS = ((0.15, 0.25, 0.5), (0.5, 0.55, 0.42), (0.95, 1.0, 0.26))
"""Rows of towers: nearness, foot between horizon and bottom, height in units."""
_OUTLINE_ONLY = 0.3
"""Nearness up to which no windows are seen."""
_SMALLEST = 2
"""Pixels below which a window cannot be seen."""


def city(stage: Stage) -> list[Layer]:
    """Rows of towers with lit windows; a subject stands on the street in front."""
    horizon = stage.down(stage.dice.between(0.62, 0.75))
    layers, _ = sky(stage, horizon)
    for nearness, foot, tall in _ROWS:
        depth = horizon + (stage.height - horizon) * foot
        layers.append(_towers(stage, depth, stage.unit * tall, nearness))
    if stage.subject is not None:
        street = np.full(stage.width, stage.height - stage.unit * 0.07, dtype=np.float32)
        asphalt = mix(stage.palette.near, _BLACK, 0.35)
        layers.append(place_subject(stage, street, stage.unit * 0.28))
        layers.append(Ridge(street, (asphalt, asphalt), float(stage.height)))
    return layers


def _towers(stage: Stage, foot: float, tall: float, nearness: float) -> Layer:
    """Side by side to the right edge, none higher than `tall` above `foot`; all reach the bottom."""
    dice, unit, shapes = stage.dice, stage.unit, list[Shape]()
    color = stage.palette.land(nearness)
    light = mix(mix(stage.palette.sun, _LAMPLIGHT, 0.6), color, 0.55 - 0.5 * nearness)
    x = -unit * 0.05
    while x < stage.width:
        wide = unit * dice.between(0.06, 0.13)
        top = foot - tall * dice.between(0.35, 1)
        body = mix(color, _BLACK, dice.between(0, 0.12))
        shapes.append(rectangle(x, top, x + wide, stage.height + 1, body))
        shapes += _roof((x, top), wide, body, dice.count(0, 4))
        if nearness > _OUTLINE_ONLY:
            shapes += _windows(stage, (x, top), wide, light)
        x += wide * dice.between(0.9, 1.12)
    return Shapes(shapes)


def _roof(corner: tuple[float, float], wide: float, color: Color, kind: int) -> list[Shape]:
    """A mast, a gable, a block, or nothing."""
    x, top = corner
    mid = x + wide / 2
    match kind:
        case 0:
            return [rectangle(mid - wide * 0.03, top - wide * 0.8, mid + wide * 0.03, top, color)]
        case 1:
            return [polygon([(x, top), (mid, top - wide * 0.7), (x + wide, top)], color)]
        case 2:
            return [rectangle(x + wide * 0.2, top - wide * 0.25, x + wide * 0.8, top, color)]
        case _:
            return []


def _windows(stage: Stage, corner: tuple[float, float], wide: float, light: Color) -> list[Shape]:
    """The lit ones of a tower's windows."""
    dice, columns = stage.dice, stage.dice.count(3, 5)
    step = wide / (columns + 0.6)
    if step < _SMALLEST:
        return []
    share = dice.between(0.15, 0.6) if stage.palette.is_dark else dice.between(0.08, 0.3)
    rows = min(60, int((stage.height - corner[1]) / (step * 1.25)))
    places = (
        (corner[0] + step * (0.55 + column), corner[1] + step * (0.6 + 1.25 * row))
        for row in range(rows)
        for column in range(columns)
        if dice.chance(share)
    )
    return [rectangle(left, top, left + step * 0.5, top + step * 0.62, light) for left, top in places]


@dataclass(frozen=True, slots=True)
class _Globe:
    """A planet with soft bands, lit from one side."""

    center: tuple[float, float]
    radius: float
    stops: tuple[Color, ...]
    bands: Floats
    """Where in the colours each band lies, 0 to 1, from pole to pole."""
    light: tuple[float, float]

    def paint(self, band: Band) -> None:
        """Shade a sphere: the height of its surface is the square root of what x² + y² leave."""
        (x, y), reach = self.center, self.radius + 1
        first, last = band.clip_rows(y - reach, y + reach)
        left, right = band.clip_columns(x - reach, x + reach)
        if first >= last or left >= right:
            return
        down = (band.row_centers(first, last) - y) / self.radius
        across = (band.column_centers(left, right) - x) / self.radius
        distance = np.sqrt(down * down + across * across)
        depth = np.sqrt(np.maximum(1 - distance * distance, 0))
        lit = 0.25 + 0.75 * (across * self.light[0] + down * self.light[1] + depth * 0.55)
        shade = np.clip(lit, 0.12, 1.05)
        colors = self._colors(down + across * 0.25 + (1 - depth) * 0.1)
        cover = np.clip((1 - distance) * self.radius + 0.5, 0, 1)
        band.blend(np.s_[first:last, left:right], [color * shade for color in colors], cover)

    def _colors(self, latitude: Floats) -> Floats:
        """The bands' colours, softly joined; latitudes from about -1.3 to 1.3."""
        last = self.bands.size - 2
        place = np.clip((latitude + 1.3) / 2.6 * (last + 1), 0, last)
        index = place.astype(np.intp)
        share = place - index.astype(np.float32)
        return gradient(self.stops, self.bands[index] + (self.bands[index + 1] - self.bands[index]) * share)


def space(stage: Stage) -> list[Layer]:
    """A planet with rings or moons among the stars."""
    dice, unit = stage.dice, stage.unit
    layers = _deep_sky(stage)
    center = stage.along(dice.between(0.3, 0.7)), stage.down(dice.between(0.4, 0.62))
    radius, tilt = unit * dice.between(0.18, 0.3), dice.between(0.12, 0.3)
    light = dice.pick(((-0.75, -0.45), (0.75, -0.45), (-0.5, 0.6)))
    planet, has_ring = _globe(stage, center, radius, light), dice.chance(0.55)
    if has_ring:
        color = mix(stage.palette.sun, stage.palette.far, 0.3)
        behind, before = (_half_ring(center, radius, turn, color) for turn in (-tilt, tilt))
        layers += [Shapes([behind], 0.75), planet, Shapes([before], 0.85)]
    else:
        layers.append(planet)
    for _ in range(dice.count(1, 3)):
        spot = stage.along(dice.between(0.08, 0.92)), stage.down(dice.between(0.08, 0.92))
        layers.append(_globe(stage, spot, unit * dice.between(0.02, 0.06), light))
    if stage.subject is not None:
        layers.append(place_subject(stage, np.full(stage.width, stage.down(0.95), np.float32), unit * 0.3))
    return layers


def _deep_sky(stage: Stage) -> list[Layer]:
    """Night with stars and clouds of light in the palette's hues."""
    dice, palette, height = stage.dice, stage.palette, float(stage.height)
    shares = zip(palette.sky, (0.25, 0.5, 0.9), strict=True)
    deep = [mix(_NIGHT, _deepened(color), share) for color, share in shares]
    layers: list[Layer] = [Backdrop(deep, height), stars(stage, height * 1.25)]
    for _ in range(3):
        hue = _deepened(dice.pick((palette.sky[0], palette.sky[1], palette.accent, palette.water)))
        x, y = stage.along(dice.between(0, 1)), stage.down(dice.between(0, 1))
        layers.append(Glow((x, y), stage.unit * dice.between(0.3, 0.6), hue, 0.7))
    return layers


def _deepened(color: Color) -> Color:
    """A darker colour of the same hue, with its contrast kept."""
    low = min(color)
    red, green, blue = ((value - low * 0.7) * 0.7 for value in color)
    return red, green, blue


def _globe(stage: Stage, center: tuple[float, float], radius: float, light: tuple[float, float]) -> Layer:
    palette = stage.palette
    between = mix(palette.accent, palette.sun, 0.6)
    stops = (palette.accent, between, palette.water, palette.sun, palette.sky[0])
    bands = np.abs(stage.dice.many(14)) * np.float32(0.6) + np.float32(stage.dice.between(0, 0.4))
    return _Globe(center, radius, stops, bands, light)


def _half_ring(center: tuple[float, float], radius: float, tilt: float, color: Color) -> Shape:
    """The lower half of a flat ring around a planet; with a negative tilt the upper one."""
    outer, inner = list[tuple[float, float]](), list[tuple[float, float]]()
    for i in range(-24, 25):
        s = i / 24
        # The rational form of the circle needs no sine.
        across, rise = 2 * s / (1 + s * s), (1 - s * s) / (1 + s * s) * tilt
        for points, far in ((outer, 2.0 * radius), (inner, 1.45 * radius)):
            points.append((center[0] + across * far, center[1] + (rise + across * 0.22) * far))
    return polygon([*outer, *reversed(inner)], color)
