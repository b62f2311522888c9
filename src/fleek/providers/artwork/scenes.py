"""Landscapes: each builds its layers from the lowest to the uppermost."""

from __future__ import annotations

import numpy as np

from fleek.providers.artwork.canvas import Color, Floats, Layer, Ridge, Shapes, Slopes, ellipse, mix
from fleek.providers.artwork.elements import pine, plant, shadow_sides, sky, snow
from fleek.providers.artwork.stage import Peak, Stage, alternating, noise, rolling
from fleek.providers.artwork.subjects import place_subject

_BLACK: Color = (0.0, 0.0, 0.0)
_WHITE: Color = (255.0, 255.0, 255.0)


def _land(stage: Stage, share: float, mist: float = 0.35) -> tuple[Color, Color]:
    """A ridge's colours from its top down: its foot fades into the haze of the horizon."""
    color = stage.palette.land(share)
    return color, mix(color, stage.palette.sky[2], mist * (1 - share))


def hills(stage: Stage) -> list[Layer]:
    """Rolling hills with trees, and whatever stands on them."""
    dice, unit = stage.dice, stage.unit
    horizon = stage.down(dice.between(0.5, 0.64))
    layers, _ = sky(stage, horizon + unit * 0.05)
    count, chosen = dice.count(4, 6), dice.count(2, 3)
    for i in range(count):
        share = i / (count - 1)
        base = horizon + (stage.height - horizon) * share * 0.86
        line = rolling(stage, base, unit * (0.05 + 0.04 * share), unit * dice.between(0.5, 0.95))
        leaf = stage.palette.land(min(1, share + 0.18))
        if i == chosen:
            layers.append(place_subject(stage, line, unit * 0.26))
        if 0 < i < count - 1 and dice.chance(0.75):
            layers.append(plant(stage, line, dice.count(2, 5), unit * (0.035 + 0.09 * share), leaf))
        layers.append(Ridge(line, _land(stage, share), base + unit * 0.25))
    layers.append(_blossoms(stage, horizon))
    return layers


def _blossoms(stage: Stage, horizon: float) -> Layer:
    """Dots of flowers in the foreground, larger towards the viewer."""
    dice, unit = stage.dice, stage.unit
    shapes = []
    for _ in range(dice.pick((0, 60, 130))):
        near = dice.between(0.55, 1)
        y = horizon + (stage.height - horizon) * (0.72 + 0.28 * near * dice.between(0.8, 1))
        color = dice.pick((stage.accent, mix(stage.accent, _WHITE, 0.45), stage.palette.sun))
        shapes.append(ellipse(stage.along(dice.between(0, 1)), y, unit * 0.0065 * near, color, tall=0.8))
    return Shapes(shapes)


def mountains(stage: Stage) -> list[Layer]:
    """Ranges with lit and shaded faces, snow, and pines in front."""
    dice, unit = stage.dice, stage.unit
    horizon = stage.down(dice.between(0.6, 0.72))
    layers, light = sky(stage, horizon)
    ranges = dice.count(2, 3)
    for i in range(ranges):
        share = 0.15 + 0.5 * i / ranges
        base = horizon + unit * 0.1 * i
        swing = unit * dice.between(0.38, 0.5) * (1 - 0.25 * i)
        line, peaks = alternating(stage, base, swing, unit * dice.between(0.2, 0.3))
        line = line - noise(stage, unit * 0.09, 3, sharp=True) * np.float32(unit * 0.018)
        layers.append(Ridge(line, _land(stage, share, 0.7), base))
        if i < ranges - 1 or dice.chance(0.5):
            layers.append(snow(stage, line, peaks, swing * 0.3, mix(_WHITE, stage.palette.sky[2], 0.25)))
        layers.append(shadow_sides(stage, line, peaks, light))
    layers.extend(_pine_front(stage, horizon))
    return layers


def _pine_front(stage: Stage, horizon: float) -> list[Layer]:
    """Two wooded ridges, the nearer with single trees and the subject."""
    unit, layers = stage.unit, list[Layer]()
    for share, size in ((0.75, 0.075), (1.0, 0.15)):
        base = horizon + (stage.height - horizon) * (0.35 if share < 1 else 0.78)
        line = rolling(stage, base, unit * 0.05, unit * 0.7)
        layers.append(_wood(stage, line, unit * size, stage.palette.land(share)))
        if share == 1.0:
            layers.append(place_subject(stage, line, unit * 0.24))
        layers.append(Ridge(line, _land(stage, share), base + unit * 0.2))
    return layers


def _wood(stage: Stage, line: Floats, size: float, leaf: Color) -> Layer:
    """Conifers side by side along a line, with a gap here and there."""
    dice, shapes = stage.dice, []
    x = -size
    while x < stage.width + size:
        tall = size * dice.between(0.55, 1.2)
        shapes.extend(pine(x, stage.height_at(line, x) + tall * 0.1, tall, leaf))
        x += size * (dice.between(0.8, 2.4) if dice.chance(0.12) else dice.between(0.14, 0.36))
    return Shapes(shapes)


def sea(stage: Stage) -> list[Layer]:
    """Water to the horizon, a path of light on it, waves and foam in front."""
    dice, unit, palette = stage.dice, stage.unit, stage.palette
    horizon = stage.down(dice.between(0.42, 0.68))
    layers, light = sky(stage, horizon)
    for i in range(dice.count(0, 2)):
        coast = rolling(
            stage, horizon + unit * 0.02, unit * dice.between(0.04, 0.12), unit * dice.between(0.5, 1.2)
        )
        layers.append(Ridge(coast, _land(stage, 0.1 + 0.15 * i, 0.8), horizon))
    flat = np.full(stage.width, horizon, dtype=np.float32)
    surface = (
        mix(palette.sky[2], palette.water, 0.45),
        palette.water,
        mix(palette.water, palette.near, 0.65),
    )
    layers.append(Ridge(flat, surface, float(stage.height)))
    layers.append(_glitter(stage, light, horizon))
    layers.append(place_subject(stage, flat, unit * dice.between(0.22, 0.4), water=True))
    if dice.chance(0.5):
        layers.extend(_waves(stage, horizon))
    else:
        layers.extend(_headland(stage, horizon))
    return layers


def _glitter(stage: Stage, light: float, horizon: float) -> Layer:
    """The sun's path: dashes that widen towards the viewer, and a few strays."""
    dice, unit, shapes = stage.dice, stage.unit, []
    depth = min(stage.height - horizon, unit * 0.7)
    for i in range(90):
        near = dice.between(0, 1)
        y = horizon + depth * near * near + unit * 0.004
        spread = unit * (0.03 + 0.15 * near) * (1.0 if i % 4 else 4.0)
        half = unit * dice.between(0.008, 0.03) * (0.5 + 1.6 * near)
        x = light + spread * dice.between(-1, 1)
        dash = ellipse(x, y, half, stage.palette.sun, tall=0.09 + 0.05 * near)
        shapes.append(dash.faded(dice.between(0.35, 0.9)))
    return Shapes(shapes, opacity=0.85)


def _headland(stage: Stage, horizon: float) -> list[Layer]:
    """A grassy shore that rises to one side, with trees."""
    dice, unit, layers = stage.dice, stage.unit, list[Layer]()
    rise = np.linspace(0, 1, stage.width, dtype=np.float32)
    if dice.chance(0.5):
        rise = 1 - rise
    for share in (0.7, 1.0):
        base = horizon + (stage.height - horizon) * (0.55 + 0.4 * share)
        line = rolling(stage, base, unit * 0.03, unit * 0.5) - rise * rise * np.float32(
            unit * dice.between(0.12, 0.3)
        )
        layers.append(plant(stage, line, dice.count(1, 4), unit * 0.1 * share, stage.palette.land(share)))
        layers.append(Ridge(line, _land(stage, share), base + unit * 0.2))
    return layers


def _waves(stage: Stage, horizon: float) -> list[Layer]:
    """Rows of waves with a light crest."""
    dice, unit, layers = stage.dice, stage.unit, list[Layer]()
    count = dice.count(3, 5)
    for i in range(count):
        share = (i + 1) / count
        base = horizon + (stage.height - horizon) * (0.42 + 0.5 * share)
        line = rolling(stage, base, unit * (0.012 + 0.028 * share), unit * (0.16 + 0.2 * share), 2)
        color = mix(stage.palette.water, stage.palette.near, 0.25 + 0.6 * share)
        crest = np.float32(unit * 0.02 * share) * np.maximum(noise(stage, unit * 0.16, 1), 0)
        layers.append(Ridge(line, (color, mix(color, stage.palette.near, 0.4)), base + unit * 0.2))
        layers.append(Ridge(line, (mix(color, _WHITE, 0.55),) * 2, base, 0.8, line + crest))
    return layers


def dunes(stage: Stage) -> list[Layer]:
    """Sand in long curves, each dune with a shaded side."""
    dice, unit = stage.dice, stage.unit
    horizon = stage.down(dice.between(0.48, 0.6))
    layers, light = sky(stage, horizon)
    count = dice.count(4, 5)
    for i in range(count):
        share = i / (count - 1)
        base = horizon + unit * 0.05 + (stage.height - horizon) * share * 0.8
        spacing = unit * (0.32 + 0.3 * share) * dice.between(0.8, 1.2)
        line, peaks = alternating(stage, base, unit * (0.1 + 0.14 * share), spacing, sharp_tops=True)
        color = mix(stage.palette.far, stage.lights(0.3), share * 0.8)
        if i == 1:
            layers.append(place_subject(stage, line, unit * 0.26))
        layers.append(Ridge(line, (mix(color, stage.palette.sun, 0.3), color), base + unit * 0.12))
        layers.append(_lee(stage, line, peaks, light, unit * (0.2 + 0.2 * share)))
    return layers


def _lee(stage: Stage, line: Floats, peaks: list[Peak], light: float, reach: float) -> Layer:
    """The shaded flanks of dunes, which begin sharply at each crest."""
    strength = np.zeros(stage.width, dtype=np.float32)
    columns = np.arange(stage.width, dtype=np.float32)
    for peak in peaks:
        far = peak.right if peak.x > light else peak.left
        share = (columns - np.float32(peak.x)) / np.float32(far - peak.x)
        inside = (share >= 0) & (share < 1)
        strength[inside] = (1 - share[inside]) * np.float32(0.6)
    lean = -0.9 if light < stage.width / 2 else 0.9
    return Slopes(line, strength, reach, lean, mix(stage.palette.near, _BLACK, 0.2))


def forest(stage: Stage) -> list[Layer]:
    """Wooded ridges one behind the other, with mist between them."""
    dice, unit = stage.dice, stage.unit
    horizon = stage.down(dice.between(0.42, 0.55))
    layers, _ = sky(stage, horizon + unit * 0.04)
    count = dice.count(5, 6)
    for i in range(count):
        share = i / (count - 1)
        base = horizon + (stage.height - horizon) * share * 0.95
        line = rolling(stage, base, unit * 0.07, unit * dice.between(0.5, 0.9))
        layers.append(_wood(stage, line, unit * (0.05 + 0.17 * share), stage.palette.land(share)))
        if i == count - 1:
            layers.append(place_subject(stage, line - np.float32(unit * 0.03), unit * 0.24))
        layers.append(Ridge(line, _land(stage, share, 0.9), base + unit * 0.22))
    return layers
