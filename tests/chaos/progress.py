"""What people see on standard error while it runs: one line, rewritten about every second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import asyncpg
from rich.console import Console

from tests.cluster.cluster import Cluster

_SECONDS = 1.0
_ENDED = "SELECT count(*) AS ended FROM jobs WHERE finished_at IS NOT NULL"


class Progress:
    """A context in which the line is shown, where standard error is a terminal."""

    def __init__(self, console: Console) -> None:
        self._status = console.status("")
        self._phase = "starting"
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._look: Callable[[], str] = str
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
        self._is_shown = console.is_terminal

    def __enter__(self) -> Self:
        if self._is_shown:
            self._status.start()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._is_shown:
            self._thread.join()
            self._status.stop()

    def tell(self, phase: str) -> None:
        """What goes on now, such as the last fault."""
        self._phase = phase

    def count(self, cluster: Cluster, accepted: Callable[[], int]) -> None:
        """From now on show how many jobs were accepted, and how many of them have ended."""
        ended = 0

        def look() -> str:
            nonlocal ended
            # A database that was killed a moment ago has no news.
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                ended = cluster.query(_ENDED)[0]["ended"]
            return f", {accepted()} jobs accepted, {ended} ended"

        self._look = look

    def stop_counting(self) -> None:
        """The cluster ends."""
        self._look = str

    def _work(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._status.update(f"{time.monotonic() - self._began:.0f} s{self._look()}: {self._phase}")
