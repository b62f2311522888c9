"""A round trip through Celery: a message to each queue, which a worker that lives answers.

The question travels as a wake-up does. The answer is an element of a short-lived Redis list, put there by
the worker's event loop: so it shows that the broker delivers, that Celery runs its tasks, and that the loop
that claims jobs turns. A queue brings a message to one of its workers; the others are not heard of.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

import structlog
from pydantic_core import from_json, to_json
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError, RedisError

from fleek.queue.base import Presence, broker_queue

_log = structlog.get_logger(__name__)

_WITHIN = 2.5
"""Seconds that workers have to answer."""
_SLICE = 0.5
"""Seconds of one wait for answers; less than the socket's time-out, which would end it."""
_TIMEOUT = 2.0
_MOST_WAITING = 100
"""Messages that may wait in a queue; where more do nobody takes them, and another would only join them."""
_KEPT_SECONDS = 30
"""How long an answer that nobody fetches stays in Redis."""
_MOST_AT_ONCE = 16
"""Answers that one worker has on their way."""
_ADDRESS = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What came of the question to one queue."""

    queue: str
    waiting: int
    """Messages that lay in the broker for it, before the question."""
    presence: Presence | None
    """The worker that answered; None when none did in time."""
    latency: float | None
    """Seconds from the question to the answer."""


class RoundTrips:
    """Asks the workers of some queues; belongs to one event loop. One question is open at a time."""

    def __init__(
        self, url: str, publish: Callable[[str, str], None], queues: Sequence[str], *, within: float = _WITHIN
    ) -> None:
        """`publish(queue, reply_to)` blocks, and raises OSError; it is called on a thread."""
        self._redis = _connect(url)
        self._publish = publish
        self._queues = tuple(queues)
        self._within = within
        self._asking: asyncio.Task[tuple[RoundTrip, ...]] | None = None

    async def ask(self) -> tuple[RoundTrip, ...]:
        """One trip for each queue. Raises OSError where the broker does not answer.

        Whoever asks while a question is open gets the answer to that one: a crowd of probes sends no more
        messages than one of them.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="round-trip")
            self._asking.add_done_callback(_look_at_its_error)
        return await asyncio.shield(self._asking)

    async def aclose(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await self._asking
        await self._redis.aclose()

    async def _ask(self) -> tuple[RoundTrip, ...]:
        reply_to = secrets.token_hex(16)
        try:
            waiting = {queue: await self._count(queue) for queue in self._queues}
            asked = [queue for queue, messages in waiting.items() if messages <= _MOST_WAITING]
            began = time.perf_counter()
            await asyncio.to_thread(self._publish_to, asked, reply_to)
            answers = await self._collect(reply_to, len(asked), began)
        except RedisError as error:
            raise OSError(str(error)) from error
        nobody = (None, None)
        return tuple(
            RoundTrip(queue, messages, *answers.get(queue, nobody)) for queue, messages in waiting.items()
        )

    async def _count(self, queue: str) -> int:
        # The client's types allow for its blocking twin.
        return int(await cast("Any", self._redis.llen(broker_queue(queue))))

    def _publish_to(self, queues: Sequence[str], reply_to: str) -> None:
        for queue in queues:
            self._publish(queue, reply_to)

    async def _collect(self, reply_to: str, expected: int, began: float) -> dict[str, tuple[Presence, float]]:
        """Who answered in time, and after how many seconds, by queue."""
        answers: dict[str, tuple[Presence, float]] = {}
        until = time.perf_counter() + self._within
        while len(answers) < expected and (left := until - time.perf_counter()) > 0:
            popped = await cast("Any", self._redis.blpop([_key(reply_to)], timeout=min(left, _SLICE)))
            answer = None if popped is None else _decode(popped[1])
            if answer is not None and answer[0] in self._queues:
                answers[answer[0]] = (answer[1], time.perf_counter() - began)
        return answers


class Responder:
    """A worker's side: answers in the background, on the event loop."""

    def __init__(self, url: str, describe: Callable[[], Presence]) -> None:
        self._redis = _connect(url)
        self._describe = describe
        self._answering: set[asyncio.Task[None]] = set()

    def answer(self, reply_to: str, queue: str) -> None:
        """Say that this worker got the question; dropped where it is none, or too many come at once."""
        if _ADDRESS.fullmatch(reply_to) is None or len(self._answering) >= _MOST_AT_ONCE:
            return
        task = asyncio.create_task(self._answer(reply_to, queue), name="answer-ping")
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def aclose(self) -> None:
        """Answer no more."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)
        await self._redis.aclose()

    async def _answer(self, reply_to: str, queue: str) -> None:
        try:
            async with self._redis.pipeline() as pipeline:
                pipeline.rpush(_key(reply_to), _encode(queue, self._describe()))
                pipeline.expire(_key(reply_to), _KEPT_SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            _log.warning("ping_not_answered", error=type(error).__name__)


def _connect(url: str) -> Redis:
    # Once more on a new connection: one that lay idle while the broker was started again says nothing of it.
    # A repeated answer does no harm, and a time-out is not repeated.
    once_more = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    return Redis.from_url(url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, retry=once_more)


def _key(reply_to: str) -> str:
    return f"fleek:ping:{reply_to}"


def _look_at_its_error(task: asyncio.Task[Any]) -> None:
    """Whoever asked may have gone: then nobody else looks."""
    if not task.cancelled():
        task.exception()


def _encode(queue: str, presence: Presence) -> bytes:
    return to_json({"queue": queue, **asdict(presence)})


def _decode(payload: bytes) -> tuple[str, Presence] | None:
    """The queue and who answered; None for what is not ours: who reaches the broker can write there."""
    try:
        data = from_json(payload, allow_inf_nan=False)
        queues = tuple(str(queue) for queue in data["queues"])
        presence = Presence(str(data["worker"]), queues, str(data["version"]), bool(data["ready"]))
        return str(data["queue"]), presence
    except (ValueError, TypeError, KeyError):
        return None
