"""From the log into the database: batched, bounded, and never in anybody's way.

Whoever logs, on any thread, puts a record into a queue and goes on. One task of the event loop stores
what is there, about every second, or as soon as a batch is full. Records that find the queue full are
dropped and counted, and the count is a record itself once the database answers again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from sqlalchemy.exc import ProgrammingError

from fleek.core.errors import DatabaseUnavailable
from fleek.core.log_levels import LogLevel
from fleek.db.session import Database
from fleek.logs import repository
from fleek.observability.logs import kept_records
from fleek.observability.records import Record
from fleek.observability.redaction import Redactor

_log = structlog.get_logger(__name__)

DROPPED = "log_entries_dropped"
"""The event of the record that says how many others are missing."""
_LONGEST_PAUSE = 10.0
"""Seconds between two tries while the database is away."""
_CLOSE_SECONDS = 1.5
_CANCEL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class SinkLimits:
    """How much waits, and for how long."""

    capacity: int = 1_000
    """Records that wait at most; each has a few hundred bytes, and never more than about 80,000."""
    batch: int = 100
    """Records of one statement."""
    interval: float = 1.0
    """Seconds that a record waits at most while the database answers."""


class LogSink:
    """Stores records of one process. `offer` may be called on any thread, everything else on the loop's."""

    def __init__(self, database: Database, process: str, limits: SinkLimits | None = None) -> None:
        self._database = database
        self._process = process
        self._limits = limits or SinkLimits()
        # Reentrant: a signal handler may log while its own thread is in here.
        self._lock = threading.RLock()
        self._waiting: deque[Record] = deque()
        self._batch: list[Record] = []
        self._dropped = self._counted = 0
        self._lost = 0
        self._is_closed = False
        self._is_away = False
        self._full = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> int:
        """Records that were dropped, and are not accounted for in the database yet."""
        return self._dropped

    @property
    def lost(self) -> int:
        """Records that were dropped since the start, accounted for or not."""
        return self._lost

    @property
    def waiting(self) -> int:
        """Records that are still to be stored."""
        return len(self._waiting) + len(self._batch)

    def offer(self, record: Record) -> None:
        """Take a record, or drop it where too many wait. Never blocks, never raises."""
        with self._lock:
            if self._is_closed or self.waiting >= self._limits.capacity:
                self._dropped += 1
                self._lost += 1
                return
            self._waiting.append(record)
            is_full = len(self._waiting) == self._limits.batch
        if is_full:
            with suppress(RuntimeError):  # The loop may have ended meanwhile.
                self._loop.call_soon_threadsafe(self._full.set)

    def start(self) -> None:
        """Begin to store."""
        self._task = asyncio.create_task(self._run(), name="log-sink")

    async def aclose(self, within: float = _CLOSE_SECONDS) -> None:
        """Store what waits, for `within` seconds at most; what is left then is dropped, and counted."""
        if self._task is None:
            return
        self._is_closed = True
        self._full.set()
        await asyncio.wait([self._task], timeout=within)
        self._task.cancel()
        await asyncio.wait([self._task], timeout=_CANCEL_SECONDS)
        lost = self.dropped + self.waiting
        if lost:
            _log.warning("log_entries_dropped", dropped=lost)

    async def _run(self) -> None:
        pause = self._limits.interval
        while not self._is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._full.wait()
            is_stored = await self._store_all()
            pause = self._limits.interval if is_stored else min(pause * 2, _LONGEST_PAUSE)
        await self._store_all()

    async def _store_all(self) -> bool:
        """Store batch by batch until nothing waits; false where the database is away."""
        self._full.clear()
        while self._fill_batch():
            try:
                await repository.add_entries(self._database, self._process, self._batch + self._count())
            except (DatabaseUnavailable, ProgrammingError) as error:
                # The latter while the table is not there yet, or no longer ours to write to.
                self._note_away(error)
                return False
            except Exception:  # noqa: BLE001  see below
                # Whatever is wrong with these records, those behind them must not wait for it for ever.
                _log.exception("log_entries_refused", entries=len(self._batch))
                self._note_stored(counted=-len(self._batch))
            else:
                self._is_away = False
                self._note_stored(counted=self._counted)
        return True

    def _fill_batch(self) -> bool:
        """Take the next records, unless some are left over; whether there is anything to store."""
        with self._lock:
            if not self._batch:
                count = min(len(self._waiting), self._limits.batch)
                self._batch = [self._waiting.popleft() for _ in range(count)]
            return bool(self._batch or self._dropped)

    def _count(self) -> list[Record]:
        """The record that says how many are missing, if any are."""
        self._counted = self._dropped
        if not self._counted:
            return []
        data = {"dropped": self._counted}
        return [Record(datetime.now(UTC), LogLevel.WARNING, DROPPED, None, None, None, data)]

    def _note_stored(self, counted: int) -> None:
        """The batch is done with, and so many of the dropped ones are accounted for."""
        with self._lock:
            self._batch = []
            self._dropped -= counted
            self._lost -= min(counted, 0)
        if counted > 0:
            _log.warning("log_entries_dropped", dropped=counted)

    def _note_away(self, error: Exception) -> None:
        """Say it once an outage: the records themselves are in the log of the process all the same."""
        if not self._is_away:
            _log.warning("log_store_away", error=type(error).__name__, waiting=self.waiting)
        self._is_away = True


@asynccontextmanager
async def stored_records(database: Database, process: str, redactor: Redactor) -> AsyncIterator[LogSink]:
    """Store what this process logs and is worth keeping; at the end what waits is stored, or counted."""
    sink = LogSink(database, process)
    sink.start()
    try:
        with kept_records(sink.offer, redactor):
            yield sink
    finally:
        await sink.aclose()
