"""Long polling: a request that waits until its job is what it asks for, or its time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from fastapi import Request
from starlette.requests import ClientDisconnect

from fleek.jobs.waiting import Waiters

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Wait:
    """Who waits, for what, and how long: in seconds."""

    request: Request
    waiters: Waiters
    job_id: UUID
    seconds: float

    async def until(
        self, read: Callable[[], Awaitable[Answer]], is_awaited: Callable[[Answer], bool]
    ) -> Answer:
        """Read now and whenever the job moves, until the answer is the awaited one or the time is over.

        The last answer is returned either way. Nothing but `read` uses a database connection. Raises
        ClientDisconnect when nobody is left to answer.
        """
        return await _while_connected(self.request, self._until(read, is_awaited))

    async def _until(
        self, read: Callable[[], Awaitable[Answer]], is_awaited: Callable[[Answer], bool]
    ) -> Answer:
        clock = asyncio.get_running_loop().time
        ends_at = clock() + self.seconds
        async with self.waiters.watch(self.job_id) as watch:
            while not is_awaited(answer := await read()):
                left = ends_at - clock()
                if left <= 0 or self.waiters.is_stopping:
                    break
                await watch.changed(left)
        return answer


async def _while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
