"""The names of events are constants, and the reference lists them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent.parent
_SOURCE = _ROOT / "src" / "fleek"
_EVENTS = (_ROOT / "docs" / "reference" / "logs.md").read_text().partition("## Events")[2]
_METHODS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})
_LEVELS = {"exception": "error"}
_ANY_LEVEL = "log"


def loggers(tree: ast.AST) -> list[str]:
    """The names that loggers of structlog are given in a module."""
    return [
        ast.unparse(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "structlog.get_logger(" in ast.unparse(node.value)
    ]


def uses(tree: ast.AST) -> Iterator[ast.AST]:
    """Every use of a module's logger, but for the assignment itself."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "_log" and isinstance(node.ctx, ast.Load):
            method = parents[node]
            yield parents[method] if isinstance(method, ast.Attribute) else method


def call_of(use: ast.AST) -> tuple[str, str | None]:
    """The event of a use, and its level, or None where that varies; fails where the event is no constant."""
    assert isinstance(use, ast.Call), ast.unparse(use)
    assert isinstance(use.func, ast.Attribute), ast.unparse(use)
    method = use.func.attr
    assert method in _METHODS, ast.unparse(use)
    event = use.args[-1]
    assert len(use.args) == (2 if method == _ANY_LEVEL else 1), ast.unparse(use)
    assert isinstance(event, ast.Constant), ast.unparse(use)
    assert re.fullmatch("[a-z_]+", event.value), ast.unparse(use)
    return event.value, None if method == _ANY_LEVEL else _LEVELS.get(method, method)


def events_of_the_source() -> set[tuple[str, str | None]]:
    found: set[tuple[str, str | None]] = set()
    for path in sorted(_SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(), str(path))
        assert set(loggers(tree)) <= {"_log"}, path
        found |= {call_of(use) for use in uses(tree)}
    return found


def test_every_event_is_a_constant_and_has_its_row_in_the_reference() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([a-z, ]+) \|", _EVENTS, re.MULTILINE)
    listed = {(event, level) for event, levels in rows for level in levels.split(", ")}
    used = events_of_the_source() | {("library_message", None)}
    vary = {event for event, level in used if level is None}

    assert {pair for pair in listed if pair[0] not in vary} == {pair for pair in used if pair[0] not in vary}
    assert vary <= {event for event, _ in listed}
    assert [event for event, _ in rows] == list(dict.fromkeys(event for event, _ in rows))


@pytest.mark.parametrize(
    "code",
    [
        "_log.info(name)",
        "_log.log(20, name)",
        "_log.info('Some thing')",
        "_log.info('a.b')",
        "tell = _log.info",
        "f(_log)",
    ],
)
def test_a_name_that_is_no_constant_is_found(code: str) -> None:
    [use] = uses(ast.parse(code))

    with pytest.raises(AssertionError):
        call_of(use)
