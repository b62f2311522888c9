"""Keeps the leases of a process's executions: one statement renews all that need it.

It also carries progress into the rows, and brings back cancel requests and lost leases.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from enum import Enum, auto
from typing import Protocol
from uuid import UUID

import structlog

from fleek.core.errors import DatabaseUnavailable
from fleek.db.session import Database
from fleek.jobs import leases
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.leases import Held, Lease, Renewal

_log = structlog.get_logger(__name__)

_TICK = 1.0
_RETRY_SKIPPED = 2.0


class Stop(Enum):
    """Why a running execution is told to stop."""

    CANCEL = auto()
    """The client asked for it."""
    RELEASE = auto()
    """The process shuts down: give the job back."""
    LOST = auto()
    """The job belongs to somebody else: touch nothing."""


class Keepable(Protocol):
    """What the keeper needs to know of an execution."""

    progress: float | None

    @property
    def job(self) -> ClaimedJob:
        """The claim that is kept."""
        ...

    def stop(self, why: Stop) -> None:
        """End the execution."""
        ...


class _Entry:
    """One execution under this process's lease, and when its row was last written."""

    def __init__(self, execution: Keepable, now: float) -> None:
        self.execution = execution
        self.due_at = now
        self.written: float | None = None

    @property
    def key(self) -> tuple[UUID, int]:
        return self.execution.job.id, self.execution.job.fence

    def needs_writing(self, now: float) -> bool:
        progress = self.execution.progress
        return now >= self.due_at or (progress is not None and progress != self.written)


class LeaseKeeper:
    """The live executions of a process."""

    def __init__(self, database: Database, *, lease: timedelta, interval: timedelta) -> None:
        self._database = database
        self.lease = lease
        """How long a renewal holds."""
        self.is_answered = True
        """Whether the database answered the last renewal; true as well while there is nothing to renew."""
        self._interval = interval.total_seconds()
        self._entries: dict[UUID, _Entry] = {}

    def add(self, execution: Keepable) -> None:
        """Renew this execution's lease from now on; its claim has just set it."""
        self._entries[execution.job.id] = _Entry(execution, time.monotonic() + self._interval)

    def remove(self, execution: Keepable) -> None:
        """Stop renewing: before the statement that ends the attempt, and at the latest after it."""
        entry = self._entries.get(execution.job.id)
        if entry is not None and entry.execution is execution:
            del self._entries[execution.job.id]

    def find(self, job_id: UUID) -> Keepable | None:
        """The execution of a job in this process."""
        entry = self._entries.get(job_id)
        return None if entry is None else entry.execution

    async def run(self) -> None:
        """Renew for ever. A database that is away delays renewals; the fence decides what that costs."""
        while True:
            try:
                await self.run_once()
                self.is_answered = True
            except DatabaseUnavailable:
                self.is_answered = False
                _log.warning("renewal_failed", jobs=len(self._entries))
            except Exception:  # noqa: BLE001  see below
                # One odd execution must not cost a whole process its leases; it is logged and tried again.
                _log.exception("renewal_crashed", jobs=len(self._entries))
            await asyncio.sleep(_TICK)

    async def run_once(self) -> int:
        """Renew what is due or has new progress; how many leases were written."""
        now = time.monotonic()
        due = [entry for entry in self._entries.values() if entry.needs_writing(now)]
        if not due:
            return 0
        held = [Held(*entry.key, entry.execution.progress) for entry in due]
        renewals = await leases.renew(self._database, held, self.lease)
        for entry, one in zip(due, held, strict=True):
            self._note(entry, renewals[entry.key], one.progress)
        return sum(renewal.lease is Lease.RENEWED for renewal in renewals.values())

    def _note(self, entry: _Entry, renewal: Renewal, progress: float | None) -> None:
        if entry.key[0] not in self._entries:
            return
        if renewal.lease is Lease.LOST:
            entry.execution.stop(Stop.LOST)
        elif renewal.cancel_requested:
            entry.execution.stop(Stop.CANCEL)
        elif renewal.lease is Lease.RENEWED:
            entry.due_at = time.monotonic() + self._interval
            entry.written = progress
        else:
            entry.due_at = time.monotonic() + _RETRY_SKIPPED
