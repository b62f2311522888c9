"""The newest migration, read from the scripts' text."""

from __future__ import annotations

from pathlib import Path

import pytest

import fleek.db.migrate
from fleek.cli.schema import newest_revision


def _script(revision: str, parents: str) -> str:
    return f'"""Title\n\nrevision = none of it\n"""\nrevision = {revision}\ndown_revision = {parents}\n'


@pytest.mark.parametrize(
    ("scripts", "newest"),
    [
        ([], None),
        ([_script("'a'", "None")], "a"),
        ([_script('"b"', '"a"'), _script('"a"', "None")], "b"),
        ([_script("'a'", "None"), _script("'b'", "'a'"), _script("'c'", "'a'")], None),
        ([_script("'a'", "None"), _script("'b'", "None"), _script("'c'", "('a', 'b')")], "c"),
        (['revision: str = "b"\ndown_revision: str | None = "a"\n', _script("'a'", "None")], "b"),
    ],
)
def test_the_newest_revision_is_the_one_that_nothing_builds_on(
    scripts: list[str], newest: str | None
) -> None:
    assert newest_revision(scripts) == newest


def test_it_is_the_migration_tool_s_own_head() -> None:
    versions = Path(fleek.db.migrate.__file__).parent / "migrations" / "versions"

    assert newest_revision(path.read_text() for path in versions.glob("*.py")) == fleek.db.migrate.head()
