"""What happens to one job, as it happens: from its event stream, or by asking where none gets through.

A thread reads, so that the command can wait with a time limit and hear Ctrl-C at once.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from fleek.cli.client import Client, job_path
from fleek.cli.exits import CommandError, ExitCode
from fleek.core.events import TERMINAL_EVENTS
from fleek.core.job import TERMINAL

_PATIENCE_SECONDS = 60.0
"""How long a Fleek may be away, for a restart say, before a waiting command gives up."""
_PAUSES = (0.2, 0.5, 1.0, 2.0)
_POLL_SECONDS = 10
"""How long one question for the status waits at the server for a change."""
_FAILED_STREAMS = 3
"""Streams in a row that broke without any news; then the status is asked for instead."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to a job, or how far it is."""

    kind: str
    """A kind of `core.events`, or `progress`, or `status` for an answer to a question."""
    data: Mapping[str, Any]
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is over; `job` is the whole of it, as the API shows it."""

    job: Mapping[str, Any]


class JobFeed:
    """Changes of one job, until it is finished. Use it as a context manager."""

    def __init__(self, client: Client, job_id: str, *, patience: float = _PATIENCE_SECONDS) -> None:
        self._client = client
        self._job_id = job_id
        self._patience = patience
        self._news: queue.SimpleQueue[Change | Finished | Exception] = queue.SimpleQueue()
        self._last_event_id: str | None = None
        self._changes = 0
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="job-feed", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The thread may sit in a read for a while yet; it is a daemon and ends with the process.
        self._is_closed.set()

    def next(self, timeout: float | None = None) -> Change | Finished | None:
        """What happened next; None after `timeout` seconds without news. Raises CommandError."""
        try:
            news = self._news.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(news, Exception):
            raise news
        return news

    def _read(self) -> None:
        try:
            finished = self._follow_events() or self._poll()
        except Exception as error:  # noqa: BLE001  it is raised again in the waiting thread
            self._news.put(error)
        else:
            if finished is not None:
                self._news.put(finished)

    def _follow_events(self) -> Finished | None:
        """Read event streams, one after the other as they break; None when that is of no use."""
        failures = 0
        while failures < _FAILED_STREAMS and not self._is_closed.is_set():
            before = self._changes
            try:
                finished = self._follow_one_stream()
            except CommandError as error:
                if error.exit_code != ExitCode.UNREACHABLE:
                    return None
            else:
                if finished is not None:
                    return finished
            if self._changes == 0:
                return None  # even a new stream begins with what happened so far: something holds it back
            failures = failures + 1 if self._changes == before else 1
            self._is_closed.wait(_PAUSES[failures - 1])
        return None

    def _follow_one_stream(self) -> Finished | None:
        for event in self._client.events(job_path(self._job_id, "events"), self._last_event_id):
            sequence = int(event.id) if event.id.isdecimal() else None
            self._tell(Change(event.name, _parse(event.data), sequence))
            self._last_event_id = event.id or self._last_event_id
            if event.name in TERMINAL_EVENTS:
                # A replayed end may be followed by a client's retry, so the job itself has the last word.
                finished = self._finished()
                if finished is not None:
                    return finished
        return None

    def _poll(self) -> Finished | None:
        tag, failures, gives_up_at = None, 0, time.monotonic() + self._patience
        while not self._is_closed.is_set():
            try:
                status, tag = self._client.status(self._job_id, wait=_POLL_SECONDS if tag else None, tag=tag)
                finished = self._finished() if status and status.get("status") in TERMINAL else None
            except CommandError as error:
                if error.exit_code != ExitCode.UNREACHABLE or time.monotonic() > gives_up_at:
                    raise
                self._is_closed.wait(_PAUSES[min(failures, len(_PAUSES) - 1)])
                failures += 1
                continue
            if status is not None:
                self._tell(Change("status", status))
            if finished is not None:
                return finished
            failures, gives_up_at = 0, time.monotonic() + self._patience
            self._is_closed.wait(_PAUSES[0])
        return None

    def _tell(self, change: Change) -> None:
        self._changes += 1
        self._news.put(change)

    def _finished(self) -> Finished | None:
        job = self._client.get(job_path(self._job_id))
        return Finished(job) if job.get("status") in TERMINAL else None


def _parse(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
