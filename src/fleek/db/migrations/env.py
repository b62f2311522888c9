"""Alembic's entry: run by the `alembic` command and by `fleek db`, against the configured database."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from fleek.bootstrap.tables import load_metadata
from fleek.settings import start_settings

_LOCK = 7_310_579_217_402_653_001
"""Advisory lock of migrations: of several processes that start at once, one migrates."""
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
    limits = {"timeout": _CONNECT_SECONDS, "command_timeout": _STATEMENT_SECONDS}
    engine = create_async_engine(_url(), poolclass=pool.NullPool, connect_args=limits)
    async with engine.connect() as connection:
        await connection.run_sync(_configure_and_run)
        await connection.commit()
    await engine.dispose()


def _run_offline() -> None:
    context.configure(url=_url(), target_metadata=load_metadata(), literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _run_offline()
else:
    asyncio.run(_run_online())
