"""Credentials at hand: fetched anew before they end, by one for all, and never waited for without need."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from fleek.storage.base import StorageError
from fleek.storage.credential_cache import CredentialCache
from fleek.storage.credentials import Credentials

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


class Script:
    """A source that gives what a test says, and counts."""

    def __init__(self, *given: Credentials | StorageError) -> None:
        self._given = list(given)
        self.asked = 0

    def __call__(self) -> Credentials:
        self.asked += 1
        found = self._given.pop(0) if len(self._given) > 1 else self._given[0]
        if isinstance(found, StorageError):
            raise found
        return found


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def lasting(life: timedelta, key: str = "A") -> Credentials:
    return Credentials(key, "s", "t", NOW + life)


class TestRenewal:
    def test_credentials_are_fetched_once_while_they_last(self) -> None:
        source, clock = Script(lasting(HOUR)), Clock()
        cache = CredentialCache(source, clock)
        for _ in range(3):
            cache.get()
            clock.now += 10 * MINUTE

        assert source.asked == 1

    def test_they_are_renewed_before_they_end(self) -> None:
        source, clock = Script(lasting(HOUR), lasting(2 * HOUR, "B")), Clock()
        cache = CredentialCache(source, clock)
        cache.get()
        clock.now += 51 * MINUTE

        assert cache.at_hand(MINUTE) is None
        assert cache.get().access_key_id == "B"

    def test_a_longer_wish_than_there_is_life_asks_now_and_then_not_every_time(self) -> None:
        source, clock = Script(lasting(HOUR)), Clock()
        cache = CredentialCache(source, clock)
        for _ in range(10):
            cache.get(2 * HOUR)
            clock.now += MINUTE

        assert source.asked == 2

    def test_a_source_in_trouble_is_forgiven_until_the_end(self) -> None:
        source, clock = Script(lasting(HOUR), StorageError("away")), Clock()
        cache = CredentialCache(source, clock)
        cache.get()
        clock.now += 55 * MINUTE

        assert cache.get().access_key_id == "A"

        clock.now += 10 * MINUTE
        with pytest.raises(StorageError, match="away"):
            cache.get()


class Slow:
    """A source that gives nothing before a test lets it."""

    def __init__(self, *given: Credentials | StorageError) -> None:
        self.script = Script(*given)
        self.may_answer = threading.Event()
        self.is_asked = threading.Event()

    def __call__(self) -> Credentials:
        self.is_asked.set()
        assert self.may_answer.wait(30)
        return self.script()


class TestSlowSources:
    async def test_all_who_wait_for_credentials_wait_for_one_question(self) -> None:
        source = Slow(lasting(HOUR))
        cache = CredentialCache(source, Clock())
        asking = [asyncio.create_task(cache.obtain(MINUTE)) for _ in range(50)]
        await asyncio.to_thread(source.is_asked.wait, 30)
        source.may_answer.set()
        found = await asyncio.gather(*asking)

        assert {each.access_key_id for each in found} == {"A"}
        assert source.script.asked == 1

    async def test_all_who_wait_in_vain_are_told_at_once(self) -> None:
        """Each asking by itself, the last of 50 would wait 50 times as long."""
        source, clock = Slow(StorageError("away", "set a key")), Clock()
        cache = CredentialCache(source, clock)
        threads = [asyncio.create_task(asyncio.to_thread(cache.get)) for _ in range(3)]
        asking = [asyncio.create_task(cache.obtain(MINUTE)) for _ in range(50)]
        await asyncio.to_thread(source.is_asked.wait, 30)
        source.may_answer.set()
        failures = await asyncio.gather(*threads, *asking, return_exceptions=True)

        assert {str(each) for each in failures} == {"away; set a key"}
        assert source.script.asked == 1

        clock.now += 2 * SECOND
        with pytest.raises(StorageError, match="away"):
            await cache.obtain(MINUTE)
        assert source.script.asked == 2

    async def test_credentials_that_are_good_are_used_while_newer_ones_are_long_in_coming(self) -> None:
        source, clock = Slow(lasting(HOUR), lasting(2 * HOUR, "B")), Clock()
        source.may_answer.set()
        cache = CredentialCache(source, clock)
        cache.get()
        clock.now += 55 * MINUTE
        source.may_answer.clear()
        signing = await cache.obtain(10 * MINUTE)
        calling = await asyncio.to_thread(cache.get)

        assert (signing.access_key_id, calling.access_key_id) == ("A", "A")

        source.may_answer.set()
        assert (await cache.obtain(10 * MINUTE)).access_key_id == "B"

    def test_a_source_that_is_long_in_failing_is_not_asked_again_at_once(self) -> None:
        clock = Clock()
        script = Script(lasting(HOUR), StorageError("away"))

        def source() -> Credentials:
            if script.asked:
                clock.now += 24 * SECOND
            return script()

        cache = CredentialCache(source, clock)
        cache.get()
        clock.now += 55 * MINUTE
        for _ in range(3):
            cache.get()

        assert script.asked == 2
