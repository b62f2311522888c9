"""The ports of the queue: who brings workers to the work, and who tells waiters that it moved.

Neither carries a job: PostgreSQL is the queue. A wake-up names a queue, an announcement names a
job that changed; both may be lost, repeated or late, and everything still happens (within seconds).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol
from uuid import UUID

QUEUE_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
DEFAULT_QUEUE = "default"
WAKE_TASK = "fleek.wake"
PING_TASK = "fleek.ping"
WORKER = "fleek worker"
"""How worker processes call themselves towards PostgreSQL, before the names of their queues."""
_LONGEST_NAME = 63
"""Characters of an application's name that PostgreSQL keeps."""
_QUEUE_NAME = re.compile(QUEUE_NAME_PATTERN)


def broker_queue(queue: str) -> str:
    """The broker's name for a queue of jobs."""
    if _QUEUE_NAME.fullmatch(queue) is None:
        message = "a queue's name is 1 to 63 of a-z, 0-9, - and _"
        raise ValueError(message)
    return f"fleek.{queue}"


def describe_worker(queues: Sequence[str]) -> str:
    """What a worker process calls itself, so that others can see which queues are served."""
    return f"{WORKER} {','.join(queues)}"[:_LONGEST_NAME]


def queues_of(names: Iterable[str]) -> frozenset[str] | None:
    """The queues that processes of these names serve; None where a name has no room for all of its queues."""
    found: set[str] = set()
    for name in names:
        if len(name) >= _LONGEST_NAME:
            return None
        found.update(name.removeprefix(WORKER).strip().split(","))
    return frozenset(found - {""})


@dataclass(frozen=True, slots=True)
class Announcement:
    """A hint that a job moved. `progress` is set when nothing but the progress changed."""

    job_id: UUID
    progress: float | None = None
    cancel: bool = False
    """The client asked to cancel: the worker that runs the job should look now."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What a worker process says of itself when it is asked."""

    worker: str
    queues: tuple[str, ...]
    version: str
    ready: bool
    """Whether it claims jobs, as its own `/readyz` has it."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What is worth knowing by this key, for as long as `life`."""

    key: str
    value: bytes
    life: timedelta


class Waker(Protocol):
    """Brings workers to a queue."""

    def wake(self, queue: str) -> None:
        """Ask for a wake-up. Never blocks, never raises; many calls may become one message."""
        ...

    def close(self) -> None:
        """Publish what is pending, within a bound, and stop."""
        ...


class PubSub(Protocol):
    """Carries announcements between processes: hints, never truth."""

    def announce(self, announcement: Announcement) -> None:
        """Queue a hint for sending. Never blocks, never raises; dropped when the broker is away."""
        ...

    def listen(self, on_announcement: Callable[[Announcement], None], on_connect: Callable[[], None]) -> None:
        """Call back for every hint, and after each (re)connect, when hints may have been missed."""
        ...

    async def start(self) -> None:
        """Begin to send and to listen, in the background."""
        ...

    async def aclose(self) -> None:
        """Stop, within a bound."""
        ...


class Cache(Protocol):
    """What processes tell each other to save work: never truth, and forgotten at any moment."""

    async def get(self, keys: Sequence[str]) -> Mapping[str, bytes] | None:
        """The values of those keys that are known; None where it cannot be asked. Bounded, never raises."""
        ...

    def set(self, entries: Sequence[CacheEntry]) -> None:
        """Remember for others, in the background, where that is possible. Never blocks, never raises."""
        ...
