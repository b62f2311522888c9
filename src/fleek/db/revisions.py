"""The revisions of the schema that this release ships, read from the migrations without the migration tool.

Importing that tool takes most of a second, and a start needs no more than the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SCRIPTS = Path(__file__).parent / "migrations" / "versions"
_REVISION = re.compile(r"^revision\b[^=]*=(.*)$", re.MULTILINE)
_PARENTS = re.compile(r"^down_revision\b[^=]*=(.*)$", re.MULTILINE)
_IDENTIFIER = re.compile(r"[\"']([^\"']+)[\"']")


@dataclass(frozen=True, slots=True)
class Revisions:
    """What this release knows of the schema's history."""

    known: frozenset[str]
    head: str | None
    """The one revision that no other builds on; None where there is not exactly one."""


def shipped_revisions() -> Revisions:
    """Those of the installed package."""
    return read_revisions(path.read_text() for path in _SCRIPTS.glob("*.py"))


def read_revisions(scripts: Iterable[str]) -> Revisions:
    """Those of migrations, by their text."""
    known: set[str] = set()
    parents: set[str] = set()
    for script in scripts:
        known.update(_named(_REVISION, script))
        parents.update(_named(_PARENTS, script))
    newest = known - parents
    return Revisions(frozenset(known), newest.pop() if len(newest) == 1 else None)


def _named(pattern: re.Pattern[str], script: str) -> list[str]:
    return [name for line in pattern.findall(script) for name in _IDENTIFIER.findall(line)]
