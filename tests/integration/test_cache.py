"""A cache in a real Valkey: what processes tell each other, and what happens when that is not possible."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs
from tests.middle import middle_of
from tests.queueing import away, wait_until

from fleek.local.valkey import ValkeyServer
from fleek.queue.base import CacheEntry
from fleek.queue.cache import RedisCache

SECRET = b"a secret key for tests only"
AWAY = "unix:///no/such/folder/valkey.sock"
MINUTE = timedelta(minutes=1)
NAME = "fleek:cache:1:"
"""What stands before every key in Redis."""
PATIENCE = 5.0
"""Seconds: a slow machine is none of these tests' business."""

Open = Callable[..., Awaitable[RedisCache]]


@pytest.fixture
async def open_cache(redis_url: str) -> AsyncIterator[Open]:
    """A function that opens one process's end, and waits until it has found Redis."""
    opened: list[RedisCache] = []

    async def open_one(
        url: str = redis_url, secret: bytes = SECRET, patience: float = PATIENCE, *, is_there: bool = True
    ) -> RedisCache:
        cache = RedisCache(url, secret, patience=patience, pause=0.05)
        opened.append(cache)
        await cache.start()
        if is_there:
            await wait_until(lambda: cache.is_usable)
        return cache

    yield open_one
    for cache in opened:
        await cache.aclose()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as redis:
        yield redis


async def remember(cache: RedisCache, key: str, value: bytes, life: timedelta = MINUTE) -> None:
    """Send one value, and wait until it has arrived."""
    cache.set([CacheEntry(key, value, life)])

    async def arrived() -> bool:
        return bool(await cache.get([key]))

    await wait_until(arrived)


async def seconds_of(work: Awaitable[object]) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await work
    return loop.time() - began


async def test_what_one_process_remembers_another_one_knows(open_cache: Open) -> None:
    one, other = await open_cache(), await open_cache()
    await remember(one, "a", b"first\n\x00")
    await remember(one, "b", b"second")

    assert await other.get(["a", "c", "b"]) == {"a": b"first\n\x00", "b": b"second"}


async def test_a_value_is_forgotten_at_its_time_by_redis_itself(open_cache: Open, redis: Redis) -> None:
    cache = await open_cache()
    await remember(cache, "a", b"value", timedelta(seconds=400))
    cache.set([CacheEntry("over", b"value", timedelta(0)), CacheEntry("past", b"value", -MINUTE)])
    await remember(cache, "b", b"value")

    assert 0 < await redis.pttl(NAME + "a") <= 400_000
    assert await cache.get(["over", "past"]) == {}


async def test_an_emptied_redis_knows_nothing_and_learns_anew(open_cache: Open, redis: Redis) -> None:
    cache = await open_cache()
    await remember(cache, "a", b"value")
    await redis.flushall()

    assert await cache.get(["a"]) == {}
    await remember(cache, "a", b"again")
    assert await cache.get(["a"]) == {"a": b"again"}


FOREIGN = {
    "nothing": b"",
    "too short": b"x",
    "no seal": b"https://elsewhere.example.com/picture.png",
    "a zero seal": bytes(16) + b"https://elsewhere.example.com/picture.png",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
async def test_what_others_wrote_is_not_known(open_cache: Open, redis: Redis, content: bytes) -> None:
    cache = await open_cache()
    await redis.set(NAME + "a", content)

    assert await cache.get(["a"]) == {}


async def test_a_value_is_known_by_its_own_key_and_secret_only(open_cache: Open, redis: Redis) -> None:
    cache, stranger = await open_cache(), await open_cache(secret=b"of another installation")
    await remember(cache, "a", b"value")
    await redis.copy(NAME + "a", NAME + "b")

    assert await cache.get(["a", "b"]) == {"a": b"value"}
    assert await stranger.get(["a"]) == {}


async def test_another_kind_of_value_in_the_key_is_replaced(open_cache: Open, redis: Redis) -> None:
    cache = await open_cache()
    await redis.lpush(NAME + "a", "item")

    assert await cache.get(["a"]) == {}
    await remember(cache, "a", b"value")
    assert await cache.get(["a"]) == {"a": b"value"}


@pytest.mark.parametrize(
    ("refusing", "healing", "error"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OutOfMemoryError"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "ReadOnlyError"),
    ],
    ids=["full", "a replica"],
)
async def test_one_that_takes_no_values_is_still_asked_for_those_it_has(
    open_cache: Open, redis: Redis, refusing: tuple[str, ...], healing: tuple[str, ...], error: str
) -> None:
    cache = await open_cache()
    await remember(cache, "known", b"value")
    with capture_logs() as logs:
        await redis.execute_command(*refusing)
        try:
            for number in range(3):
                cache.set([CacheEntry(f"new-{number}", b"value", MINUTE)])
                await wait_until(cache._outbox.empty)
                await asyncio.sleep(0.05)

                assert cache.is_usable
                assert await cache.get(["known"]) == {"known": b"value"}
        finally:
            await redis.execute_command(*healing)
    await remember(cache, "new", b"value")

    assert [(each["event"], each["error"]) for each in logs] == [("cache_unavailable", error)]


class TestRedisAway:
    async def test_asking_and_remembering_cost_nothing_while_there_is_none(self, open_cache: Open) -> None:
        cache = await open_cache(AWAY, is_there=False)

        async def ask() -> None:
            for _ in range(10_000):
                assert await cache.get(["a"]) is None
                cache.set([CacheEntry("a", b"value", MINUTE)])

        assert await seconds_of(ask()) < PATIENCE
        assert cache._outbox.qsize() == 0

    async def test_an_outage_is_one_record_however_often_it_is_looked_for(self, open_cache: Open) -> None:
        with capture_logs() as logs:
            await open_cache(AWAY, is_there=False)
            await asyncio.sleep(0.5)

        told = [entry["log_level"] for entry in logs if entry["event"] == "cache_unavailable"]
        assert told == ["warning"]

    async def test_a_silent_one_delays_those_who_ask_first_and_then_nobody(
        self, open_cache: Open, valkey: ValkeyServer
    ) -> None:
        async with middle_of(valkey.socket) as (middle, port):
            cache = await open_cache(f"redis://127.0.0.1:{port}", patience=0.3)
            await remember(cache, "a", b"value")
            middle.fall_silent()

            first = await seconds_of(asyncio.gather(*(cache.get(["a"]) for _ in range(50))))
            then = [await cache.get(["a"]) for _ in range(1000)] if not cache.is_usable else []

            assert 0.2 < first < PATIENCE
            assert set(then) <= {None}
            # The next connection works: what was known is known again.
            await wait_until(lambda: cache.is_usable)
            assert await cache.get(["a"]) == {"a": b"value"}

    async def test_after_a_restart_it_is_found_again(self, open_cache: Open, valkey: ValkeyServer) -> None:
        cache = await open_cache()
        await remember(cache, "a", b"value")
        async with away(valkey):
            assert await cache.get(["a"]) is None
            assert not cache.is_usable
        await wait_until(lambda: cache.is_usable)

        await remember(cache, "b", b"value")

        assert await cache.get(["b"]) == {"b": b"value"}

    async def test_one_that_never_answers_is_let_go_in_time(self, open_cache: Open) -> None:
        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        cache = await open_cache(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", is_there=False)
        await asyncio.sleep(0.2)

        assert await cache.get(["a"]) is None
        assert await seconds_of(cache.aclose()) < PATIENCE
        server.close()
        await server.wait_closed()

    async def test_one_that_is_let_go_while_it_is_found_ends_all_the_same(self, open_cache: Open) -> None:
        for steps in range(40):
            cache = await open_cache(is_there=False)
            for _ in range(steps):
                await asyncio.sleep(0)

            assert await seconds_of(cache.aclose()) < PATIENCE
