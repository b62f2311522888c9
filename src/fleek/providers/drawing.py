"""The demo provider's pictures: a prompt and a seed become a poster, always the same one.

Everything is derived from a SHA-256 of the prompt and the seed, by operations whose results do not
depend on the processor (`artwork.canvas` says which); with the same Pillow the bytes are the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from PIL import Image

from fleek.core.media import OutputFormat
from fleek.providers.artwork import abstracts, palettes, scenes, vistas, words
from fleek.providers.artwork.canvas import Layer, render
from fleek.providers.artwork.stage import Dice, Stage

SCENES: Mapping[str, Callable[[Stage], list[Layer]]] = MappingProxyType(
    {
        "hills": scenes.hills,
        "mountains": scenes.mountains,
        "sea": scenes.sea,
        "dunes": scenes.dunes,
        "forest": scenes.forest,
        "city": vistas.city,
        "space": vistas.space,
        "garden": abstracts.garden,
        "ribbons": abstracts.ribbons,
        "terraces": abstracts.terraces,
        "tiles": abstracts.tiles,
    }
)
"""Every kind of picture, by its name in `artwork.words`."""
_ENCODER_OPTIONS: Mapping[OutputFormat, Mapping[str, Any]] = MappingProxyType(
    {
        OutputFormat.PNG: {"compress_level": 1},
        OutputFormat.WEBP: {"quality": 85, "method": 2},
        OutputFormat.JPEG: {"quality": 90},
    }
)


def draw(
    prompt: str, seed: int, width: int, height: int, *, on_progress: Callable[[float], None] | None = None
) -> Image.Image:
    """An RGB picture of `width` x `height` pixels for a prompt and a seed.

    `on_progress` hears, in the calling thread, the share that is done; an exception that it raises
    ends the drawing.
    """
    stage, scene = _plan(prompt, seed, width, height)
    return render(SCENES[scene](stage), width, height, on_progress)


def encode(image: Image.Image, output_format: OutputFormat) -> bytes:
    """The picture as a file, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, output_format.value, **_ENCODER_OPTIONS[output_format])
    return buffer.getvalue()


def _plan(prompt: str, seed: int, width: int, height: int) -> tuple[Stage, str]:
    """Choose scene, mood and subject: by the prompt's words where they say, else by chance."""
    dice = Dice(f"{seed}\n{prompt}")
    said = words.words_of(prompt)
    moods = words.named(said, words.MOODS) or list(palettes.MOODS)
    harmonies = palettes.MOODS[dice.pick(moods)]
    palette = palettes.blend_palettes(dice.pick(harmonies), dice.pick(harmonies), dice.between(0, 1))
    tints = [palettes.TINTS[word] for word in said if word in palettes.TINTS]
    if tints:
        palette = replace(palette, accent=dice.pick(tints))
    subject = next(iter(words.named(said, words.SUBJECTS)), None)
    offered = words.named(said, words.SCENES) or list(SCENES)
    if subject is not None:
        homes = words.HOMES[subject]
        offered = [scene for scene in offered if scene in homes] or list(homes)
    return Stage(width, height, dice, palette, subject), dice.pick(offered)
