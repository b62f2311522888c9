"""The pages about durability have every row, and name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/\S+?\.py)::(\S+?)`( \(slow\))?")
WEBHOOKS = {37, 40, 41}
"""Rows about what does not exist yet."""
WITHOUT_TEST = {38}
RULES = [*range(1, 6), 7, 8, 9, 11, 12, 13, *range(15, 21), *range(22, 30), 33, 34]
"""Those of the design that are about durability."""
SLOW = "pytest.mark.slow"

MATRIX = (ROOT / "docs/reference/fault-matrix.md").read_text()
RULE_PAGE = (ROOT / "docs/reference/durability-rules.md").read_text()
ROWS = ROW.findall(MATRIX)
TESTS = sorted(set(TEST.findall(MATRIX + RULE_PAGE)))


@cache
def names_in(path: str) -> dict[str, bool]:
    """The tests of a file as pytest names them, and whether each is slow."""
    tree = ast.parse((ROOT / path).read_text())
    is_slow = any(ast.unparse(node) == f"pytestmark = {SLOW}" for node in tree.body)
    scopes = {"": tree.body} | {
        f"{node.name}::": node.body for node in tree.body if isinstance(node, ast.ClassDef)
    }
    return {
        scope + node.name: is_slow or SLOW in {ast.unparse(mark) for mark in node.decorator_list}
        for scope, body in scopes.items()
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_row_is_there_once_and_in_order() -> None:
    numbers = [int(number) for number, *_ in ROWS]

    assert numbers == [number for number in range(1, 46) if number not in WEBHOOKS]


def test_every_row_names_a_test_but_those_that_cannot() -> None:
    without = {int(number) for number, _, _, shown in ROWS if not TEST.search(shown)}

    assert without == WITHOUT_TEST


def test_every_rule_is_there_once_in_order_and_names_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", RULE_PAGE, re.MULTILINE)

    assert [int(number) for number, _ in rows] == RULES
    assert all(TEST.search(shown) for _, shown in rows)


@pytest.mark.parametrize(("path", "name", "slow"), TESTS, ids=lambda part: part.rpartition("/")[2])
def test_a_named_test_exists_and_is_as_slow_as_the_page_says(path: str, name: str, slow: str) -> None:
    found = names_in(path)

    assert name in found
    assert found[name] == bool(slow)
