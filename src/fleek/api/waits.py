"""Long polling: a request that waits until its job is what it asks for, or its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from fleek.jobs.waiting import Waiters

Answer = TypeVar("Answer")


async def wait_until(
    waiters: Waiters,
    job_id: UUID,
    seconds: float,
    read: Callable[[], Awaitable[Answer]],
    is_awaited: Callable[[Answer], bool],
) -> Answer:
    """Read now and whenever the job moves, until the answer is the awaited one or `seconds` are over.

    The last answer is returned either way. Nothing but `read` uses a database connection.
    """
    clock = asyncio.get_running_loop().time
    ends_at = clock() + seconds
    async with waiters.watch(job_id) as watch:
        while not is_awaited(answer := await read()):
            left = ends_at - clock()
            if left <= 0:
                break
            await watch.changed(left)
    return answer
