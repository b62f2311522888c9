"""A fake Replicate for every test that asks, and a provider that is connected to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.replicate_client import connect
from tests.replicate_server import ReplicateServer

from fleek.providers.replicate import ReplicateProvider


@pytest.fixture
async def vendor() -> AsyncIterator[ReplicateServer]:
    """The backend."""
    async with ReplicateServer() as server:
        yield server


@pytest.fixture
async def replicate(vendor: ReplicateServer) -> AsyncIterator[ReplicateProvider]:
    """The provider."""
    provider = connect(vendor)
    yield provider
    await provider.aclose()
