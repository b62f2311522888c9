"""The revisions that a release ships, read from the migrations' text."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory

import fleek.db.migrate
from fleek.db.revisions import read_revisions, shipped_revisions


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
    assert read_revisions(scripts).head == newest


def test_they_are_those_that_the_migration_tool_finds() -> None:
    scripts = ScriptDirectory(str(fleek.db.migrate._SCRIPTS))
    found = {script.revision for script in scripts.walk_revisions()}

    assert shipped_revisions().known == found
    assert shipped_revisions().head == fleek.db.migrate.head()
