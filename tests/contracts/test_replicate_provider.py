"""The Replicate provider under the conformance suite, against a server that speaks Replicate's protocol."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.contracts.provider_suite import ProviderSuite
from tests.replicate_client import (
    asking,
    connect,
    order,
)
from tests.replicate_server import ReplicateServer

from fleek.core.errors import ProviderErrorKind as Kind
from fleek.providers.base import GenerationRequest, Provider
from fleek.providers.replicate import ReplicateProvider


class TestReplicateProvider(ProviderSuite):
    vendor: ReplicateServer

    @pytest.fixture
    async def provider(self, vendor: ReplicateServer, replicate: ReplicateProvider) -> Provider:
        self.vendor = vendor
        return replicate

    def request(self) -> GenerationRequest:
        return replace(super().request(), ref="black-forest-labs/flux-schnell")

    def failing(self, kind: Kind) -> GenerationRequest | None:
        scripts: dict[Kind, dict[str, Any]] = {
            Kind.TRANSIENT: {"status": 503},
            Kind.PROVIDER_BUG: {"end": "failed", "error": "CUDA out of memory at 'a lighthouse at dawn'"},
            Kind.THROTTLED: {"status": 429},
            Kind.AMBIGUOUS: {"cut": "after"},
            Kind.PERMANENT_INPUT: {"status": 422, "body": {"detail": "'a lighthouse at dawn' is too short"}},
            Kind.PERMANENT_POLICY: {"end": "failed", "error": "NSFW content in 'a lighthouse at dawn'"},
            Kind.PERMANENT_AUTH: {"status": 401},
            Kind.QUOTA_EXHAUSTED: {"status": 402},
        }
        return replace(self.request(), input={"fake": scripts[kind]}) if kind in scripts else None

    def endless(self) -> GenerationRequest:
        return asking(end="never")

    def slow_output(self) -> GenerationRequest:
        return asking(file="slow")

    def wrong_type(self) -> GenerationRequest:
        return asking(file="html")

    def huge_output(self, size: int) -> GenerationRequest:
        return asking(file="huge", size=size)

    async def reopened(self, provider: Provider) -> Provider:  # noqa: ARG002  a process of its own shares nothing
        return connect(self.vendor)


_CONTINUE = """
import asyncio, json, sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4
from fleek.providers.base import AttemptContext, Done, Handle
from fleek.providers.replicate import ReplicateProvider

async def main():
    given = json.load(sys.stdin)
    provider = ReplicateProvider.from_config(given["config"])
    deadline = datetime.now(UTC) + timedelta(minutes=1)
    context = AttemptContext(uuid4(), 2, 0, deadline, timedelta(minutes=1), lambda _: None)
    while not isinstance(answer := await provider.poll(Handle(**given["handle"]), context), Done):
        await asyncio.sleep(0.05)
    [output] = answer.outputs
    print(len(b"".join([piece async for piece in output.chunks])))
    await provider.aclose()

asyncio.run(main())
"""


async def test_another_process_continues_an_order_by_its_handle(
    vendor: ReplicateServer, replicate: ReplicateProvider
) -> None:
    handle = await order(replicate)
    given = {
        "config": {"base_url": vendor.url, "token": vendor.token},
        "handle": {"id": handle.id, "data": dict(handle.data)},
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CONTINUE, stdin=pipe, stdout=pipe, stderr=pipe
    )
    async with asyncio.timeout(60):
        said, errors = await process.communicate(json.dumps(given).encode())

    assert process.returncode == 0, errors.decode()
    assert int(said) == len(vendor.predictions[handle.id].files()[0])
    assert len(vendor.accepted) == 1
