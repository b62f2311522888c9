"""Fifty real prompts of every category through the running product, each picture looked at."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

from benchmarks.gallery import collect, find_faults, plan_orders
from PIL import Image
from tests.acceptance.conftest import ROOT, StartUp, clean_environment
from tests.prompts import sample

SIZES = ((192, 128), (128, 192), (160, 160), (224, 96), (72, 264))
"""Landscape, portrait and square; small, because drawing is what takes the time."""


async def test_fifty_real_prompts_become_fifty_pictures_as_ordered(start_up: StartUp) -> None:
    """Submitted all at once, each decodes, has its size and its sha256, and looks like no other."""
    up = start_up(workers=1)
    orders = plan_orders(sample(50, seed=7), SIZES, seed=7, given={"delay_seconds": 0})

    pictures = await collect(up.url, orders)

    assert find_faults(pictures) == []
    assert len(pictures) == 50
    assert len({picture.order.prompt.category for picture in pictures}) == 12
    assert {picture.job["prompt"] for picture in pictures} == {order.prompt.text for order in orders}


def test_the_demo_program_checks_a_running_fleek_and_draws_a_sheet(start_up: StartUp, tmp_path: Path) -> None:
    """`script/demo` says in JSON that all is well, and its sheet is a picture that shows something."""
    up = start_up(workers=1)
    sheet = tmp_path / "sheet.png"

    flags = ["--url", up.url, "--count", "12", "--delay", "0", "--output", str(sheet), "--json"]
    result = subprocess.run(
        [str(ROOT / "script" / "demo"), *flags],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )

    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["prompts"], summary["categories"], summary["faults"]) == (12, 12, [])
    assert summary["sheet"] == str(sheet)
    with Image.open(io.BytesIO(sheet.read_bytes())) as image:
        assert image.width == 1280
        assert len(image.resize((40, 30)).getcolors(1200) or ()) > 100


def test_the_demo_program_says_when_nobody_answers(tmp_path: Path) -> None:
    """Exit code 3, a sentence on standard error, and no sheet."""
    sheet = tmp_path / "sheet.png"

    result = subprocess.run(
        [str(ROOT / "script" / "demo"), "--url", "http://127.0.0.1:9", "--output", str(sheet)],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )

    assert result.returncode == 3
    assert "error: Fleek did not answer" in result.stderr
    assert not sheet.exists()
