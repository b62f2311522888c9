"""Parts that many scenes share: the sky with its light, clouds, birds, trees, snow and shadow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fleek.providers.artwork.canvas import (
    Backdrop,
    Color,
    Floats,
    Glow,
    Layer,
    Shape,
    Shapes,
    Veil,
    ellipse,
    mix,
    polygon,
    rectangle,
)
from fleek.providers.artwork.stage import Peak, Stage, rolling

_BLACK: Color = (0.0, 0.0, 0.0)
_WHITE: Color = (255.0, 255.0, 255.0)
_NARROW = 3
"""Columns below which a polygon has no area."""


def sky(stage: Stage, horizon: float) -> tuple[list[Layer], float]:
    """The sky down to `horizon` pixels, with sun or moon; also where its light is, from the left."""
    dice, unit, palette = stage.dice, stage.unit, stage.palette
    x = stage.along(dice.between(0.18, 0.82))
    y = horizon - unit * dice.between(-0.01, 0.42)
    y = max(y, unit * 0.14)
    size = unit * dice.between(0.05, 0.15)
    layers: list[Layer] = [Backdrop(palette.sky, horizon)]
    if palette.is_dark:
        layers.append(stars(stage, horizon))
        if palette.sky[2][1] > palette.sky[2][0]:
            layers.extend(_curtains(stage, horizon))
    layers.append(Glow((x, y), size * 3.2, mix(palette.sky[2], palette.sun, 0.6), 0.75))
    is_crescent = palette.is_dark and y < horizon * 0.6 and dice.chance(0.6)
    layers.append(
        Shapes([_crescent(x, y, size, palette.sun) if is_crescent else ellipse(x, y, size, palette.sun)])
    )
    if dice.chance(0.3 if palette.is_dark else 0.75):
        layers.append(clouds(stage, horizon))
    if not palette.is_dark and dice.chance(0.6):
        layers.append(birds(stage, x, y))
    return layers, x


def _crescent(x: float, y: float, radius: float, color: Color) -> Shape:
    """A waxing moon: half a circle outside, a flatter curve inside."""
    points = []
    for i in range(-16, 17):
        s = i / 16
        # The rational form of the circle needs no sine.
        points.append((x + radius * (1 - s * s) / (1 + s * s), y + radius * 2 * s / (1 + s * s)))
    inner = [(x + (a - x) * 0.5, b) for a, b in reversed(points)]
    return polygon([*points, *inner], color)


def _curtains(stage: Stage, horizon: float) -> list[Layer]:
    """Northern lights."""
    dice, unit, layers = stage.dice, stage.unit, list[Layer]()
    for _ in range(dice.count(2, 3)):
        line = rolling(stage, horizon * dice.between(0.45, 0.8), unit * 0.16, unit * 0.8, 2)
        hue = mix(stage.palette.sky[2], stage.accent, dice.between(0, 0.5))
        layers.append(Veil(line, unit * dice.between(0.2, 0.4), hue, 0.5))
    return layers


def stars(stage: Stage, horizon: float) -> Layer:
    """Stars, fewer and fainter towards the horizon."""
    dice, unit = stage.dice, stage.unit
    number = min(400, int(150 * stage.width * horizon / (unit * unit)))
    shapes = []
    for _ in range(number):
        depth = dice.between(0, 1)
        size = max(0.45, unit * (0.0035 if dice.chance(0.08) else 0.0016) * dice.between(0.6, 1))
        x, y = stage.along(dice.between(0, 1)), horizon * depth * dice.between(0.3, 1)
        shapes.append(ellipse(x, y, size, _WHITE).faded((1 - y / horizon) * dice.between(0.3, 1)))
    return Shapes(shapes)


def clouds(stage: Stage, horizon: float) -> Layer:
    """Long clouds of stacked, rounded bars."""
    dice, unit = stage.dice, stage.unit
    low, middle = stage.palette.sky[2], stage.palette.sky[1]
    color = mix(middle, low, 0.4) if stage.palette.is_dark else mix(low, _WHITE, 0.45)
    shapes: list[Shape] = []
    for _ in range(dice.count(2, 5)):
        x, y = stage.along(dice.between(0, 1)), horizon * dice.between(0.12, 0.75)
        length, bar = unit * dice.between(0.1, 0.24), unit * dice.between(0.012, 0.02)
        for step in range(dice.count(2, 4)):
            half = length * dice.between(0.45, 1) * (1 - 0.18 * step)
            shapes.extend(
                _bar(x + length * dice.between(-0.35, 0.35), y - step * bar * 1.9, half, bar, color)
            )
    return Shapes(shapes, opacity=dice.between(0.35, 0.75))


def _bar(x: float, y: float, half: float, radius: float, color: Color) -> Iterator[Shape]:
    yield rectangle(x - half, y - radius, x + half, y + radius, color)
    yield ellipse(x - half, y, radius, color)
    yield ellipse(x + half, y, radius, color)


def birds(stage: Stage, x: float, y: float) -> Layer:
    """A small flock near the light."""
    dice, unit = stage.dice, stage.unit
    color = mix(stage.palette.near, stage.palette.far, 0.25)
    shapes = []
    for _ in range(dice.count(3, 8)):
        at = x + unit * dice.between(-0.32, 0.32), max(unit * 0.03, y + unit * dice.between(-0.16, 0.1))
        shapes.append(_bird(at[0], at[1], unit * dice.between(0.011, 0.024), dice.between(0.25, 0.7), color))
    return Shapes(shapes)


def _bird(x: float, y: float, wing: float, lift: float, color: Color) -> Shape:
    thick = wing * 0.17
    return polygon(
        [
            (x - wing, y - wing * lift * 0.7),
            (x - wing * 0.5, y - wing * lift),
            (x, y),
            (x + wing * 0.5, y - wing * lift),
            (x + wing, y - wing * lift * 0.7),
            (x + wing * 0.45, y - wing * lift + thick),
            (x, y + thick * 1.5),
            (x - wing * 0.45, y - wing * lift + thick),
        ],
        color,
    )


def round_tree(x: float, y: float, size: float, leaf: Color) -> list[Shape]:
    """A tree of three soft balls; its foot is at (x, y)."""
    trunk = mix(leaf, _BLACK, 0.35)
    lit = mix(leaf, _WHITE, 0.1)
    return [
        rectangle(x - size * 0.045, y - size * 0.5, x + size * 0.045, y, trunk),
        ellipse(x - size * 0.17, y - size * 0.52, size * 0.22, leaf),
        ellipse(x + size * 0.18, y - size * 0.55, size * 0.21, leaf),
        ellipse(x, y - size * 0.74, size * 0.26, leaf),
        ellipse(x - size * 0.07, y - size * 0.79, size * 0.16, lit),
    ]


def poplar(x: float, y: float, size: float, leaf: Color) -> list[Shape]:
    """A tall, narrow tree."""
    return [
        rectangle(x - size * 0.03, y - size * 0.3, x + size * 0.03, y, mix(leaf, _BLACK, 0.35)),
        ellipse(x, y - size * 0.58, size * 0.15, leaf, tall=2.9),
    ]


def pine(x: float, y: float, size: float, leaf: Color) -> list[Shape]:
    """A conifer of four skirts."""
    shapes = [rectangle(x - size * 0.03, y - size * 0.2, x + size * 0.03, y, mix(leaf, _BLACK, 0.3))]
    for step in range(4):
        foot, half = y - size * (0.08 + 0.2 * step), size * (0.27 - 0.052 * step)
        shapes.append(polygon([(x - half, foot), (x, foot - size * 0.36), (x + half, foot)], leaf))
    return shapes


def plant(stage: Stage, line: Floats, number: int, size: float, leaf: Color) -> Layer:
    """Trees of one kind along a line, in small groups."""
    dice = stage.dice
    kind = dice.pick((round_tree, round_tree, poplar, pine))
    shapes: list[Shape] = []
    for _ in range(number):
        x = stage.along(dice.between(-0.02, 1.02))
        for _ in range(dice.count(1, 4)):
            tall = size * dice.between(0.6, 1.15)
            shapes.extend(kind(x, stage.height_at(line, x) + tall * 0.06, tall, leaf))
            x += size * dice.between(0.25, 0.6)
    return Shapes(shapes)


def snow(stage: Stage, line: Floats, peaks: list[Peak], depth: float, color: Color) -> Layer:
    """White tops: each reaches `depth` pixels down from its peak and ends in a ragged edge."""
    return Shapes([shape for peak in peaks for shape in _cap(stage, line, peak, depth, color)])


def _cap(stage: Stage, line: Floats, peak: Peak, depth: float, color: Color) -> Iterator[Shape]:
    first, last = max(0, int(peak.left)), min(stage.width - 1, int(peak.right))
    if last - first < _NARROW:
        return
    part = line[first : last + 1]
    level = float(part.min()) + depth * stage.dice.between(0.7, 1.2)
    inside = np.flatnonzero(part < level) + first
    if inside.size < _NARROW:
        return
    edge = [(float(x) + 0.5, float(line[x]) - 0.5) for x in inside]
    left, right = edge[0][0], edge[-1][0]
    teeth = 7
    rag = [
        (
            right + (left - right) * i / teeth,
            level + depth * (0.28 if i % 2 else -0.22) * stage.dice.between(0.4, 1),
        )
        for i in range(1, teeth)
    ]
    yield polygon([*edge, *rag], color)


def shadow_sides(stage: Stage, line: Floats, peaks: list[Peak], light: float) -> Layer:
    """The rock faces that look away from the light, which is `light` pixels from the left."""
    shapes = []
    for peak in peaks:
        away = peak.right if peak.x > light else peak.left
        first, last = sorted((int(peak.x), int(away)))
        columns = range(max(0, first), min(stage.width, last + 1))
        if len(columns) < _NARROW:
            continue
        edge = [(x + 0.5, float(line[x])) for x in columns]
        if away < peak.x:
            edge.reverse()
        shapes.append(polygon([*edge, *_fold(stage, edge)], mix(stage.palette.near, _BLACK, 0.25)))
    return Shapes(shapes, opacity=0.3)


def _fold(stage: Stage, edge: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """From the valley's foot back up to the peak, along the broken middle of the mountain."""
    (top_x, top_y), (foot_x, foot_y) = edge[0], edge[-1]
    deep = foot_y + (foot_y - top_y) * 0.35
    points = []
    for i in range(8, 0, -1):
        across = (foot_x - top_x) * 0.06 * stage.dice.between(-1, 2)
        points.append((top_x + across, top_y + (deep - top_y) * i / 8))
    return points
