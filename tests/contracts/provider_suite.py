"""What every provider must do. A class per adapter inherits these tests and gives the `provider` fixture.

An adapter says through the hooks of `ProviderSuite` which requests make its backend (or the fake
that stands for it) misbehave; a hook that answers None skips what the backend cannot do.
"""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from jsonschema_rs import Draft202012Validator

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.core.media import MAX_SEED, SNIFF_BYTES, sniff
from fleek.providers.base import (
    Accepted,
    AttemptContext,
    BytesOutput,
    Done,
    GenerationRequest,
    Handle,
    Output,
    Provider,
)

MEBIBYTE = 1024 * 1024
HUGE = 200 * MEBIBYTE
MAX_GROWTH = 16 * MEBIBYTE
"""Bytes a provider may hold while an output of HUGE passes through."""
PROMPT = 8
"""Seconds within which a canceled provider must have stopped, on the slowest machine."""


@dataclass
class Attempt:
    """One attempt's context, and what the provider reported through it."""

    failures: int = 0
    timeout: timedelta = timedelta(seconds=60)
    progress: list[float] = field(default_factory=list)

    @property
    def context(self) -> AttemptContext:
        """What the provider is given."""
        deadline = datetime.now(UTC) + self.timeout
        return AttemptContext(
            uuid4(), self.failures + 1, self.failures, deadline, self.timeout, self.progress.append
        )


async def follow(provider: Provider, handle: Handle, attempt: Attempt) -> Done:
    """Poll an accepted order until it is done."""
    while True:
        answer = await provider.poll(handle, attempt.context)
        if isinstance(answer, Done):
            return answer
        if answer.progress is not None:
            attempt.progress.append(answer.progress)
        await asyncio.sleep((answer.poll_after or timedelta(seconds=0.01)).total_seconds())


async def generate(
    provider: Provider, request: GenerationRequest, attempt: Attempt | None = None
) -> tuple[Output, ...]:
    """Run an order to its outputs, as the engine does."""
    attempt = attempt or Attempt()
    answer = await provider.submit(request, attempt.context)
    if isinstance(answer, Accepted):
        answer = await follow(provider, answer.handle, attempt)
    return answer.outputs


async def pieces(output: Output) -> AsyncIterator[bytes]:
    """An output's bytes as they come."""
    if isinstance(output, BytesOutput):
        yield output.data
    else:
        async for chunk in output.chunks:
            yield chunk


async def content(output: Output) -> bytes:
    """An output's bytes."""
    return b"".join([piece async for piece in pieces(output)])


class ProviderSuite:
    """The contract of fleek.providers.base.Provider."""

    def request(self) -> GenerationRequest:
        """A request that succeeds quickly; the tests change its seed and its count."""
        return GenerationRequest("model", "model", "a lighthouse at dawn", seed=7, width=64, height=64)

    def failing(self, kind: ProviderErrorKind) -> GenerationRequest | None:  # noqa: ARG002  a hook
        """A request that ends in this kind of error."""
        return None

    def endless(self) -> GenerationRequest | None:
        """A request that does not end by itself."""
        return None

    def slow_output(self) -> GenerationRequest | None:
        """A request whose one output arrives slowly, over at least 0.2 s."""
        return None

    def wrong_type(self) -> GenerationRequest | None:
        """A request whose one output is no media at all."""
        return None

    def huge_output(self, size: int) -> GenerationRequest | None:  # noqa: ARG002  a hook
        """A request whose one output is a picture of `size` bytes."""
        return None

    async def reopened(self, provider: Provider) -> Provider:
        """The provider as another process would construct it; only asked where orders can be resumed."""
        raise NotImplementedError

    async def test_an_order_gives_an_output_that_is_media(self, provider: Provider) -> None:
        outputs = await generate(provider, self.request())

        assert len(outputs) == 1
        assert sniff((await content(outputs[0]))[:SNIFF_BYTES]) is not None

    async def test_several_outputs_come_in_the_order_of_their_seeds(self, provider: Provider) -> None:
        if not provider.capabilities.seed or provider.capabilities.max_outputs == 1:
            pytest.skip("the order cannot be told")
        count = min(3, provider.capabilities.max_outputs)
        request = replace(self.request(), seed=MAX_SEED, count=count)

        together = [await content(output) for output in await generate(provider, request)]
        alone = [
            await content((await generate(provider, replace(request, seed=seed, count=1)))[0])
            for seed in (MAX_SEED, *range(count - 1))
        ]

        assert together == alone

    async def test_as_many_outputs_come_as_were_ordered(self, provider: Provider) -> None:
        count = provider.capabilities.max_outputs

        outputs = await generate(provider, replace(self.request(), count=count))

        assert len(outputs) == count

    async def test_the_same_seed_gives_the_same_bytes(self, provider: Provider) -> None:
        if not provider.capabilities.seed:
            pytest.skip("the backend takes no seed")
        first, again, other = [
            await content((await generate(provider, replace(self.request(), seed=seed)))[0])
            for seed in (7, 7, 8)
        ]

        assert first == again
        assert first != other

    async def test_progress_grows_from_0_to_1(self, provider: Provider) -> None:
        if not provider.capabilities.progress:
            pytest.skip("the backend reports no progress")
        attempt = Attempt()

        await generate(provider, self.request(), attempt)

        assert attempt.progress
        assert attempt.progress == sorted(attempt.progress)
        assert 0 <= attempt.progress[0] <= attempt.progress[-1] <= 1

    @pytest.mark.parametrize("kind", ProviderErrorKind)
    async def test_a_failure_is_raised_as_its_kind(self, provider: Provider, kind: ProviderErrorKind) -> None:
        request = self.failing(kind)
        if request is None:
            pytest.skip(f"the backend never ends as {kind}")

        with pytest.raises(ProviderError) as caught:
            await generate(provider, request)

        assert caught.value.kind is kind
        assert request.prompt not in caught.value.message

    async def test_a_failure_leaves_the_provider_usable(self, provider: Provider) -> None:
        request = self.failing(ProviderErrorKind.TRANSIENT)
        if request is None:
            pytest.skip("the backend never fails")

        with pytest.raises(ProviderError):
            await generate(provider, request)

        assert await generate(provider, self.request())

    async def test_a_canceled_order_stops_at_once_and_leaves_the_provider_usable(
        self, provider: Provider
    ) -> None:
        request = self.endless()
        if request is None:
            pytest.skip("every order of the backend ends by itself")
        order = asyncio.create_task(generate(provider, request))
        await asyncio.sleep(0.1)
        order.cancel()

        async with asyncio.timeout(PROMPT):
            with pytest.raises(asyncio.CancelledError):
                await order

        assert await generate(provider, self.request())

    async def test_a_slow_output_comes_whole(self, provider: Provider) -> None:
        request = self.slow_output()
        if request is None:
            pytest.skip("the backend cannot be made slow")
        loop = asyncio.get_running_loop()
        [output] = await generate(provider, request)
        started = loop.time()

        data = await content(output)

        assert sniff(data[:SNIFF_BYTES]) is not None
        assert loop.time() - started >= 0.2

    async def test_an_output_that_is_no_media_is_handed_on_as_it_is(self, provider: Provider) -> None:
        request = self.wrong_type()
        if request is None:
            pytest.skip("the backend cannot be made to answer nonsense")

        [output] = await generate(provider, request)

        assert sniff((await content(output))[:SNIFF_BYTES]) is None

    async def test_a_huge_output_is_never_held_in_memory(self, provider: Provider) -> None:
        request = self.huge_output(HUGE)
        if request is None:
            pytest.skip("the backend cannot be made to answer so much")
        tracemalloc.start()
        try:
            [output] = await generate(provider, request)
            size = sum([len(piece) async for piece in pieces(output)])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert size == HUGE
        assert peak < MAX_GROWTH

    async def test_an_accepted_order_is_resumed_by_its_handle_in_another_process(
        self, provider: Provider
    ) -> None:
        if not provider.capabilities.resumable:
            pytest.skip("the backend answers at once")
        accepted = await provider.submit(self.request(), Attempt().context)
        assert isinstance(accepted, Accepted)
        stored = json.loads(json.dumps({"id": accepted.handle.id, "data": dict(accepted.handle.data)}))
        other = await self.reopened(provider)
        try:
            done = await follow(other, Handle(stored["id"], stored["data"]), Attempt())
        finally:
            await other.aclose()

        assert len(done.outputs) == 1

    async def test_canceling_what_does_not_exist_changes_nothing(self, provider: Provider) -> None:
        await provider.cancel(Handle("no such order"))

        assert await generate(provider, self.request())

    async def test_looking_up_an_order_that_was_never_placed_finds_none(self, provider: Provider) -> None:
        assert not await provider.find(self.request(), Attempt().context)

    async def test_the_parameters_have_a_schema_with_descriptions_or_none(self, provider: Provider) -> None:
        schema = provider.parameter_schema(self.request().ref)
        if schema is None:
            pytest.skip("the backend tells no schema")

        Draft202012Validator(dict(schema), offline=True)
        assert all(rule.get("description") for rule in schema["properties"].values())

    async def test_it_is_a_provider(self, provider: Provider) -> None:
        assert isinstance(provider, Provider)
        assert provider.name
