"""Colours of a picture: hand-picked moods, mixed by chance, so that no two pictures share theirs."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from fleek.providers.artwork.canvas import Color, mix

_DARK = 95
"""Lightness of the upper sky (0 to 255) below which stars are out."""


@dataclass(frozen=True, slots=True)
class Palette:
    """One harmony: the sky from top to horizon, its light, and the land from far to near."""

    sky: tuple[Color, Color, Color]
    sun: Color
    far: Color
    near: Color
    water: Color
    accent: Color

    @property
    def is_dark(self) -> bool:
        """Whether it is night."""
        red, green, blue = self.sky[0]
        return 0.3 * red + 0.6 * green + 0.1 * blue < _DARK

    def land(self, share: float) -> Color:
        """The land's colour from the far (0) to the near (1): distance fades into the air."""
        return mix(self.far, self.near, share)


def hex_color(text: str) -> Color:
    """`ff8800` as a colour."""
    red, green, blue = bytes.fromhex(text)
    return float(red), float(green), float(blue)


def _palette(text: str) -> Palette:
    top, middle, low, sun, far, near, water, accent = (hex_color(part) for part in text.split())
    return Palette((top, middle, low), sun, far, near, water, accent)


# Each line: three colours of the sky, the sun, far land, near land, water, accent.
MOODS = MappingProxyType(
    {
        name: tuple(_palette(line) for line in lines)
        for name, lines in {
            "dawn": (
                "6f8fc4 e8b7b8 fde3bf fff3d6 d8a9b4 43395f e2a9a4 d9534f",
                "88b3c9 f6cfa9 ffeccd fffaf0 c6a8b5 2f4858 f0b79a e76f51",
                "5b6fae c98fb5 f9c9a0 fff0c9 9f86ad 2b2f55 b48aa6 ffcf56",
            ),
            "day": (
                "4aa3df 9cd3f0 e8f6f8 fff8d8 9fc9d8 2b6553 2f86b3 f25f4c",
                "3b8ea5 8fc9cf f5eed6 fffbe6 a9cdbf 22577a 38a3a5 f4a259",
                "6db7e8 bfe3ee fdf3d9 ffffff 8fc1b5 3a5a40 4aa8a0 e4572e",
            ),
            "dusk": (
                "3d2c5e c2476b ff9a5c ffd27d b1556f 241734 8c3f63 ffd166",
                "27306b a14a76 f7b267 ffe0a3 8e4a6e 1d1a39 5f3b6b f25c54",
                "4b3b6b d96c75 f9b384 fff0bd a05a7a 33203f 9a5068 2ec4b6",
            ),
            "night": (
                "0b1330 1d2f5e 4a5f93 f6f1d5 3a4d7e 080d20 1a2c57 ffcf70",
                "10122b 2d2a5b 6b5b95 fdf6e3 4b4479 0b0a1c 2b2754 ff9e80",
                "0a2239 1d4e6b 5f9ea0 fffbe0 33658a 061420 14425c ff8c61",
            ),
            "mist": (
                "8fa3ad b9c5c9 e3e4df fbf7ea b2bfc3 3b4d57 8ba0a8 c8553d",
                "7d8ca3 aab4c0 dcd6ce fff5e4 a7b0ba 333f50 8492a6 d9a441",
                "a3a9b8 c9c6cf efe6da fffaf0 bfb9c4 4a4458 9a99ab 6a9c89",
            ),
            "winter": (
                "6f9fc8 b7d3e6 f4f4f6 ffffff c3d6e6 35506e 8fb8d4 d1495b",
                "5b7db1 a9bfe0 f6dfe0 fff6f0 b9c6de 2e4372 7f9fc9 ee6c4d",
                "84b6c9 cfe5ea fbf3e4 fff3d0 bcd8df 274c5b 6fa8b8 e07a5f",
            ),
            "ember": (
                "2b0f1c 8c1c13 f2542d ffcb69 7f2318 17090d 6a1a17 ffd23f",
                "3c1518 a63c06 f7a072 ffe3b3 8f3b1b 200d0f 6b2412 f6aa1c",
                "1f1233 6f1d46 e2583e ffd08a 6b2346 130a1e 541a3e ffe066",
            ),
            "verdant": (
                "7fc8a9 c6e5b3 f7f3cf fffde7 a4cf9f 14453d 4f9d8c f28482",
                "5aa9a0 aedcbb eef5d3 fffbdc 8fc4a0 1b4332 40916c ffb703",
                "8fc6d9 d6ead0 fbf6d3 fff9e0 b5d3a0 2f5d3a 6ba99b e56b6f",
            ),
            "candy": (
                "9b8cd9 f2a9c4 ffe3d8 fff6e0 d9a0c9 5a3d7a b48ad6 ff6b8b",
                "6fb7d9 c9c3ee ffd9e3 fffaf0 b9b4e0 51507f 86c5da ff9671",
                "ff9eb5 ffc9b0 fff0d0 ffffff f0a8b8 7a3b69 a8c8d8 3fb8af",
            ),
            "gold": (
                "d98e4a f0c27b fbe8c3 fffbe8 dcb07a 6b3a23 c98f55 2a9d8f",
                "4f9ea8 e8cf9f faecd0 fff8e1 d9b382 7a4327 7fae9f d1603d",
                "c7683f eda960 f9dda4 fff4d2 c98d57 54301f a8703f 3d7ea6",
            ),
            "aurora": (
                "081c2e 0f5257 46c2a0 e9fff4 1f6f6b 05131f 135e60 ff7fb0",
                "1a1440 4b3f8f 58c7b8 f4fff8 3f5a8c 0c0a24 2e4f85 ffd972",
                "0d1b3e 1f5f7a 7ee0b0 f0fff0 2b6f80 07132b 1c5570 c77dff",
            ),
        }.items()
    }
)

TINTS = MappingProxyType(
    {
        word: hex_color(text)
        for word, text in {
            "red": "d7263d",
            "orange": "f58a1f",
            "yellow": "ffd23f",
            "golden": "f2b632",
            "green": "3fa34d",
            "blue": "2f6fde",
            "purple": "7b4fb3",
            "violet": "8a5cc7",
            "pink": "ff7aa8",
            "white": "fbf8f1",
            "black": "1c1c22",
            "brown": "8a5a34",
            "teal": "1f9e94",
            "turquoise": "35c4bd",
            "silver": "b9c2cb",
        }.items()
    }
)
"""Words of a prompt that colour the picture's accents."""


def blend_palettes(one: Palette, other: Palette, share: float) -> Palette:
    """A harmony between two of the same mood."""
    low, middle, high = (mix(a, b, share) for a, b in zip(one.sky, other.sky, strict=True))
    return Palette(
        (low, middle, high),
        mix(one.sun, other.sun, share),
        mix(one.far, other.far, share),
        mix(one.near, other.near, share),
        mix(one.water, other.water, share),
        other.accent if round(share) else one.accent,
    )
