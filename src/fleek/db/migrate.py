"""Migrations as functions: what `fleek db` and `fleek up` call. The scripts ship inside the package."""

from __future__ import annotations

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

_SCRIPTS = Path(__file__).parent / "migrations"
_ANSWER_SECONDS, _FAREWELL_SECONDS = 5, 1
"""A server that has gone silent is given up after these."""


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def head() -> str:
    """The revision that this release's code expects."""
    revision = ScriptDirectory(str(_SCRIPTS)).get_current_head()
    if revision is None:
        message = "the package holds no migrations"
        raise RuntimeError(message)
    return revision


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema forward. Several processes may call it at once; one does the work."""
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to `revision`, or by steps, such as `-1`."""
    command.downgrade(_config(url), revision)


async def current(url: str) -> str | None:
    """The revision of a database, or None where it holds no schema of Fleek's."""
    parsed = make_url(url).set(drivername="postgresql")
    connection = await asyncpg.connect(
        parsed.render_as_string(hide_password=False), timeout=_ANSWER_SECONDS, command_timeout=_ANSWER_SECONDS
    )
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return None
        return str(await connection.fetchval("SELECT version_num FROM alembic_version") or "") or None
    finally:
        await connection.close(timeout=_FAREWELL_SECONDS)
