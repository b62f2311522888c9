"""What the demo's checks notice, each on its own, and how the contact sheet is laid out."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from benchmarks.contact_sheet import Tile, make_sheet
from benchmarks.gallery import Order, Picture, find_faults, plan_orders
from PIL import Image
from tests.prompts import Prompt

SIZE = (96, 64)


def encoded(size: tuple[int, int] = SIZE, colour: str = "teal") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def picture(content: bytes | None = None, text: str = "an owl", **media: Any) -> Picture:
    """A picture as it was ordered, unless said otherwise."""
    content = encoded() if content is None else content
    row = {"sha256": hashlib.sha256(content).hexdigest(), "width": SIZE[0], "height": SIZE[1]} | media
    job = {"status": "completed", "error": None, "media": [row]}
    return Picture(Order(Prompt(text, "Animals"), SIZE, seed=7), job, content)


def ended(status: str, error: dict[str, str] | None = None) -> Picture:
    job: dict[str, Any] = {"status": status, "error": error, "media": []}
    return Picture(Order(Prompt("an owl", "Animals"), SIZE, seed=7), job, b"")


def test_pictures_as_ordered_have_no_faults() -> None:
    assert find_faults([picture(), picture(encoded(colour="navy"), "a boat")]) == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (ended("error", {"message": "refused"}), "'an owl' ended as error: refused"),
        (ended("canceled"), "'an owl' ended as canceled: no reason is given"),
        (ended("completed"), "'an owl' has 0 results, not one"),
        (picture(sha256="0" * 64), "'an owl' came with bytes of another sha256 than the job says"),
        (picture(width=64), "'an owl' is recorded as 64 x 64, not 96 x 64"),
        (picture(encoded((64, 96))), "'an owl' is 64 x 96 pixels, not 96 x 64"),
    ],
)
def test_each_fault_is_named(wrong: Picture, fault: str) -> None:
    assert find_faults([picture(encoded(colour="navy"), "a boat"), wrong]) == [fault]


@pytest.mark.parametrize("broken", [b"", b"<!doctype html>", encoded()[:-40], encoded()[:60]])
def test_what_does_not_decode_is_noticed(broken: bytes) -> None:
    (fault,) = find_faults([picture(broken)])

    assert fault.startswith("'an owl' does not decode")


def test_two_prompts_with_one_picture_are_both_named() -> None:
    faults = find_faults([picture(text="an owl"), picture(text="a boat"), picture(encoded(colour="navy"))])

    assert faults == [
        f"'{text}' has the same bytes as another prompt's picture" for text in ("an owl", "a boat")
    ]


def test_orders_take_the_sizes_in_turn_and_a_seed_each() -> None:
    prompts = [Prompt(text, "Animals") for text in ("an owl", "a boat", "a fox")]

    orders = plan_orders(prompts, [(64, 64), SIZE], seed=7, given={"delay_seconds": 0})

    assert [order.size for order in orders] == [(64, 64), SIZE, (64, 64)]
    assert [order.seed for order in orders] == [7, 8, 9]
    assert orders[1].body == {
        "prompt": "a boat",
        "width": 96,
        "height": 64,
        "seed": 8,
        "input": {"delay_seconds": 0},
    }


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_a_sheet_fills_its_width_with_every_picture(count: int) -> None:
    """Pictures of any shape share the rows; below each is its caption, and the right edge is even."""
    shapes = [(96, 64), (64, 96), (80, 80), (200, 50)]
    tiles = [Tile(Image.new("RGB", shapes[i % 4], "teal"), "a very long caption " * 9) for i in range(count)]

    sheet = make_sheet(tiles, width=600, row_height=60)

    columns = [x for x in range(600) if any(sheet.getpixel((x, y)) == (0, 128, 128) for y in range(30, 50))]
    assert sheet.width == 600
    assert (columns[0], columns[-1]) == (28, 571)
