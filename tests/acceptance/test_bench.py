"""`script/bench` measures everything it offers; how fast anything is, is none of a test's business."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.conftest import ROOT, clean_environment, processes_of

ROWS = ["status", "pipeline", "cache"]
"""Those that start the most; the others are made of the same parts."""
LITTLE = ["--seconds", "0.2", "--rounds", "1", "--jobs", "30"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the program puts its temporary folder; an unprivileged user may enter it."""
    path = Path(tempfile.mkdtemp(prefix="fleek-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    path.rmdir()


def bench(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "script" / "bench"), *flags],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment({"TMPDIR": str(folder)}),
    )


def test_every_row_has_figures_beside_its_limit_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    """As a table and as JSON; every process that was started is gone, and so is the temporary folder."""
    file = tmp_path / "figures.json"

    result = bench(folder, *LITTLE, "--rows", ",".join(ROWS), "--json", str(file))

    assert result.returncode == 0, result.stderr
    figures = json.loads(file.read_text())["figures"]
    assert list(dict.fromkeys(figure["row"] for figure in figures)) == ROWS
    assert all(row in result.stdout for row in ROWS)
    assert all(figure["fleek"] > 0 for figure in figures)
    assert all(figure["ratio"] > 0 for figure in figures)
    assert (processes_of(folder), list(folder.iterdir())) == ([], [])


def test_an_unknown_row_is_refused_before_anything_starts(folder: Path) -> None:
    """With its name."""
    result = bench(folder, "--rows", "submit,speed")

    assert result.returncode == 2
    assert "no such row: speed" in result.stderr
