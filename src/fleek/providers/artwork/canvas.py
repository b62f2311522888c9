"""A small painter: layers over one another, drawn band by band, so that memory stays bounded.

Only `+ - * /`, square roots, comparisons and integer drawing touch a pixel. Sines, powers and
exponentials differ in their last bit between processors, and one bit can change a rounded colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats: TypeAlias = npt.NDArray[np.float32]
Color: TypeAlias = tuple[float, float, float]
"""Red, green and blue, each 0 to 255."""

_BAND_PIXELS = 96 * 1024
"""Pixels drawn at once: the working set of a band then fits a processor's second-level cache."""
_FINENESS = 4
"""Shapes are drawn this many times larger and averaged down, which smooths their edges."""


def mix(start: Color, end: Color, share: float) -> Color:
    """The colour `share` (0 to 1) of the way from one to another."""
    red, green, blue = (a + (b - a) * share for a, b in zip(start, end, strict=True))
    return red, green, blue


def gradient(stops: Sequence[Color], shares: Floats) -> Floats:
    """Evenly spread colours at each share (0 to 1) of the way; the shape of `shares`, after one of 3."""
    place = np.clip(shares, 0, 1) * np.float32(len(stops) - 1)
    index = np.minimum(place.astype(np.intp), len(stops) - 2)
    colors = np.array(stops, dtype=np.float32).T
    start, end = colors[:, index], colors[:, index + 1]
    mixed: Floats = start + (end - start) * (place - index.astype(np.float32))
    return mixed


@dataclass(frozen=True, slots=True)
class Band:
    """Rows of the picture being painted: `pixels` has the shape (3, rows, width), 0 to 255."""

    top: int
    pixels: Floats

    @property
    def rows(self) -> int:
        """How many rows this band has."""
        return int(self.pixels.shape[1])

    @property
    def width(self) -> int:
        """How many columns every band has."""
        return int(self.pixels.shape[2])

    def row_centers(self, first: int, last: int) -> Floats:
        """Distances of the rows' centres from the picture's top, as a column."""
        return np.arange(self.top + first, self.top + last, dtype=np.float32)[:, None] + np.float32(0.5)

    def column_centers(self, first: int, last: int) -> Floats:
        """Distances of the columns' centres from the picture's left, as a row."""
        return np.arange(first, last, dtype=np.float32)[None, :] + np.float32(0.5)

    def clip_rows(self, top: float, bottom: float) -> tuple[int, int]:
        """The rows of this band between two heights of the picture; empty when first >= last."""
        return max(0, math.floor(top) - self.top), min(self.rows, math.ceil(bottom) - self.top)

    def clip_columns(self, left: float, right: float) -> tuple[int, int]:
        """The columns between two distances; empty when first >= last."""
        return max(0, math.floor(left)), min(self.width, math.ceil(right))

    def blend(self, region: tuple[slice, slice], colors: Sequence[float | Floats], cover: Floats) -> None:
        """Move a region towards three channels by `cover` (0 to 1)."""
        for channel, color in zip(self.pixels, colors, strict=True):
            part = channel[region]
            part += (color - part) * cover


class Layer(Protocol):
    """Something painted over what lies below it."""

    def paint(self, band: Band) -> None:
        """Paint the rows of this band."""
        ...


@dataclass(frozen=True, slots=True)
class Backdrop:
    """Colours from the top down to `bottom`; the last one goes on below it."""

    stops: Sequence[Color]
    bottom: float

    def paint(self, band: Band) -> None:
        """Fill every row with its colour."""
        band.pixels[:] = gradient(self.stops, band.row_centers(0, band.rows) / np.float32(self.bottom))


@dataclass(frozen=True, slots=True)
class Glow:
    """Light that fades with the distance from a point."""

    center: tuple[float, float]
    radius: float
    color: Color
    strength: float

    def paint(self, band: Band) -> None:
        """Blend by 1 / (1 + d²)², out to where less than one step of a channel is left."""
        (x, y), reach = self.center, self.radius * 4
        first, last = band.clip_rows(y - reach, y + reach)
        left, right = band.clip_columns(x - reach, x + reach)
        if first >= last or left >= right:
            return
        down = (band.row_centers(first, last) - y) / self.radius
        across = (band.column_centers(left, right) - x) / self.radius
        square = down * down + across * across
        # The parabola brings the light to exactly nothing at the reach: no edge can be seen.
        rest = np.maximum(1 - square * np.float32(1 / 16), 0)
        fade = rest / (1 + square)
        band.blend(np.s_[first:last, left:right], self.color, fade * fade * self.strength)


@dataclass(frozen=True, slots=True)
class Ridge:
    """Everything below a line that runs across the picture.

    `line` has one height a column; the colours run from its highest point down to `bottom`.
    """

    line: Floats
    stops: Sequence[Color]
    bottom: float
    opacity: float = 1.0
    until: Floats | None = None
    """A second line below which nothing is painted: the ridge is then a ribbon."""

    def paint(self, band: Band) -> None:
        """Fill with smoothed edges."""
        peak = float(self.line.min())
        low = band.top + band.rows if self.until is None else float(self.until.max())
        first, last = band.clip_rows(peak - 1, low + 1)
        if first >= last:
            return
        rows = band.row_centers(first, last)
        colors = gradient(self.stops, (rows - peak) / np.float32(max(1, self.bottom - peak)))
        cover = _below(self.line, rows)
        if self.until is not None:
            cover = cover * (1 - _below(self.until, rows))
        band.blend(np.s_[first:last, :], list(colors), cover * np.float32(self.opacity))


@dataclass(frozen=True, slots=True)
class Veil:
    """A colour that fades upwards from a line: a shadow on what lies behind, or a curtain of light."""

    line: Floats
    reach: float
    color: Color
    strength: float

    def paint(self, band: Band) -> None:
        """Blend, most at the line and nothing at `reach` above it."""
        first, last = band.clip_rows(float(self.line.min()) - self.reach, float(self.line.max()) + 1)
        if first >= last:
            return
        above = (self.line[None, :] - band.row_centers(first, last)) / self.reach
        soft = np.clip(1 + above * np.float32(self.reach / 2), 0, 1)
        fade = np.clip(1 - above, 0, 1)
        band.blend(np.s_[first:last, :], self.color, fade * fade * soft * np.float32(self.strength))


@dataclass(frozen=True, slots=True)
class Slopes:
    """Shadow on the flanks of a line: `strength` has one value a column, and leans as it goes down."""

    line: Floats
    strength: Floats
    reach: float
    lean: float
    color: Color

    def paint(self, band: Band) -> None:
        """Darken below the line, fading out at `reach` below it."""
        first, last = band.clip_rows(float(self.line.min()) - 1, float(self.line.max()) + self.reach)
        if first >= last:
            return
        rows = band.row_centers(first, last)
        depth = np.maximum(rows - self.line[None, :], 0)
        share = np.minimum(depth / np.float32(self.reach), 1)
        source = band.column_centers(0, band.width) - depth * np.float32(self.lean) * (
            1 - share * np.float32(0.6)
        )
        strength = self.strength[np.clip(source, 0, band.width - 1).astype(np.intp)]
        fade = (1 - share) * strength * _below(self.line, rows)
        band.blend(np.s_[first:last, :], self.color, fade)


def _below(line: Floats, rows: Floats) -> Floats:
    """How much of each pixel lies below a line, 0 to 1; steep parts are smoothed across."""
    slope = np.gradient(line) if line.size > 1 else np.zeros_like(line)
    softness = np.sqrt(1 + slope * slope)
    cover: Floats = np.clip((rows - line[None, :]) / softness[None, :] + np.float32(0.5), 0, 1)
    return cover


@dataclass(frozen=True, slots=True)
class Shape:
    """A polygon or an ellipse; `points` are x, y, x, y, ... (an ellipse's: its box)."""

    points: tuple[float, ...]
    color: Color
    alpha: float = 1.0
    is_ellipse: bool = False

    def faded(self, alpha: float) -> Shape:
        """The same shape with another opacity."""
        return replace(self, alpha=alpha)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        across, down = self.points[::2], self.points[1::2]
        return min(across), min(down), max(across), max(down)

    def draw_on(self, pen: ImageDraw.ImageDraw, corner: tuple[int, int]) -> None:
        """Draw enlarged, with the colour multiplied by its opacity; `corner` is the sheet's left and top."""
        ink = tuple(round(value * self.alpha) for value in (*self.color, 255.0))
        # Rounded down here, since the pen cuts towards zero: a shape would jump where two bands meet.
        points = [math.floor((value - corner[i % 2]) * _FINENESS) for i, value in enumerate(self.points)]
        if self.is_ellipse:
            pen.ellipse(points, fill=ink)
        else:
            pen.polygon(points, fill=ink)


def polygon(points: Sequence[tuple[float, float]], color: Color, alpha: float = 1.0) -> Shape:
    """A filled polygon."""
    return Shape(tuple(value for point in points for value in point), color, alpha)


def rectangle(left: float, top: float, right: float, bottom: float, color: Color) -> Shape:
    """A filled box."""
    return Shape((left, top, right, top, right, bottom, left, bottom), color)


def ellipse(x: float, y: float, radius: float, color: Color, *, tall: float = 1.0) -> Shape:
    """A filled ellipse around a point; `tall` is its height in parts of its width."""
    box = (x - radius, y - radius * tall, x + radius, y + radius * tall)
    return Shape(box, color, is_ellipse=True)


class Shapes:
    """Shapes that cover one another, blended over the picture as one group."""

    def __init__(self, shapes: Sequence[Shape], opacity: float = 1.0) -> None:
        self._shapes = tuple(shapes)
        self._opacity = opacity
        boxes = np.array([shape.box for shape in self._shapes], dtype=np.float32)
        self._boxes = boxes.reshape(-1, 4)

    def paint(self, band: Band) -> None:
        """Draw what touches this band, enlarged, and average it down."""
        boxes = self._boxes
        is_here = (boxes[:, 3] >= band.top) & (boxes[:, 1] <= band.top + band.rows)
        is_here &= (boxes[:, 2] >= 0) & (boxes[:, 0] <= band.width)
        touched = np.flatnonzero(is_here)
        if not touched.size:
            return
        boxes = boxes[touched]
        left, right = band.clip_columns(float(boxes[:, 0].min()), float(boxes[:, 2].max()) + 1)
        first, last = band.clip_rows(float(boxes[:, 1].min()), float(boxes[:, 3].max()) + 1)
        if first < last and left < right:
            inks = self._draw(touched, (left, band.top + first), (right - left, last - first))
            self._blend(band, np.s_[first:last, left:right], inks)

    def _draw(self, touched: npt.NDArray[np.intp], corner: tuple[int, int], size: tuple[int, int]) -> Floats:
        """Red, green, blue, each times the opacity, and the opacity; shape (4, rows, columns), 0 to 255."""
        # CMYK stands for four plain channels: RGBA would be converted before it is averaged.
        sheet = Image.new("CMYK", (size[0] * _FINENESS, size[1] * _FINENESS))
        pen = ImageDraw.Draw(sheet)
        for index in touched:
            self._shapes[index].draw_on(pen, corner)
        return np.asarray(sheet.reduce(_FINENESS)).transpose(2, 0, 1).astype(np.float32)

    def _blend(self, band: Band, region: tuple[slice, slice], inks: Floats) -> None:
        keep = 1 - inks[3] * np.float32(self._opacity / 255)
        for channel, ink in zip(band.pixels, inks[:3], strict=True):
            part = channel[region]
            part *= keep
            part += ink * np.float32(self._opacity)


def render(
    layers: Sequence[Layer], width: int, height: int, on_progress: Callable[[float], None] | None = None
) -> Image.Image:
    """Paint the layers, the lowest first.

    `on_progress` hears the share that is done; an exception that it raises ends the work.
    """
    image = Image.new("RGB", (width, height))
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = Band(top, np.zeros((3, min(rows, height - top), width), dtype=np.float32))
        for layer in layers:
            layer.paint(band)
        levels = np.clip(band.pixels + np.float32(0.5), 0, 255).astype(np.uint8)
        image.paste(Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0))), (0, top))
        if on_progress is not None:
            on_progress((top + band.rows) / height)
    return image
