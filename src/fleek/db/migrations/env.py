"""Alembic's entry: run by the `alembic` command and by `fleek db`, against the configured database."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from fleek.bootstrap.tables import load_metadata
from fleek.db.address import split
from fleek.settings import start_settings

_LOCK = 7_310_579_217_402_653_001
"""Advisory lock of migrations: of several processes that start at once, one migrates."""
_UNREACHABLE, _WRONG_CONFIGURATION = 3, 2
"""Exit codes, as `fleek db` has them."""
_CONNECT_SECONDS, _STATEMENT_SECONDS = 5, 3600
"""Bounds against a server that has gone silent. The second is longer than any migration takes, so that those
who wait for the lock meanwhile do not give up."""


def _url() -> str:
    return str(context.config.attributes.get("url") or start_settings().resolved_database_url)


def _configure_and_run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=load_metadata(), compare_server_default=True)
    with context.begin_transaction():
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        context.run_migrations()


async def _run_online() -> None:
    address, parameters = split(_url())
    arguments = {"timeout": _CONNECT_SECONDS, "command_timeout": _STATEMENT_SECONDS, **parameters}
    engine = create_async_engine(address, poolclass=pool.NullPool, connect_args=arguments)
    connection = await _connect(engine)
    try:
        await connection.run_sync(_configure_and_run)
        await connection.commit()
    finally:
        await connection.close()
        await engine.dispose()


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    """A connection; for the bare `alembic` one line and an exit code where there is none, as `fleek db` has."""
    try:
        return await engine.connect()
    except (OSError, DBAPIError, asyncpg.PostgresError) as error:
        if "url" in context.config.attributes:
            raise
        is_away = isinstance(error, OSError)
        what = "does not answer" if is_away else "refuses us"
        reason = str(getattr(error, "orig", error)).rpartition(">: ")[2]
        sys.stderr.write(
            f"error: FLEEK_DATABASE_URL: the database {what}: {reason}; `fleek doctor` tells more\n"
        )
        raise SystemExit(_UNREACHABLE if is_away else _WRONG_CONFIGURATION) from None


def _run_offline() -> None:
    context.configure(url=_url(), target_metadata=load_metadata(), literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _run_offline()
else:
    asyncio.run(_run_online())
