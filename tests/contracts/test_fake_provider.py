"""The public fakes under the conformance suite: tests that use them test against real behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.contracts.provider_suite import Attempt, ProviderSuite, generate

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.providers.base import (
    Accepted,
    AttemptContext,
    BytesOutput,
    Done,
    GenerationRequest,
    Handle,
    Pending,
    Provider,
    StreamOutput,
)
from fleek.testing import (
    RESUMABLE,
    FakeProvider,
    FakeVendor,
    SubmitStep,
    fake_outputs,
    fake_picture,
    hold,
)


class Asked(FakeProvider):
    """Takes its next step from the request, as the suite wants it."""

    async def submit(self, request: GenerationRequest, context: AttemptContext) -> Accepted | Done:
        for step in request.input.get("steps", ()):
            self.on_submit(step)
        return await super().submit(request, context)


class FakeSuite(ProviderSuite):
    def asking(self, step: SubmitStep) -> GenerationRequest:
        return replace(self.request(), input={"steps": [step]})

    def failing(self, kind: ProviderErrorKind) -> GenerationRequest:
        return self.asking(ProviderError(kind, "no"))

    def endless(self) -> GenerationRequest:
        return self.asking(hold(asyncio.Event()))

    def wrong_type(self) -> GenerationRequest:
        return self.asking(Done((BytesOutput(b"no media"),)))

    def slow_output(self) -> GenerationRequest:
        return self.asking(Done((StreamOutput(slowly(fake_picture(7))),)))


async def slowly(content: bytes) -> AsyncIterator[bytes]:
    for part in (content[:9], content[9:]):
        await asyncio.sleep(0.15)
        yield part


class TestSynchronousFake(FakeSuite):
    @pytest.fixture
    def provider(self) -> Provider:
        return Asked()


class TestResumableFake(FakeSuite):
    @pytest.fixture
    def provider(self) -> FakeProvider:
        return Asked(capabilities=RESUMABLE)

    async def reopened(self, provider: Provider) -> Provider:
        assert isinstance(provider, FakeProvider)
        return Asked(provider.vendor, capabilities=RESUMABLE)

    async def test_a_vendor_counts_what_all_its_providers_were_asked(self) -> None:
        vendor = FakeVendor()
        for _ in range(2):
            await generate(FakeProvider(vendor, capabilities=RESUMABLE), self.request())

        assert len(vendor.creates) == len(vendor.orders) == len(vendor.polled) == 2

    async def test_an_order_that_was_taken_is_found_by_its_request(self, provider: FakeProvider) -> None:
        accepted = await provider.submit(self.request(), Attempt().context)
        assert isinstance(accepted, Accepted)

        found = await provider.find(self.request(), Attempt().context)
        other = await provider.find(replace(self.request(), seed=8), Attempt().context)

        assert list(found) == [accepted.handle]
        assert list(other) == []

    async def test_an_order_of_another_vendor_is_unknown(self, provider: FakeProvider) -> None:
        with pytest.raises(ProviderError, match="does not know this order"):
            await provider.poll(Handle("h-1"), Attempt().context)


async def test_steps_are_taken_one_a_call_and_then_all_is_as_usual() -> None:
    request = ProviderSuite().request()
    provider = FakeProvider(capabilities=RESUMABLE, schema={"type": "object"})
    busy = ProviderError(ProviderErrorKind.TRANSIENT, "busy")

    async def go_on() -> None:
        return None

    provider.on_submit(busy, go_on)
    provider.on_poll(Pending(0.5), fake_outputs(request))
    with pytest.raises(ProviderError):
        await provider.submit(request, Attempt().context)
    accepted = await provider.submit(request, Attempt().context)
    assert isinstance(accepted, Accepted)

    polls = [await provider.poll(accepted.handle, Attempt().context) for _ in range(3)]

    assert polls == [Pending(0.5), fake_outputs(request), fake_outputs(request)]
    assert provider.parameter_schema("any") == {"type": "object"}


async def test_it_can_be_configured_as_an_installed_provider_is() -> None:
    provider = FakeProvider.from_config({"name": "pretended"})
    await provider.cancel(Handle("h-1"))
    await provider.aclose()

    assert (provider.name, FakeProvider.from_config({}).name) == ("pretended", "fake")
    assert provider.vendor.canceled == ["h-1"]
    assert provider.closed


def test_every_seed_has_a_picture_of_its_own() -> None:
    assert len({fake_picture(seed) for seed in (0, 1, 2**24, 2**32 - 1)}) == 4
