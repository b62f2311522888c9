"""Whether the embedded database has this release's schema, asked without the migration tool.

Importing that tool takes more than a second, and nearly always there is nothing to do. Any doubt means no:
then `fleek db upgrade` decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fleek.core.errors import Unavailable
from fleek.local.postgres import PostgresServer

_SCRIPTS = Path(__file__).parent.parent / "db" / "migrations" / "versions"
_REVISION = re.compile(r"^revision\b[^=]*=(.*)$", re.MULTILINE)
_PARENTS = re.compile(r"^down_revision\b[^=]*=(.*)$", re.MULTILINE)
_IDENTIFIER = re.compile(r"[\"']([^\"']+)[\"']")


def is_current(postgres: PostgresServer) -> bool:
    """Whether the database is at the newest revision that this release ships."""
    newest = newest_revision(path.read_text() for path in _SCRIPTS.glob("*.py"))
    try:
        return newest is not None and postgres.query("SELECT version_num FROM alembic_version") == newest
    except Unavailable:
        return False


def newest_revision(scripts: Iterable[str]) -> str | None:
    """The one revision that no other migration builds on; None when there is not exactly one."""
    revisions: set[str] = set()
    parents: set[str] = set()
    for script in scripts:
        revisions.update(_named(_REVISION, script))
        parents.update(_named(_PARENTS, script))
    newest = revisions - parents
    return newest.pop() if len(newest) == 1 else None


def _named(pattern: re.Pattern[str], script: str) -> list[str]:
    return [name for line in pattern.findall(script) for name in _IDENTIFIER.findall(line)]
