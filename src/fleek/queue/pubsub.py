"""Announcements over Redis pub/sub: hints for waiters and for workers, never truth.

One connection listens and one publishes, per process. Whatever goes wrong is a hint lost: waiters
also look at the database every two seconds, and workers when they renew their leases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from uuid import UUID

import structlog
from pydantic_core import from_json, to_json
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError, RedisError

from fleek.queue.base import Announcement
from fleek.queue.ending import end_tasks

_log = structlog.get_logger(__name__)

_CHANNEL = "fleek:announcements"
_TIMEOUT = 2.0
_MAX_PENDING = 10_000
_BATCH = 200
_PAUSE_AFTER_ERROR = 1.0
_SILENCE = 10.0


class RedisPubSub:
    """Sends and receives announcements in the background."""

    def __init__(self, url: str, *, silence: float = _SILENCE) -> None:
        """`silence`: seconds after which a sign of life is asked for, and after which none came."""
        self._silence = silence
        self._redis = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT,
            socket_connect_timeout=_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._outbox: asyncio.Queue[Announcement] = asyncio.Queue(_MAX_PENDING)
        self._listeners: list[Callable[[Announcement], None]] = []
        self._on_connect: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def announce(self, announcement: Announcement) -> None:
        """Queue a hint; dropped when the outbox is full, which a broker that is away makes it."""
        with contextlib.suppress(asyncio.QueueFull):
            self._outbox.put_nowait(announcement)

    def listen(self, on_announcement: Callable[[Announcement], None], on_connect: Callable[[], None]) -> None:
        """Register a listener; before `start`, or later."""
        self._listeners.append(on_announcement)
        self._on_connect.append(on_connect)

    async def start(self) -> None:
        """Begin to send and to listen."""
        self._tasks = [
            asyncio.create_task(_persist("send", self._send), name="pubsub-send"),
            asyncio.create_task(_persist("receive", self._receive), name="pubsub-receive"),
        ]

    async def ping(self) -> None:
        """Raise OSError unless the broker answers within the time-out."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._ping()
        except RedisError as error:
            raise OSError(str(error)) from error

    async def _ping(self) -> None:
        try:
            await self._redis.ping()
        except RedisConnectionError:
            # It may have lain idle while the broker was started again: a new connection tells.
            await self._redis.ping()

    async def aclose(self) -> None:
        """Send what is pending, within a bound, and stop."""
        if self._tasks:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(_TIMEOUT):
                    await self._flush()
        await end_tasks(self._tasks, _TIMEOUT)
        await self._redis.aclose()

    async def _flush(self) -> None:
        while not self._outbox.empty():
            await self._send_batch([self._outbox.get_nowait()])

    async def _send(self) -> None:
        while True:
            await self._send_batch([await self._outbox.get()])

    async def _send_batch(self, batch: list[Announcement]) -> None:
        """One round trip for everything that has gathered meanwhile."""
        while len(batch) < _BATCH and not self._outbox.empty():
            batch.append(self._outbox.get_nowait())
        async with self._redis.pipeline(transaction=False) as pipeline:
            for announcement in batch:
                pipeline.publish(_CHANNEL, _encode(announcement))
            await pipeline.execute()

    async def _receive(self) -> None:
        if not self._listeners:
            # Without listeners there is nothing to subscribe for; `listen` comes before `start`.
            await asyncio.Event().wait()
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(_CHANNEL)
            for on_connect in self._on_connect:
                on_connect()
            await self._hear(subscription)

    async def _hear(self, subscription: PubSub) -> None:
        """Deliver messages; TimeoutError when the connection has gone silent, which no error would tell."""
        is_asked = False
        while True:
            message = await subscription.get_message(timeout=self._silence)
            if message is not None:
                is_asked = False
                if message["type"] == "message":
                    self._deliver(message["data"])
            elif is_asked:
                raise TimeoutError
            else:
                is_asked = True
                await subscription.ping()

    def _deliver(self, payload: bytes) -> None:
        announcement = _decode(payload)
        if announcement is not None:
            for listener in self._listeners:
                _call(listener, announcement)


async def _persist(part: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run for ever: a broker that is away is asked again after a pause."""
    while True:
        try:
            await work()
        except (RedisError, OSError) as error:
            _log.warning("pubsub_failed", part=part, error=type(error).__name__)
        await asyncio.sleep(_PAUSE_AFTER_ERROR)


def _call(listener: Callable[[Announcement], None], announcement: Announcement) -> None:
    try:
        listener(announcement)
    except Exception:  # noqa: BLE001  one listener's bug must not leave this process deaf
        _log.exception("announcement_listener_failed")


def _encode(announcement: Announcement) -> bytes:
    return to_json(
        {"job_id": announcement.job_id, "progress": announcement.progress, "cancel": announcement.cancel}
    )


def _decode(payload: bytes) -> Announcement | None:
    """None for anything that is not ours: the channel is open to whoever reaches the broker."""
    try:
        data = from_json(payload, allow_inf_nan=False)
        job_id, progress, cancel = UUID(data["job_id"]), data.get("progress"), data.get("cancel", False)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    is_number = isinstance(progress, int | float) and not isinstance(progress, bool)
    if not (progress is None or is_number) or not isinstance(cancel, bool):
        return None
    return Announcement(job_id, progress, cancel)
