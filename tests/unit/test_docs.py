"""The pages of the reference say what the code says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fleek.api.problems import STATUS_OF
from fleek.core.job import ErrorCode

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if "node_modules" not in path.parts
)


def test_the_generated_reference_is_current() -> None:
    checked = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]

    assert not broken


def _codes_of(page: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/reference" / page).read_text()))


def test_every_error_code_is_explained() -> None:
    used = {str(code) for code in ErrorCode} | {error.code for error in STATUS_OF}
    for source in (ROOT / "src/fleek/api").glob("*.py"):
        used |= set(re.findall(r'HttpProblem\(\s*\S+,\s*"([a-z_]+)"', source.read_text()))

    assert used <= _codes_of("errors.md")
