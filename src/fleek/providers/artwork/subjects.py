"""Things a prompt may ask for, as small silhouettes that stand in a landscape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from fleek.providers.artwork.canvas import Color, Floats, Shape, Shapes, ellipse, mix, polygon
from fleek.providers.artwork.elements import pine, round_tree
from fleek.providers.artwork.stage import Stage

_BLACK: Color = (0.0, 0.0, 0.0)
_CREAM: Color = (250.0, 244.0, 232.0)
_LAMPLIGHT: Color = (255.0, 214.0, 120.0)
_FLYING = frozenset({"balloon", "rocket"})
_FILLERS = ("", "", "", "house", "balloon", "windmill", "castle")
_FILLERS_AT_SEA = ("boat", "boat", "lighthouse", "balloon", "")


def place_subject(stage: Stage, line: Floats, size: float, *, water: bool = False) -> Shapes:
    """The subject of the prompt on a line of the landscape; without one, often nothing at all."""
    dice = stage.dice
    x = stage.along(dice.between(0.22, 0.78))
    name = stage.subject or dice.pick(_FILLERS_AT_SEA if water else _FILLERS)
    drawer = _DRAWERS.get(name)
    if drawer is None:
        return Shapes(())
    size *= 1.0 if stage.subject else dice.between(0.35, 0.55)
    y = stage.height_at(line, x) + size * (0.1 if water else 0.04)
    if name in _FLYING:
        y = max(size * 1.1, stage.height_at(line, x) - stage.unit * dice.between(0.1, 0.25))
    return Shapes(drawer(stage, _Spot(x, y, size)))


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a subject stands, in pixels. Its own measure: the foot is 0, the height 1, up is positive."""

    x: float
    y: float
    size: float

    def polygon(self, points: str, color: Color, alpha: float = 1.0) -> Shape:
        """A polygon from `x y  x y ...`."""
        numbers = [float(number) * self.size for number in points.split()]
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return polygon([(self.x + across, self.y - up) for across, up in pairs], color, alpha)

    def box(self, sides: str, color: Color) -> Shape:
        """A box from `left low right high`."""
        left, low, right, high = sides.split()
        return self.polygon(f"{left} {low} {right} {low} {right} {high} {left} {high}", color)

    def disc(self, center: tuple[float, float], radius: float, color: Color, *, tall: float = 1.0) -> Shape:
        """An ellipse around a point."""
        across, up = center
        x, y = self.x + across * self.size, self.y - up * self.size
        return ellipse(x, y, radius * self.size, color, tall=tall)


_Drawer: TypeAlias = Callable[[Stage, _Spot], list[Shape]]


def _lighthouse(stage: Stage, spot: _Spot) -> list[Shape]:
    rock, light = mix(stage.palette.near, _BLACK, 0.15), mix(stage.palette.sun, _LAMPLIGHT, 0.4)
    shapes = []
    if stage.palette.is_dark:
        shapes += [
            spot.polygon(f"0 1.03  {side * 2.2} 1.33  {side * 2.2} .98", light, 0.22) for side in (-1, 1)
        ]
    shapes.append(spot.polygon("-.75 -.06  -.5 .1  -.22 .2  .25 .22  .42 .12  .8 -.06", rock))
    for i in range(5):
        low, high = 0.2 + 0.156 * i, 0.2 + 0.156 * (i + 1)
        wide, narrow = 0.115 - 0.009 * i, 0.115 - 0.009 * (i + 1)
        band = f"{-wide} {low}  {wide} {low}  {narrow} {high}  {-narrow} {high}"
        shapes.append(spot.polygon(band, stage.accent if i % 2 else _CREAM))
    return [
        *shapes,
        spot.box("-.1 .968 .1 1", rock),
        spot.box("-.05 1 .05 1.08", light),
        spot.polygon("-.075 1.08  0 1.17  .075 1.08", stage.accent),
    ]


def _boat(stage: Stage, spot: _Spot) -> list[Shape]:
    hull = mix(stage.palette.near, _BLACK, 0.1)
    return [
        spot.polygon("-.42 .14  .46 .18  .3 -.06  -.3 -.06", hull),
        spot.box("-.012 .1 .012 1.05", hull),
        spot.polygon("-.03 1  -.03 .22  -.36 .22", _CREAM),
        spot.polygon(".03 1.05  .44 .24  .03 .24", stage.accent),
    ]


def _balloon(stage: Stage, spot: _Spot) -> list[Shape]:
    stripes = ((0.34, 1.0, stage.accent), (0.21, 1.6, _CREAM), (0.08, 4.1, stage.accent))
    shapes = []
    for wide, tall, color in stripes:
        foot = wide * 0.18
        shapes.append(spot.disc((0, 0.62), wide, color, tall=tall))
        cone = f"{-wide * 0.8} .42  {wide * 0.8} .42  {foot} .12  {-foot} .12"
        shapes.append(spot.polygon(cone, color))
    return [*shapes, spot.box("-.055 0 .055 .08", mix(stage.palette.near, stage.accent, 0.2))]


def _house(stage: Stage, spot: _Spot) -> list[Shape]:
    dark, light = mix(stage.palette.near, _BLACK, 0.1), mix(stage.palette.sun, _LAMPLIGHT, 0.7)
    return [
        spot.box(".2 .42 .29 .82", dark),
        spot.box("-.4 0 .4 .42", mix(_CREAM, stage.palette.far, 0.12)),
        spot.polygon("-.48 .42  -.26 .78  .26 .78  .48 .42", stage.accent),
        spot.box("-.07 0 .07 .25", dark),
        spot.box("-.29 .15 -.16 .31", light),
        spot.box(".16 .15 .29 .31", light),
    ]


def _castle(stage: Stage, spot: _Spot) -> list[Shape]:
    wall, gate = mix(stage.palette.near, _CREAM, 0.42), mix(stage.palette.near, _BLACK, 0.4)
    light, stone = mix(stage.palette.sun, _LAMPLIGHT, 0.6), mix(wall, _BLACK, 0.08)
    shapes = [spot.box("-.4 0 .4 .42", wall)]
    shapes += [spot.box(f"{left} .4 {left + 0.05} .47", wall) for left in (i * 0.095 - 0.4 for i in range(9))]
    for at, half, top in ((-0.4, 0.1, 0.66), (0.4, 0.1, 0.62), (-0.12, 0.09, 0.8), (0.16, 0.075, 0.7)):
        eaves = half * 1.3
        shapes += [
            spot.box(f"{at - half} 0 {at + half} {top}", stone),
            spot.polygon(f"{at - eaves} {top}  {at} {top + 0.26}  {at + eaves} {top}", stage.accent),
            spot.box(f"{at - 0.018} {top - 0.16} {at + 0.018} {top - 0.08}", light),
        ]
    return [*shapes, spot.disc((0.02, 0.12), 0.08, gate), spot.box("-.06 0 .1 .12", gate)]


def _windmill(stage: Stage, spot: _Spot) -> list[Shape]:
    dark = mix(stage.palette.near, _BLACK, 0.15)
    shapes = [
        spot.polygon("-.19 0  .19 0  .1 .64  -.1 .64", _CREAM),
        spot.disc((0, 0.64), 0.12, stage.accent),
        spot.box("-.05 0 .05 .17", dark),
    ]
    for a, b in ((0.43, -0.16), (-0.16, -0.43), (-0.43, 0.16), (0.16, 0.43)):
        side, rise = b * 0.15, -a * 0.15
        sail = f"0 .66  {a} {0.66 + b}  {a + side} {0.66 + b + rise}  {side} {0.66 + rise}"
        shapes.append(spot.polygon(sail, dark))
    return [*shapes, spot.disc((0, 0.66), 0.03, dark)]


def _tree(stage: Stage, spot: _Spot) -> list[Shape]:
    return round_tree(spot.x, spot.y, spot.size * 1.25, mix(stage.palette.land(0.8), stage.accent, 0.35))


def _pine(stage: Stage, spot: _Spot) -> list[Shape]:
    return pine(spot.x, spot.y, spot.size * 1.3, stage.palette.near)


def _cat(stage: Stage, spot: _Spot) -> list[Shape]:
    fur, eye = mix(stage.palette.near, _BLACK, 0.35), mix(stage.accent, (255.0, 230.0, 120.0), 0.5)
    return [
        spot.disc((0.3, 0.2), 0.2, fur, tall=0.9),
        spot.disc((0.32, 0.25), 0.12, mix(stage.palette.far, fur, 0.4), tall=0.9),
        spot.disc((0, 0.22), 0.25, fur, tall=1.15),
        spot.polygon("-.18 .3  -.1 .68  .1 .68  .2 .3", fur),
        spot.disc((0, 0.68), 0.2, fur, tall=0.85),
        spot.polygon("-.2 .68  -.18 .98  -.02 .8", fur),
        spot.polygon(".2 .68  .18 .98  .02 .8", fur),
        spot.disc((-0.08, 0.69), 0.033, eye, tall=1.3),
        spot.disc((0.08, 0.69), 0.033, eye, tall=1.3),
    ]


def _owl(stage: Stage, spot: _Spot) -> list[Shape]:
    plumage, dark = mix(stage.palette.near, stage.accent, 0.3), mix(stage.palette.near, _BLACK, 0.4)
    shapes = [
        spot.polygon("-.25 .6  -.26 .92  0 .76", plumage),
        spot.polygon(".25 .6  .26 .92  0 .76", plumage),
        spot.disc((0, 0.4), 0.29, plumage, tall=1.45),
        spot.disc((0, 0.27), 0.18, mix(plumage, _CREAM, 0.5), tall=1.3),
    ]
    for side in (-1, 1):
        shapes += [
            spot.disc((side * 0.12, 0.6), 0.12, _CREAM),
            spot.disc((side * 0.1, 0.6), 0.06, dark),
            spot.disc((side * 0.08, 0.62), 0.018, _CREAM),
        ]
    return [*shapes, spot.polygon("-.045 .53  .045 .53  0 .43", stage.accent)]


def _robot(stage: Stage, spot: _Spot) -> list[Shape]:
    metal, dark = mix(stage.palette.far, _CREAM, 0.4), mix(stage.palette.near, _BLACK, 0.2)
    limbs = ("-.17 0 -.05 .3", ".05 0 .17 .3", "-.36 .26 -.27 .62", ".27 .26 .36 .62", "-.05 .64 .05 .74")
    shapes = [spot.box(sides, dark) for sides in limbs]
    shapes += [
        spot.box("-.25 .22 .25 .66", metal),
        spot.box("-.1 .38 .1 .54", stage.accent),
        spot.box("-.2 .7 .2 1", metal),
        spot.box("-.012 1 .012 1.12", dark),
        spot.disc((0, 1.13), 0.035, stage.accent),
    ]
    for side in (-0.09, 0.09):
        shapes += [spot.disc((side, 0.87), 0.048, dark), spot.disc((side, 0.88), 0.02, stage.accent)]
    return shapes


def _car(stage: Stage, spot: _Spot) -> list[Shape]:
    dark, glass = mix(stage.palette.near, _BLACK, 0.45), mix(stage.palette.sky[1], _CREAM, 0.4)
    shapes = [
        spot.polygon("-.34 .34  -.2 .6  .16 .6  .36 .34", stage.accent),
        spot.polygon("-.26 .36  -.16 .55  -.03 .55  -.03 .36", glass),
        spot.polygon(".02 .36  .02 .55  .13 .55  .27 .36", glass),
        spot.polygon("-.6 .12  -.58 .34  .42 .36  .6 .28  .62 .12", stage.accent),
        spot.disc((0.57, 0.24), 0.035, mix(stage.palette.sun, _CREAM, 0.3)),
    ]
    for at in (-0.33, 0.33):
        shapes += [spot.disc((at, 0.11), 0.125, dark), spot.disc((at, 0.11), 0.055, _CREAM)]
    return shapes


def _pyramid(stage: Stage, spot: _Spot) -> list[Shape]:
    lit, shade = stage.lights(0.55), stage.lights(0.15)
    return [
        spot.polygon("-.75 .62  -1.26 -.1  -.61 -.1", lit),
        spot.polygon("-.75 .62  -.61 -.1  -.24 -.1", shade),
        spot.polygon(".15 1  -.67 -.1  .37 -.1", lit),
        spot.polygon(".15 1  .37 -.1  .97 -.1", shade),
    ]


def _tower(stage: Stage, spot: _Spot) -> list[Shape]:
    iron = mix(stage.palette.near, stage.accent, 0.15)
    left = "-.3 0  -.45 0  -.3 .24  -.2 .48  -.11 .78  -.06 1.12  -.02 1.42"
    right = ".02 1.42  .06 1.12  .11 .78  .2 .48  .3 .24  .45 0  .3 0"
    return [
        spot.polygon(f"{left}  {right}  .2 .15  0 .21  -.2 .15", iron),
        spot.box("-.32 .24 .32 .28", iron),
        spot.box("-.18 .53 .18 .57", iron),
        spot.box("-.009 1.35 .009 1.56", iron),
    ]


def _rocket(stage: Stage, spot: _Spot) -> list[Shape]:
    dark = mix(stage.palette.near, _BLACK, 0.2)
    return [
        spot.polygon("-.08 .2  .08 .2  0 -.14", (255.0, 196.0, 84.0)),
        spot.polygon("-.13 .45  -.28 .12  -.1 .22", stage.accent),
        spot.polygon(".13 .45  .28 .12  .1 .22", stage.accent),
        spot.disc((0, 0.56), 0.15, _CREAM, tall=2.7),
        spot.polygon("-.115 .82  0 1.03  .115 .82", stage.accent),
        spot.disc((0, 0.62), 0.075, dark),
        spot.disc((0, 0.62), 0.05, mix(stage.palette.sky[2], _CREAM, 0.3)),
        spot.box("-.1 .18 .1 .22", dark),
    ]


_DRAWERS: Mapping[str, _Drawer] = MappingProxyType(
    {
        "lighthouse": _lighthouse,
        "boat": _boat,
        "balloon": _balloon,
        "house": _house,
        "castle": _castle,
        "windmill": _windmill,
        "tree": _tree,
        "pine": _pine,
        "cat": _cat,
        "owl": _owl,
        "robot": _robot,
        "car": _car,
        "pyramid": _pyramid,
        "tower": _tower,
        "rocket": _rocket,
    }
)
SUBJECT_NAMES = frozenset(_DRAWERS)
"""Everything that can be drawn."""
