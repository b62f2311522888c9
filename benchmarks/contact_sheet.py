"""Many pictures on one page: rows of equal width, each picture whole, its caption below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_MARGIN, _GAP = 28, 12
_CAPTION_SIZE, _CAPTION_HEIGHT = 14, 26
_RADIUS, _SMOOTHING = 6, 4
_PAPER, _INK = (250, 249, 246), (70, 68, 64)
_ELLIPSIS = "…"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture and the words below it, which are cut to the picture's width."""

    image: Image.Image
    caption: str

    @property
    def aspect(self) -> float:
        """Width by height."""
        return self.image.width / self.image.height


def make_sheet(tiles: Sequence[Tile], *, width: int = 1280, row_height: int = 160) -> Image.Image:
    """A page of `width` pixels whose rows are about `row_height` pixels high; at least one tile."""
    inner = width - 2 * _MARGIN
    rows = _break_rows(tiles, inner / row_height)
    heights = [_height_of(row, inner) for row in rows]
    page_height = 2 * _MARGIN + sum(height + _CAPTION_HEIGHT + _GAP for height in heights) - _GAP
    page = Image.new("RGB", (width, page_height), _PAPER)
    font = ImageFont.load_default(_CAPTION_SIZE)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for tile, left, right in _places(row, inner):
            _paste(page, tile, (left, top, right, top + height), font)
        top += height + _CAPTION_HEIGHT + _GAP
    return page


def _break_rows(tiles: Sequence[Tile], aspect: float) -> list[list[Tile]]:
    """Rows of about the same `aspect`, so that all of them, stretched to one width, are about as high."""
    total = sum(tile.aspect for tile in tiles)
    count = max(1, min(len(tiles), round(total / aspect)))
    rows: list[list[Tile]] = [[] for _ in range(count)]
    passed = 0.0
    for tile in tiles:
        middle = passed + tile.aspect / 2
        rows[min(int(middle / total * count), count - 1)].append(tile)
        passed += tile.aspect
    return [row for row in rows if row]


def _height_of(row: Sequence[Tile], inner: int) -> int:
    gaps = _GAP * (len(row) - 1)
    return round((inner - gaps) / sum(tile.aspect for tile in row))


def _places(row: Sequence[Tile], inner: int) -> Iterator[tuple[Tile, int, int]]:
    """Each tile with its left and right edge; the last one ends exactly at the margin."""
    height = (inner - _GAP * (len(row) - 1)) / sum(tile.aspect for tile in row)
    left = float(_MARGIN)
    for tile in row:
        right = left + tile.aspect * height
        yield tile, round(left), round(right)
        left = right + _GAP


def _paste(page: Image.Image, tile: Tile, box: tuple[int, int, int, int], font: _Font) -> None:
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    picture = tile.image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    page.paste(picture, (left, top), _rounded(size))
    caption = _fit(" ".join(tile.caption.split()), size[0], font)
    ImageDraw.Draw(page).text((left, bottom + 5), caption, _INK, font)


def _rounded(size: tuple[int, int]) -> Image.Image:
    """A mask with round corners, drawn larger and reduced so that they are smooth."""
    large = (size[0] * _SMOOTHING, size[1] * _SMOOTHING)
    mask = Image.new("L", large)
    corners = (0, 0, large[0] - 1, large[1] - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, _RADIUS * _SMOOTHING, fill=255)
    return mask.resize(size, Image.Resampling.LANCZOS)


def _fit(text: str, width: int, font: _Font) -> str:
    """The beginning that fits, with an ellipsis where something was left out."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept and font.getlength(text[:kept].rstrip() + _ELLIPSIS) > width:
        kept -= 1
    return text[:kept].rstrip() + _ELLIPSIS
