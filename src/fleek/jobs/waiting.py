"""Waiting for jobs to move, for requests with `wait` and for open streams.

A process has one subscription and one sweep for all of its waiters, and none of them holds a database
connection. Whoever waits registers first, then reads, then waits: what changes between the reading
and the waiting is noted, and ends the waiting at once. Announcements are hints; a sweep over all
jobs that are waited for finds what was not announced, so without a broker a waiter is late by at
most `SWEEP_INTERVAL`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import IntEnum
from uuid import UUID

import structlog
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, UUID as PG_UUID

from fleek.core.errors import Unavailable
from fleek.db.session import Database
from fleek.queue.base import Announcement, PubSub

_log = structlog.get_logger(__name__)

SWEEP_INTERVAL = 2.0
"""Seconds between two looks at the jobs that are waited for."""

# Stored in single precision: by way of its decimal form, or 0.4 would be told as 0.4000000059604645.
_SWEEP = text(
    "SELECT id, event_sequence, CAST(CAST(progress AS numeric) AS float8) AS progress"
    " FROM jobs WHERE id = ANY(:waiting)"
).bindparams(bindparam("waiting", type_=ARRAY(PG_UUID)))

_Facts = tuple[int, float | None]
"""A job's `event_sequence` and `progress`."""


class Change(IntEnum):
    """What was noted since a waiter last asked; false when it was nothing."""

    NOTHING = 0
    PROGRESS = 1
    """Only the announced progress: the row may not know it yet."""
    MOVED = 2
    """The row may be another one now: read it."""


class Watch:
    """One waiter's registration for one job. It notes changes from the moment it exists."""

    def __init__(self) -> None:
        self.progress: float | None = None
        """The progress that was announced last, 0 to 1; None until one is."""
        self._noted = Change.NOTHING
        self._event = asyncio.Event()

    async def changed(self, within: float, *, at_least: Change = Change.MOVED) -> Change:
        """Wait until something of this importance was noted, or `within` seconds have passed.

        Returns what was noted since the last call, of any importance, and forgets it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._noted < at_least:
                    self._event.clear()
                    await self._event.wait()
        noted, self._noted = self._noted, Change.NOTHING
        return noted

    def note(self, change: Change, progress: float | None = None) -> None:
        """Remember a change, and wake the waiter."""
        if progress is not None:
            self.progress = progress
        self._noted = max(self._noted, change)
        self._event.set()


class Waiters:
    """All waiters of one process, on one event loop."""

    def __init__(self, database: Database, pubsub: PubSub) -> None:
        self._database = database
        self._watches: dict[UUID, set[Watch]] = {}
        self._seen: dict[UUID, _Facts | None] = {}
        self._sweep_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_stopping = False
        """The process ends: whoever waits should answer with what is known now."""
        pubsub.listen(self._on_announcement, self._sweep_now.set)

    async def start(self) -> None:
        """Begin to sweep, in the background."""
        self._task = asyncio.create_task(self._sweep_forever(), name="waiters-sweep")

    def begin_stop(self) -> None:
        """Wake everybody: nobody should wait any longer."""
        self.is_stopping = True
        for watches in self._watches.values():
            _note(watches, Change.MOVED, None)

    async def aclose(self) -> None:
        """Stop sweeping; waiters that are left end by their own time limits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @asynccontextmanager
    async def watch(self, job_id: UUID) -> AsyncIterator[Watch]:
        """Register for a job, whether it exists or not. Read the job inside, never before."""
        watch = Watch()
        self._watches.setdefault(job_id, set()).add(watch)
        try:
            yield watch
        finally:
            self._forget(job_id, watch)

    def count(self, job_id: UUID) -> int:
        """How many wait for a job at this moment."""
        return len(self._watches.get(job_id, ()))

    def _forget(self, job_id: UUID, watch: Watch) -> None:
        watches = self._watches[job_id]
        watches.discard(watch)
        if not watches:
            del self._watches[job_id]
            self._seen.pop(job_id, None)

    def _on_announcement(self, announcement: Announcement) -> None:
        change = Change.MOVED if announcement.progress is None else Change.PROGRESS
        _note(self._watches.get(announcement.job_id, ()), change, announcement.progress)

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_INTERVAL):
                    await self._sweep_now.wait()
            self._sweep_now.clear()
            try:
                await self._sweep()
            except Unavailable:
                continue  # The next sweep compares with what the last good one saw.
            except Exception:  # noqa: BLE001  a bug here must not leave all waiters alone
                _log.exception("waiters_sweep_failed")

    async def _sweep(self) -> None:
        """Wake whoever waits for a job that is not as it was when it was last looked at.

        The first look at a job wakes as well: it cannot tell what happened before it.
        """
        waiting = list(self._watches)
        if not waiting:
            return
        rows = await self._database.fetch_all(_SWEEP, {"waiting": waiting})
        facts: dict[UUID, _Facts] = {row.id: (row.event_sequence, row.progress) for row in rows}
        for job_id in waiting:
            now = facts.get(job_id)
            # The list is from before the query: whoever left meanwhile must leave nothing behind.
            if job_id in self._watches and (job_id not in self._seen or self._seen[job_id] != now):
                self._seen[job_id] = now
                _note(self._watches[job_id], Change.MOVED, now[1] if now else None)


def _note(watches: Iterable[Watch], change: Change, progress: float | None) -> None:
    for watch in watches:
        watch.note(change, progress)
