"""The Replicate provider as the tests of it use it."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from fleek.core.errors import ProviderError
from fleek.providers.base import Accepted, AttemptContext, GenerationRequest, Handle, Provider
from fleek.providers.downloads import FetchLimits
from fleek.providers.replicate import ReplicateProvider
from fleek.providers.replicate_api import Patience
from fleek.providers.replicate_config import ReplicateConfig
from tests.contracts.provider_suite import Attempt, generate
from tests.replicate_server import ReplicateServer

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"
REQUEST = GenerationRequest("flux", "black-forest-labs/flux-schnell", "a lighthouse at dawn", seed=7)
PATIENCE = Patience(create=5, question=5, cancel=5, pause=0.01)
HASTY = Patience(create=1, question=1, cancel=1, pause=0.01)
LATE = 5
"""Seconds after which nobody hasty waits any more."""
LIMITS = FetchLimits(connect=5, read=5, total=30)


def connect(
    vendor: ReplicateServer, *, visible_within: float = 0.0, patience: Patience = PATIENCE, **config: Any
) -> ReplicateProvider:
    """A provider as a process of its own would construct it, but less patient."""
    settings = ReplicateConfig.read({"base_url": vendor.url, "token": vendor.token, **config})
    return ReplicateProvider(
        settings,
        settings.load_token(),
        patience=patience,
        fetch_limits=LIMITS,
        visible_within=timedelta(seconds=visible_within),
        ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )


def asking(**script: Any) -> GenerationRequest:
    """A request whose order says what is to go wrong with it."""
    return replace(REQUEST, input={"fake": script})


async def order(provider: Provider, request: GenerationRequest = REQUEST) -> Handle:
    accepted = await provider.submit(request, Attempt().context)
    assert isinstance(accepted, Accepted)
    return accepted.handle


async def failure(provider: Provider, request: GenerationRequest) -> ProviderError:
    """How an order fails."""
    with pytest.raises(ProviderError) as caught:
        await generate(provider, request)
    return caught.value


def lookup(intent_at: datetime | None = None) -> AttemptContext:
    """The context of a reconciliation."""
    return AttemptContext(
        uuid4(),
        2,
        0,
        datetime.now(UTC) + timedelta(minutes=1),
        timedelta(minutes=1),
        lambda _: None,
        intent_at=intent_at,
    )
