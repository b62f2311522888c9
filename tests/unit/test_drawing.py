"""Pictures of the demo provider: always the same for a prompt and a seed, never alike for two."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from tests.prompts import sample

from fleek.core.media import MAX_SEED, OutputFormat
from fleek.providers.artwork import palettes, words
from fleek.providers.artwork.subjects import SUBJECT_NAMES
from fleek.providers.drawing import SCENES, draw, encode

SIZES = [(64, 64), (72, 1024), (64, 4096), (4096, 64), (512, 768), (1000, 328)]
ALIKE = 8
"""Mean difference of the channels, of 255, below which two pictures look alike."""
MEBIBYTE = 1024 * 1024
# A scene each: a prompt, and the mean colours of the picture's four quarters.
KNOWN = {
    "garden": ("x0", "84b2af85b6b36ea29774a29a"),
    "city": ("x1", "d59c6adfae7f774d317c5234"),
    "terraces": ("x2", "a09d8a9776568f735790613b"),
    "dunes": ("x4", "a85f3aae67428a5c439d6648"),
    "space": ("x5", "453235170b1f421a1c4b1a1d"),
    "tiles": ("x6", "c7a99fbe9daadcbc94d9b58e"),
    "hills": ("x10", "dad1c4d9d0c39a9294988f93"),
    "sea": ("x15", "c4c5d7bdc3d7808fb190a0bf"),
    "ribbons": ("x16", "c78854a25729612e206b371d"),
    "mountains": ("x25", "8ec4d496c7d485a7aa83a5a9"),
    "forest": ("x26", "aeb5bec0c3c5757e89707984"),
}
ELSEWHERE = """
import hashlib
from fleek.providers.drawing import draw
print(hashlib.sha256(b"".join(draw(f"x{i}", i, 200, 136).tobytes() for i in range(30))).hexdigest())
"""
PEAK = """
from pathlib import Path
from fleek.providers.drawing import draw
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
draw("x", 0, 64, 64)
before = peak()
draw("a map", 1, 4096, 4096)
print(peak() - before)
"""


def glance(image: Image.Image) -> npt.NDArray[np.int_]:
    """What is seen of a square picture from afar: 16 by 16 mean colours."""
    return np.asarray(image.reduce(image.width // 16)).astype(np.int_)


def run(program: str, **environment: str) -> str:
    """What a program prints in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | environment,
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return result.stdout.strip()


def test_another_process_without_the_processors_vector_units_draws_the_same() -> None:
    plain = run(ELSEWHERE, PYTHONHASHSEED="1", NPY_DISABLE_CPU_FEATURES="AVX512_ICL X86_V4 X86_V3")

    assert run(ELSEWHERE, PYTHONHASHSEED="2") == plain


@pytest.mark.parametrize("scene", KNOWN)
def test_a_known_prompt_gives_its_known_picture(scene: str) -> None:
    prompt, colors = KNOWN[scene]
    expected = np.frombuffer(bytes.fromhex(colors), dtype=np.uint8).astype(np.int_)

    quarters = np.asarray(draw(prompt, 0, 64, 64).reduce(32)).astype(np.int_).ravel()

    assert np.abs(quarters - expected).max() <= 1


def test_every_scene_has_a_known_picture() -> None:
    assert KNOWN.keys() == SCENES.keys()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scene", SCENES)
def test_every_scene_can_be_drawn_at_every_shape(scene: str, size: tuple[int, int]) -> None:
    prompt = next(word for word, name in words.SCENES.items() if name == scene)

    image = draw(prompt, 3, *size)

    assert image.size == size
    assert image.mode == "RGB"
    assert len(image.reduce(8).getcolors(MEBIBYTE) or ()) > 1


def test_no_two_of_fifty_real_prompts_look_alike() -> None:
    pictures = [glance(draw(prompt.text, 7, 128, 128)) for prompt in sample(50, seed=7)]

    closest = min(float(np.abs(one - other).mean()) for one, other in combinations(pictures, 2))

    assert closest > ALIKE


def test_two_seeds_of_a_prompt_do_not_look_alike() -> None:
    for prompt in ["a lighthouse at dawn", *(prompt.text for prompt in sample(10, seed=3))]:
        one, other = (glance(draw(prompt, seed, 128, 128)) for seed in (0, MAX_SEED))

        assert np.abs(one - other).mean() > ALIKE


@pytest.mark.parametrize(
    "prompt", ["", " ", "x" * 8000, "日本の灯台 🗼", "\u202e\u0301" * 50, "\ud800", "a\x00b", "{} %s"]
)
def test_every_text_can_be_drawn(prompt: str) -> None:
    assert draw(prompt, 0, 64, 64).size == (64, 64)


@pytest.mark.parametrize(
    "word", ["lighthouse", "boat", "balloon", "house", "castle", "robot", "car", "rocket"]
)
def test_a_subject_is_drawn_in_the_colour_that_the_prompt_says(word: str) -> None:
    noticeable = 40

    pixels = np.asarray(draw(f"a turquoise {word}", 4, 256, 256)).astype(np.int_)
    distance = np.abs(pixels - np.array(palettes.TINTS["turquoise"])).sum(axis=2)

    assert (distance < noticeable).sum() > 100


@pytest.mark.parametrize("subject", sorted(SUBJECT_NAMES))
def test_a_subject_stands_wherever_it_is_at_home(subject: str) -> None:
    word = next(word for word, name in words.SUBJECTS.items() if name == subject)
    places = [
        next(word for word, name in words.SCENES.items() if name == home) for home in words.HOMES[subject]
    ]

    pictures = {draw(f"{word} {place}", 5, 96, 96).tobytes() for place in places}

    assert len(pictures) == len(set(places))


def test_words_name_only_what_exists() -> None:
    assert set(words.SCENES.values()) == set(SCENES)
    assert set(words.MOODS.values()) == set(palettes.MOODS)
    assert set(words.SUBJECTS.values()) == SUBJECT_NAMES == words.HOMES.keys()
    assert {scene for homes in words.HOMES.values() for scene in homes} <= SCENES.keys()


def test_progress_grows_to_all_of_it() -> None:
    heard: list[float] = []

    draw("a map", 1, 512, 1024, on_progress=heard.append)

    assert len(heard) > 1
    assert heard == sorted(set(heard))
    assert heard[-1] == 1


def test_an_error_of_the_listener_ends_the_drawing() -> None:
    heard: list[float] = []

    def listen(share: float) -> None:
        heard.append(share)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        draw("a map", 1, 512, 1024, on_progress=listen)

    assert len(heard) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_largest_picture_needs_little_more_memory_than_its_pixels() -> None:
    # Pillow keeps four bytes a pixel.
    assert int(run(PEAK)) < 4096 * 4096 * 4 + 64 * MEBIBYTE


@pytest.mark.parametrize("output_format", OutputFormat)
def test_a_picture_is_encoded_in_the_format_asked_for(output_format: OutputFormat) -> None:
    image = draw("a lighthouse at dawn", 1, 256, 128)

    data = encode(image, output_format)

    with Image.open(io.BytesIO(data)) as opened:
        decoded = np.asarray(opened.convert("RGB")).astype(np.int_)
        assert opened.format == output_format.upper()
    assert decoded.shape == (128, 256, 3)
    assert np.abs(decoded - np.asarray(image)).mean() < 4


@pytest.mark.parametrize("output_format", OutputFormat)
def test_a_file_holds_nothing_beside_the_picture(output_format: OutputFormat) -> None:
    image = draw("a lighthouse at dawn", 1, 256, 128)

    data = encode(image, output_format)

    with Image.open(io.BytesIO(data)) as opened:
        described = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "background", "loop"}
        assert set(opened.info) <= described
        assert not opened.getexif()
    assert encode(image, output_format) == data
