"""A cache in Redis, which several processes share. Whatever goes wrong is a value that is made once more.

Who can write to Redis must not be able to send clients elsewhere: each value carries a seal over its
key and itself, and one that does not fit is not known.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from fleek.queue.base import CacheEntry
from fleek.queue.ending import end_tasks

_log = structlog.get_logger(__name__)

_PREFIX = "fleek:cache:1:"
"""The number is that of the form of the values: another one begins with an empty cache."""
_PATIENCE = 0.05
_CONNECT_TIMEOUT = 2.0
_PAUSE_AFTER_ERROR = 1.0
_CONNECTIONS = 8
_MAX_PENDING = 1000
_BATCH = 200
_SEAL_BYTES = 16

Result = TypeVar("Result")


class RedisCache:
    """Implements `fleek.queue.base.Cache`.

    A request waits for `patience` seconds at most, and only while Redis is known to answer: after a
    failure nobody asks until it has answered a ping, which is waited for in the background.
    """

    def __init__(
        self, url: str, secret: bytes, *, patience: float = _PATIENCE, pause: float = _PAUSE_AFTER_ERROR
    ) -> None:
        """`secret` seals the values; `pause`: seconds between two pings while Redis is away."""
        self._seal_key = hmac.digest(secret, b"cache", "sha256")
        self._patience = patience
        self._pause = pause
        self._redis = Redis.from_url(
            url,
            socket_timeout=_CONNECT_TIMEOUT,
            socket_connect_timeout=_CONNECT_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._lost = asyncio.Event()
        self._lost.set()
        self._is_refusing = False
        self._outbox: asyncio.Queue[CacheEntry] = asyncio.Queue(_MAX_PENDING)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_usable(self) -> bool:
        """Whether Redis answered the last time that anybody asked."""
        return not self._lost.is_set()

    async def start(self) -> None:
        """Begin to look for Redis, and to send to it."""
        self._tasks = [
            asyncio.create_task(self._watch(), name="cache-watch"),
            asyncio.create_task(self._send(), name="cache-send"),
        ]

    async def get(self, keys: Sequence[str]) -> Mapping[str, bytes] | None:
        """The values of those keys that are known, in one round trip; None while Redis is away."""
        answers = await self._ask(lambda: self._redis.mget([_PREFIX + key for key in keys]))
        if answers is None:
            return None
        opened = ((key, self._open(key, sealed)) for key, sealed in zip(keys, answers, strict=True))
        return {key: value for key, value in opened if value is not None}

    def set(self, entries: Sequence[CacheEntry]) -> None:
        """Have entries sent, unless Redis is away or too many wait already."""
        if self.is_usable:
            with contextlib.suppress(asyncio.QueueFull):
                for entry in entries:
                    self._outbox.put_nowait(entry)

    async def aclose(self) -> None:
        """Close the connections, within a bound."""
        self._lost.set()
        await end_tasks(self._tasks, _CONNECT_TIMEOUT)
        with contextlib.suppress(RedisError, OSError):
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await self._redis.aclose()

    async def _ask(self, question: Callable[[], Awaitable[Result]]) -> Result | None:
        """What Redis says, within the bound; None where it says nothing, which is then not tried again."""
        if not self.is_usable:
            return None
        try:
            async with asyncio.timeout(self._patience), self._turns:
                return await question()
        except (RedisError, OSError):
            self._lost.set()
            return None

    async def _send(self) -> None:
        """One round trip for everything that has gathered meanwhile; what cannot be sent is dropped."""
        while True:
            batch = [await self._outbox.get()]
            while len(batch) < _BATCH and not self._outbox.empty():
                batch.append(self._outbox.get_nowait())
            await self._ask(partial(self._send_batch, batch))

    async def _send_batch(self, batch: Sequence[CacheEntry]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for entry in batch:
                milliseconds = int(entry.life.total_seconds() * 1000)
                if milliseconds > 0:
                    pipeline.set(_PREFIX + entry.key, self._sealed(entry), px=milliseconds)
            try:
                await pipeline.execute()
            except ResponseError as error:
                # Full, or a replica: it answers, and what is known there can still be asked for.
                self._tell_refusal(error)
            else:
                self._is_refusing = False

    def _tell_refusal(self, error: ResponseError) -> None:
        if not self._is_refusing:
            _log.warning("cache_unavailable", error=type(error).__name__)
        self._is_refusing = True

    async def _watch(self) -> None:
        """Ask until Redis answers; wait until it is lost; and so on."""
        is_told = False
        while True:
            try:
                await self._ping()
            except (RedisError, OSError) as error:
                # One late answer, of a process that is busy itself, is not worth a record; an outage is one.
                if not is_told:
                    _log.warning("cache_unavailable", error=type(error).__name__)
                is_told = True
            else:
                is_told = False
                self._lost.clear()
                await self._lost.wait()
            await asyncio.sleep(self._pause)

    async def _ping(self) -> None:
        async with asyncio.timeout(_CONNECT_TIMEOUT):
            # What became of one connection became of the others.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            await self._redis.ping()

    def _sealed(self, entry: CacheEntry) -> bytes:
        return self._seal(entry.key, entry.value) + entry.value

    def _open(self, key: str, sealed: bytes | str | None) -> bytes | None:
        """The value that was remembered by this key; None for everything else that stands there."""
        if not isinstance(sealed, bytes):
            return None
        seal, value = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        return value if hmac.compare_digest(seal, self._seal(key, value)) else None

    def _seal(self, key: str, value: bytes) -> bytes:
        # The key's length parts it from the value: no other pair is the same text.
        text = b"%d:%s%s" % (len(key.encode()), key.encode(), value)
        return hashlib.blake2b(text, key=self._seal_key, digest_size=_SEAL_BYTES).digest()
