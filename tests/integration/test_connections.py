"""What the operations guide promises of connections: how many a process has, and the limits on each."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path

from sqlalchemy import text

from fleek.bootstrap.parts import open_database
from fleek.cli.children import Children
from fleek.settings import load_settings

LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


async def test_the_configured_limits_hold_on_the_connections_of_a_process(queue_url: str) -> None:
    plain = load_settings(database_url=queue_url)
    changed = load_settings(
        database_url=queue_url,
        database_statement_timeout=7,
        database_lock_timeout=1.5,
        database_idle_in_transaction_timeout=9,
    )
    shown = []
    async with AsyncExitStack() as stack:
        for settings in (plain, changed):
            database = open_database(stack, settings, "fleek test")
            shown.append([(await database.fetch_one(text(f"SHOW {name}")))[0] for name in LIMITS])

    assert shown == [["10s", "2s", "15s"], ["7s", "1500ms", "9s"]]


async def test_a_process_opens_no_more_connections_than_pool_and_overflow(queue_url: str) -> None:
    settings = load_settings(
        database_url=queue_url, database_pool_size=3, database_max_overflow=2, database_pool_timeout=20
    )
    async with AsyncExitStack() as stack:
        database = open_database(stack, settings, "fleek counted")
        await asyncio.gather(*(database.fetch_one(text("SELECT pg_sleep(0.1)")) for _ in range(20)))
        found = await database.fetch_one(
            text("SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'fleek counted'")
        )

    assert found.n <= 5


def test_the_embedded_database_has_a_connection_for_everybody(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        allowed = [
            int(Children(load_settings(home=tmp_path), listener, workers).postgres.options["max_connections"])  # type: ignore[union-attr]  # no other is named
            for workers in (1, 8)
        ]

    assert allowed[0] == 200
    assert allowed[1] >= 9 * 31
