"""Statements that must not be given up at the first refused connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fleek.core.errors import DatabaseUnavailable

_T = TypeVar("_T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_GIVE_UP_AFTER = 60.0


async def persistently(
    statement: Callable[[], Awaitable[_T]], *, give_up_after: float = _GIVE_UP_AFTER
) -> _T:
    """Run a statement until the database answers, for about a minute (`give_up_after`, in seconds).

    What an attempt has obtained exists only in its process, and its lease holds as long as nobody
    takes it: to give up at once would throw finished, perhaps paid work away. Every statement that
    comes here is guarded, so one whose commit was not seen is harmless when it runs again.
    """
    pause = _FIRST_PAUSE
    until = time.monotonic() + give_up_after
    while True:
        try:
            return await statement()
        except DatabaseUnavailable:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


async def shielded(section: Awaitable[_T]) -> _T:
    """Await a section to its end, however often this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(section)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            is_cancelled = True
    if not is_cancelled:
        return task.result()
    if not task.cancelled():
        task.exception()  # marked as seen: that this task was cancelled is what counts now
    raise asyncio.CancelledError
