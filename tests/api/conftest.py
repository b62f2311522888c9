"""One api for the whole session, on a database of its own, and ways to reach both.

Tests share it in random order: none may count on an empty list, or change what others look at.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from tests.api.serving import Api, running_api

from fleek.db.session import Database
from fleek.local.postgres import PostgresServer
from fleek.local.valkey import ValkeyServer
from fleek.storage.base import ObjectStorage
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SECRET = "a secret key for tests only"


@pytest.fixture(scope="session")
def api(
    postgres: PostgresServer, template_database: str, valkey: ValkeyServer, server_folder: Path
) -> Iterator[Api]:
    name = f"api_{uuid4().hex}"
    postgres.query(f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY file_copy", "postgres")
    with running_api(
        server_folder / "api-home",
        database_url=postgres.url(name),
        redis_url=valkey.url(),
        secret_key=SECRET,
    ) as api:
        # No worker runs beside it, so every question to one waits in vain: not for as long as usual.
        api.app.state.context.round_trips._within = 0.2
        yield api


@pytest.fixture
async def client(api: Api) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=api.url, timeout=70) as client:
        yield client


@pytest.fixture
async def database(api: Api) -> AsyncIterator[Database]:
    """The api's database, by connections of the test's own."""
    database = Database(api.settings.resolved_database_url)
    yield database
    await database.aclose()


@pytest.fixture
def storage(api: Api) -> ObjectStorage:
    """The api's object store."""
    return open_storage(api.settings.resolved_storage_url, signer=UrlSigner(SECRET.encode()))


@pytest.fixture
def tag() -> str:
    """A name that no other test uses, to tell this test's rows from theirs."""
    return f"t-{uuid4().hex}"


@pytest.fixture
def unused_path(server_folder: Path) -> Callable[[], Path]:
    """Paths for homes of other servers."""
    return lambda: server_folder / uuid4().hex
