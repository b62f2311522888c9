"""What the demo provider has of its own, beside the suite of all providers."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from PIL import Image
from tests.contracts.provider_suite import Attempt, content, generate, pieces

from fleek.core.errors import ConfigurationError, ProviderError, ProviderErrorKind
from fleek.core.media import MAX_SEED, PNG, SNIFF_BYTES, OutputFormat, sniff
from fleek.providers.base import BytesOutput, Done, GenerationRequest, Handle, StreamOutput
from fleek.providers.demo import DemoProvider, _Parameters
from fleek.providers.drawing import draw, encode
from fleek.providers.parameters import ParameterRules

BLOCKED = 0.5
"""Seconds: far more than a busy machine delays an event loop that nobody blocks."""
CRASH = """
import asyncio
from tests.contracts.provider_suite import Attempt
from fleek.providers.base import GenerationRequest
from fleek.providers.demo import DemoProvider
request = GenerationRequest("demo", "demo", "x", seed=0, input={"crash": True})
asyncio.run(DemoProvider(allow_crash=True).submit(request, Attempt().context))
print("still here")
"""


@pytest.fixture
async def provider() -> AsyncIterator[DemoProvider]:
    provider = DemoProvider(default_delay=0)
    yield provider
    await provider.aclose()


def order(**parameters: Any) -> GenerationRequest:
    return GenerationRequest("demo", "demo", "a lighthouse", seed=7, width=64, height=64, input=parameters)


async def longest_gap(stop: asyncio.Event) -> float:
    """The longest time, in seconds, for which the event loop did not come round."""
    loop, gap = asyncio.get_running_loop(), 0.0
    before = loop.time()
    while not stop.is_set():
        await asyncio.sleep(0.002)
        now = loop.time()
        gap, before = max(gap, now - before), now
    return gap


async def test_an_output_is_the_drawing_of_its_own_seed(provider: DemoProvider) -> None:
    request = replace(order(), seed=MAX_SEED, count=2, output_format=OutputFormat.WEBP)

    outputs = await generate(provider, request)

    assert outputs == tuple(
        BytesOutput(encode(draw("a lighthouse", seed, 64, 64), OutputFormat.WEBP)) for seed in (MAX_SEED, 0)
    )


@pytest.mark.parametrize("output_format", OutputFormat)
async def test_an_output_has_the_format_and_the_size_asked_for(
    provider: DemoProvider, output_format: OutputFormat
) -> None:
    request = replace(order(), width=72, height=128, output_format=output_format)

    [output] = await generate(provider, request)

    with Image.open(io.BytesIO(await content(output))) as image:
        assert (image.format, image.size) == (output_format.upper(), (72, 128))


async def test_the_delay_is_waited_for_with_visible_progress(provider: DemoProvider) -> None:
    attempt, loop = Attempt(), asyncio.get_running_loop()
    started = loop.time()

    await generate(provider, order(delay_seconds=0.3), attempt)

    assert loop.time() - started >= 0.3
    assert len(attempt.progress) >= 6
    assert attempt.progress == sorted(set(attempt.progress))
    assert attempt.progress[-1] == 1


async def test_without_a_parameter_the_delay_is_that_of_the_configuration() -> None:
    provider = DemoProvider.from_config({"default_delay": 0.2})
    loop = asyncio.get_running_loop()
    started = loop.time()

    await generate(provider, order())
    await provider.aclose()

    assert loop.time() - started >= 0.2


async def test_progress_moves_while_large_pictures_are_drawn(provider: DemoProvider) -> None:
    attempt = Attempt()

    await generate(provider, replace(order(), width=1024, height=1024, count=2), attempt)

    assert len(attempt.progress) > 10
    assert attempt.progress[0] < 0.2


async def test_drawing_never_blocks_the_event_loop(provider: DemoProvider) -> None:
    stop = asyncio.Event()
    ticker = asyncio.create_task(longest_gap(stop))
    large = replace(order(), width=2048, height=2048)
    begin = time.monotonic()

    await asyncio.gather(*(generate(provider, replace(large, seed=seed)) for seed in range(4)))
    stop.set()

    # Four drawings on the loop would be four gaps, each a quarter of the time that all of it takes.
    assert await ticker < max(BLOCKED, (time.monotonic() - begin) / 6)


async def test_a_canceled_drawing_gives_its_threads_back(provider: DemoProvider) -> None:
    large = replace(order(), width=4096, height=4096, count=8)
    orders = [asyncio.create_task(generate(provider, large)) for _ in range(8)]
    await asyncio.sleep(0.2)
    for task in orders:
        task.cancel()
    await asyncio.gather(*orders, return_exceptions=True)

    # Eight orders of eight such pictures take a minute; a picture of this one a few milliseconds.
    async with asyncio.timeout(8):
        outputs = await generate(provider, order())

    assert len(outputs) == 1
    assert all(task.cancelled() for task in orders)


async def test_a_canceled_order_reports_no_more_progress(provider: DemoProvider) -> None:
    attempt = Attempt()
    task = asyncio.create_task(generate(provider, replace(order(), width=4096, height=4096), attempt))
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    heard = len(attempt.progress)

    await generate(provider, order())

    assert len(attempt.progress) == heard


@pytest.mark.parametrize(("failures", "succeeds"), [(0, False), (1, False), (2, True), (3, True)])
async def test_it_fails_as_often_as_asked_and_then_succeeds(
    provider: DemoProvider, failures: int, succeeds: bool
) -> None:
    try:
        await generate(provider, order(fail_times=2), Attempt(failures=failures))
        kind = None
    except ProviderError as error:
        kind = error.kind

    assert kind == (None if succeeds else ProviderErrorKind.TRANSIENT)


async def test_a_simulated_failure_comes_half_way_through_the_delay(provider: DemoProvider) -> None:
    attempt = Attempt()

    with pytest.raises(ProviderError):
        await generate(provider, order(delay_seconds=0.4, error="transient"), attempt)

    assert 0.3 < attempt.progress[-1] <= 0.5


@pytest.mark.parametrize(
    ("kind", "retry_after"), [("throttled", timedelta(seconds=90)), ("transient", None), ("timeout", None)]
)
async def test_only_a_throttled_order_says_when_to_come_back(
    provider: DemoProvider, kind: str, retry_after: timedelta | None
) -> None:
    with pytest.raises(ProviderError) as caught:
        await generate(provider, order(error=kind, retry_after_seconds=90))

    assert caught.value.retry_after == retry_after


async def test_a_crash_is_refused_unless_the_operator_allows_it(provider: DemoProvider) -> None:
    with pytest.raises(ProviderError, match="allow_crash = true") as caught:
        await generate(provider, order(crash=True))

    assert caught.value.kind is ProviderErrorKind.PERMANENT_INPUT


def test_a_crash_that_is_allowed_ends_the_process_at_once() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=60, check=False
    )

    assert (result.returncode, result.stdout, result.stderr) == (70, "", "")


async def test_a_hanging_order_ends_as_a_timeout_at_its_deadline(provider: DemoProvider) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()

    with pytest.raises(ProviderError) as caught:
        await generate(provider, order(hang=True), Attempt(timeout=timedelta(seconds=0.3)))

    assert caught.value.kind is ProviderErrorKind.TIMEOUT
    assert 0.2 < loop.time() - started < 8


async def test_a_slow_output_is_the_same_picture_in_many_pieces(provider: DemoProvider) -> None:
    [whole] = await generate(provider, order())
    [slow] = await generate(provider, order(slow_output_seconds=0.25))
    parts = [piece async for piece in pieces(slow)]

    assert isinstance(slow, StreamOutput)
    assert len(parts) == 5
    assert b"".join(parts) == await content(whole)


async def test_a_page_of_html_can_come_slowly_too(provider: DemoProvider) -> None:
    [output] = await generate(provider, order(wrong_type=True, slow_output_seconds=0.1))

    assert (await content(output)).startswith(b"<!doctype html>")


@pytest.mark.parametrize("size", [1, 8, 33, 34, 65_536, 65_569, 200_000, 5.0])
async def test_a_huge_output_has_exactly_its_size(provider: DemoProvider, size: float) -> None:
    [output] = await generate(provider, order(huge_output_bytes=size))

    assert len(await content(output)) == size


async def test_a_huge_output_begins_like_a_picture_of_the_size_asked_for(provider: DemoProvider) -> None:
    [output] = await generate(provider, replace(order(huge_output_bytes=70_000), width=640, height=480))
    data = await content(output)

    assert sniff(data[:SNIFF_BYTES]) is PNG
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (640, 480)


async def test_there_is_nothing_to_poll(provider: DemoProvider) -> None:
    with pytest.raises(ProviderError) as caught:
        await provider.poll(Handle("x"), Attempt().context)

    assert caught.value.kind is ProviderErrorKind.PROVIDER_BUG


async def test_every_parameter_is_described_bounded_and_read(provider: DemoProvider) -> None:
    schema = provider.parameter_schema("any") or {}
    rules = schema["properties"]

    assert list(rules) == list(_Parameters.__dataclass_fields__)
    assert all({"description", "type", "default"} <= rule.keys() for rule in rules.values())
    numbers = [rule for rule in rules.values() if str(rule["type"]) in {"number", "integer"}]
    assert len(numbers) == 5
    assert all({"minimum", "maximum"} <= rule.keys() for rule in numbers)


async def test_the_defaults_that_the_schema_tells_change_nothing(provider: DemoProvider) -> None:
    schema = provider.parameter_schema("any") or {}
    told = {name: rule["default"] for name, rule in schema["properties"].items()}

    answer = await provider.submit(order(**told), Attempt().context)

    assert ParameterRules(schema, model="demo").check(told) == ()
    assert isinstance(answer, Done)
    assert answer.outputs == await generate(provider, order())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"defualt_delay": 3}, ["providers.demo.defualt_delay", "known keys: default_delay, allow_crash"]),
        ({"default_delay": -1}, ["providers.demo.default_delay", "greater than or equal to 0"]),
        ({"default_delay": "sesame"}, ["providers.demo.default_delay", "valid number"]),
        ({"default_delay": float("nan")}, ["providers.demo.default_delay", "finite"]),
        ({"allow_crash": "perhaps"}, ["providers.demo.allow_crash", "valid boolean"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_configuration_is_told_by_its_key(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DemoProvider.from_config(config)

    assert all(word in caught.value.message for word in words)
    assert "sesame" not in caught.value.message


async def test_a_configuration_from_the_environment_comes_as_text() -> None:
    provider = DemoProvider.from_config({"default_delay": "0", "allow_crash": "false"})

    outputs = await generate(provider, order())
    await provider.aclose()

    assert len(outputs) == 1
