"""Whether the embedded database has this release's schema, asked without the migration tool.

Importing that tool takes more than a second, and nearly always there is nothing to do. Any doubt means no:
then `fleek db upgrade` decides.
"""

from __future__ import annotations

from fleek.core.errors import Unavailable
from fleek.db.revisions import shipped_revisions
from fleek.local.postgres import PostgresServer


def is_current(postgres: PostgresServer) -> bool:
    """Whether the database is at the newest revision that this release ships."""
    newest = shipped_revisions().head
    try:
        return newest is not None and postgres.query("SELECT version_num FROM alembic_version") == newest
    except Unavailable:
        return False
