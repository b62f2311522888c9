"""Signed URLs, handed out again until two thirds of their life are over.

A client that gets the same URL again has the picture in its own cache already. Nobody is let in by what
is remembered here: whoever asks for a URL has found the result live in the database first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from fleek.observability.metrics import CacheResult, Metrics
from fleek.queue.base import Cache, CacheEntry
from fleek.storage.base import ObjectStorage, SignedUrl

CACHE_NAME: Final = "signed_urls"
"""Of this cache, in metrics."""

_CAPACITY = 5000
"""URLs that a process remembers: at most 10 MB, where a session's token makes each of them 2 kB long."""
_SHORTEST = timedelta(seconds=1)
_SLACK = timedelta(seconds=2)
"""How far the database's clock and ours may seem apart, whole seconds of signatures included."""


@dataclass(frozen=True, slots=True)
class Signable:
    """An object of a result that is live, and the time until the result expires (None: never)."""

    key: str
    time_left: timedelta | None


@dataclass(frozen=True, slots=True)
class _Known:
    """A URL, and until when it is handed out."""

    url: SignedUrl
    reuse_until: datetime

    @classmethod
    def of(cls, url: SignedUrl, now: datetime) -> _Known:
        return cls(url, now + (url.expires_at - now) * 2 / 3)

    def fits(self, wanted: Signable, now: datetime) -> bool:
        """Whether it may be handed out: no URL outlives the result that it is for."""
        if now >= self.reuse_until:
            return False
        return wanted.time_left is None or self.url.expires_at - now <= wanted.time_left + _SLACK


def _now() -> datetime:
    return datetime.now(UTC)


class SignedUrls:
    """Signs URLs that live for `ttl` at most, and never longer than their result.

    What was signed is looked for in this process first, then in `cache`, where the other processes put
    theirs. With `is_reusing` off every call signs anew.
    """

    def __init__(  # noqa: PLR0913  what it works with
        self,
        storage: ObjectStorage,
        ttl: timedelta,
        cache: Cache | None = None,
        metrics: Metrics | None = None,
        *,
        is_reusing: bool = True,
        capacity: int = _CAPACITY,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._storage = storage
        self._ttl = ttl
        self._cache = cache
        self._metrics = metrics or Metrics()
        self._is_reusing = is_reusing
        self._capacity = capacity
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def find(self, wanted: Sequence[Signable]) -> Mapping[str, SignedUrl]:
        """By key, the URLs that were signed before and are still to be handed out."""
        if not self._is_reusing:
            return {}
        now = self._clock()
        found = {one.key: known.url for one in wanted if (known := self._recall(one, now))}
        self._count(CacheResult.PROCESS, len(found))
        missing = [one for one in wanted if one.key not in found]
        return found | await self._find_shared(missing, now) if missing else found

    async def sign(self, wanted: Sequence[Signable]) -> Mapping[str, SignedUrl]:
        """By key, new URLs, which are remembered; raises StorageError."""
        signed = {one.key: await self._sign(one) for one in wanted}
        if self._is_reusing and signed:
            now = self._clock()
            known = {key: _Known.of(url, now) for key, url in signed.items()}
            for key, one in known.items():
                self._remember(key, one)
            if self._cache is not None:
                self._cache.set([_encode(key, one, now) for key, one in known.items()])
        return signed

    async def _sign(self, wanted: Signable) -> SignedUrl:
        life = self._ttl if wanted.time_left is None else min(self._ttl, wanted.time_left)
        return await self._storage.sign(wanted.key, expires_in=max(life, _SHORTEST))

    async def _find_shared(self, wanted: Sequence[Signable], now: datetime) -> dict[str, SignedUrl]:
        values = await self._cache.get([_name(one.key) for one in wanted]) if self._cache is not None else {}
        if values is None:
            self._count(CacheResult.UNAVAILABLE, len(wanted))
            return {}
        found = {}
        for one in wanted:
            value = values.get(_name(one.key))
            known = None if value is None else _decode(value)
            if known is not None and known.fits(one, now):
                self._remember(one.key, known)
                found[one.key] = known.url
        self._count(CacheResult.SHARED, len(found))
        self._count(CacheResult.MISS, len(wanted) - len(found))
        return found

    def _recall(self, wanted: Signable, now: datetime) -> _Known | None:
        known = self._known.get(wanted.key)
        if known is None or not known.fits(wanted, now):
            return None
        # To the end of the line: the first are forgotten first.
        self._known[wanted.key] = self._known.pop(wanted.key)
        return known

    def _remember(self, key: str, known: _Known) -> None:
        self._known.pop(key, None)
        self._known[key] = known
        if len(self._known) > self._capacity:
            del self._known[next(iter(self._known))]

    def _count(self, result: CacheResult, number: int) -> None:
        if number:
            self._metrics.cache_asked(CACHE_NAME, result, number)


def _name(key: str) -> str:
    """In the cache. An object's key is never used twice, and names the result, its owner's alone."""
    return f"url:{key}"


def _encode(key: str, known: _Known, now: datetime) -> CacheEntry:
    times = (known.url.expires_at.isoformat(), known.reuse_until.isoformat())
    return CacheEntry(_name(key), "\n".join((*times, known.url.url)).encode(), known.reuse_until - now)


def _decode(value: bytes) -> _Known | None:
    """What `_encode` has made; None for anything else."""
    try:
        expires_at, reuse_until, url = value.decode().split("\n")
        known = _Known(
            SignedUrl(url, datetime.fromisoformat(expires_at)), datetime.fromisoformat(reuse_until)
        )
    except ValueError:
        return None
    return known if known.url.expires_at.tzinfo and known.reuse_until.tzinfo else None
