"""A database's URL with libpq's parameters works for the pool, for migrations and for single questions."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from fleek.configuration.urls import check_database_url
from fleek.db import migrate
from fleek.db.address import split
from fleek.db.session import Database


@pytest.mark.parametrize("parameter", ["sslmode=disable", "ssl=prefer", "target_session_attrs=primary"])
async def test_every_client_understands_the_parameters_of_a_url(parameter: str, database_url: str) -> None:
    url = check_database_url(f"{database_url}&{parameter}")
    database = Database(url)
    try:
        answer = await database.fetch_one(text("SELECT 1 AS one"))
    finally:
        await database.aclose()
    await asyncio.to_thread(migrate.upgrade, url)

    assert answer is not None
    assert await migrate.current(url) == migrate.head()


def test_the_address_keeps_where_the_server_is_and_nothing_else() -> None:
    address, arguments = split("postgresql+asyncpg://ada:p%40ss@/fleek?host=/run/pg&sslmode=verify-ca")

    assert address.render_as_string(hide_password=False).endswith("://ada:p%40ss@/fleek?host=%2Frun%2Fpg")
    assert arguments == {"dsn": "postgresql://?sslmode=verify-ca"}
