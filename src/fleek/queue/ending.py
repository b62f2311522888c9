"""How what talks to Redis in the background is ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

_INTERVAL = 0.1


async def end_tasks(tasks: Iterable[asyncio.Task[None]], within: float) -> None:
    """Cancel, and again, for `within` seconds at most.

    Once is not enough: the client loses a cancellation that comes while it connects or subscribes.
    """
    until = time.monotonic() + within
    tasks = list(tasks)
    while (running := [task for task in tasks if not task.done()]) and time.monotonic() < until:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_INTERVAL)
