"""Signed URLs that are handed out again: by whom, until when, and never for longer than they are good."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from redis.asyncio import Redis
from tests.queueing import wait_until

from fleek.media.signing import Signable, SignedUrls
from fleek.observability.metrics import CacheResult, Metrics
from fleek.queue.base import Cache
from fleek.queue.cache import RedisCache
from fleek.storage.base import ObjectStorage, SignedUrl
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

TTL = timedelta(minutes=10)
SECOND = timedelta(seconds=1)
KEY, OTHER = "media/job/one/1.png", "media/job/other/1.png"
AWAY = "unix:///no/such/folder/valkey.sock"


@dataclass(slots=True)
class Clock:
    """The time of all processes of a test."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Process:
    """One api process's URLs, over a store that signs by the test's clock."""

    def __init__(self, clock: Clock, cache: Cache | None = None, **options: bool | int) -> None:
        self.metrics = Metrics()
        self.storage = open_storage("memory://", signer=UrlSigner(b"k" * 32), clock=clock)
        self.urls = SignedUrls(self.storage, TTL, cache, self.metrics, clock=clock, **options)  # type: ignore[arg-type]  # mypy sees no single type in them

    async def url(self, key: str = KEY, time_left: timedelta | None = None) -> SignedUrl:
        """As the service asks: what is known, else what is signed."""
        wanted = [Signable(key, time_left)]
        return ((await self.urls.find(wanted)) or await self.urls.sign(wanted))[key]

    def asked(self, result: CacheResult) -> float:
        labels = {"cache": "signed_urls", "result": result}
        return self.metrics.registry.get_sample_value("fleek_cache_requests_total", labels) or 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def caches(redis_url: str) -> AsyncIterator[Sequence[RedisCache]]:
    """The ends of two processes, which have found Redis."""
    both = [RedisCache(redis_url, b"a secret", patience=5) for _ in range(2)]
    for cache in both:
        await cache.start()
    await wait_until(lambda: all(cache.is_usable for cache in both))
    yield both
    for cache in both:
        await cache.aclose()


async def test_a_process_hands_out_the_same_url_until_two_thirds_of_its_life(clock: Clock) -> None:
    process = Process(clock)
    first = await process.url()
    clock.forward(399)
    second = await process.url()
    clock.forward(1)
    third = await process.url()

    assert first == second != third
    assert third.expires_at == clock() + TTL
    assert (process.asked(CacheResult.PROCESS), process.asked(CacheResult.MISS)) == (1, 2)


async def test_objects_have_urls_of_their_own(clock: Clock) -> None:
    process = Process(clock)

    assert KEY in (await process.url()).url
    assert OTHER in (await process.url(OTHER)).url
    assert len(await process.urls.find([Signable(KEY, None), Signable(OTHER, None)])) == 2


async def test_another_process_hands_out_what_the_first_has_signed(
    clock: Clock, caches: Sequence[RedisCache]
) -> None:
    one, other = (Process(clock, cache) for cache in caches)
    first = await one.url()
    clock.forward(200)

    async def is_shared() -> bool:
        return bool(await other.urls.find([Signable(KEY, None)]))

    await wait_until(is_shared)

    assert await other.url() == first
    assert other.asked(CacheResult.SHARED) == 1
    clock.forward(200)
    assert await other.url() != first


async def test_a_page_is_asked_for_in_one_round_trip(clock: Clock, caches: Sequence[RedisCache]) -> None:
    one, other = (Process(clock, cache) for cache in caches)
    page = [Signable(f"media/job/{number}/1.png", None) for number in range(100)]
    signed = await one.urls.sign(page)

    async def is_shared() -> bool:
        return len(await other.urls.find(page)) == len(page)

    await wait_until(is_shared)

    assert await other.urls.find(page) == signed
    assert other.asked(CacheResult.PROCESS) >= len(page)


async def test_what_a_store_signs_for_less_is_renewed_at_two_thirds_of_that(clock: Clock) -> None:
    """As with credentials that end soon."""

    class EndingSoon:
        async def sign(self, key: str, *, expires_in: timedelta) -> SignedUrl:
            return SignedUrl(f"https://bucket/{key}?{clock():%s}", clock() + min(expires_in, 60 * SECOND))

    process = Process(clock)
    process.urls = SignedUrls(cast("ObjectStorage", EndingSoon()), TTL, clock=clock)
    first = await process.url()
    clock.forward(39)
    second = await process.url()
    clock.forward(1)

    assert first == second != await process.url()


async def test_no_url_outlives_its_result(clock: Clock) -> None:
    process = Process(clock)
    lasting = await process.url()
    brief = await process.url(time_left=30 * SECOND)
    again = await process.url(time_left=30 * SECOND)
    clock.forward(20)
    renewed = await process.url(time_left=10 * SECOND)

    assert lasting.expires_at == clock() - 20 * SECOND + TTL
    assert brief.expires_at == clock() + 10 * SECOND
    assert brief == again
    assert renewed.expires_at <= clock() + 10 * SECOND


async def test_a_result_in_its_last_moment_still_has_a_url(clock: Clock) -> None:
    url = await Process(clock).url(time_left=timedelta(0))

    assert url.expires_at == clock() + SECOND


async def test_a_process_remembers_the_urls_that_were_used_last(clock: Clock) -> None:
    process = Process(clock, capacity=2)
    first, _ = await process.url(KEY), await process.url(OTHER)
    clock.forward(1)
    await process.url(KEY)
    await process.url("media/job/third/1.png")

    assert await process.url(KEY) == first
    assert not await process.urls.find([Signable(OTHER, None)])


async def test_without_reuse_every_url_is_new_and_lives_for_its_whole_time(clock: Clock) -> None:
    process = Process(clock, is_reusing=False)
    first = await process.url()
    clock.forward(1)

    assert (await process.url()).expires_at == clock() + TTL != first.expires_at


async def test_without_redis_urls_are_signed_and_known_to_the_process(clock: Clock) -> None:
    cache = RedisCache(AWAY, b"a secret")
    await cache.start()
    process = Process(clock, cache)
    first = await process.url()
    clock.forward(1)

    assert await process.url() == first
    assert (process.asked(CacheResult.UNAVAILABLE), process.asked(CacheResult.PROCESS)) == (1, 1)
    await cache.aclose()


@pytest.mark.parametrize(
    "value", [b"", b"\xff", b"1\n2", b"no time\nno time\nurl", b"2026-11-21\n2026-11-21\nurl"]
)
async def test_a_value_of_another_form_is_signed_anew(
    clock: Clock, caches: Sequence[RedisCache], redis_url: str, value: bytes
) -> None:
    process = Process(clock, caches[0])
    async with Redis.from_url(redis_url) as redis:
        await redis.set(name := f"fleek:cache:1:url:{KEY}", caches[0]._seal(f"url:{KEY}", value) + value)
        assert await redis.exists(name)

        assert (await process.url()).expires_at == clock() + TTL
        assert process.asked(CacheResult.MISS) == 1
