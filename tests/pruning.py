"""Pruners over a real database and a store in memory, and the situations that they find."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from fleek.core.ids import new_id
from fleek.core.job import ErrorCode, failed
from fleek.core.media import PNG, object_key
from fleek.db.session import Database
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.orphans import OWN_PREFIX, OrphanFinder, OrphanRules
from fleek.jobs.pruner import Pruner
from fleek.storage.base import StorageError
from tests.executing import UnreliableStorage
from tests.queueing import Queue

DAY = timedelta(days=1)
AT_ONCE = OrphanRules(age=timedelta(0), interval=timedelta(0))
"""Orphans of any age, and no rest between two walks."""
NOTHING = {"expired": 0, "jobs": 0, "orphans": 0, "log_entries": 0}


class Store(UnreliableStorage):
    """A store in memory that can refuse to delete, or be looked at while it does."""

    def __init__(self) -> None:
        super().__init__()
        self.keeps = False
        self.stuck: set[str] = set()
        """Keys that it refuses to delete."""
        self.lists = 0

    async def delete(self, keys: list[str]) -> None:
        if self.keeps or self.stuck.intersection(keys):
            raise StorageError("the store is read-only")
        await super().delete(keys)

    async def hold_object(self, key: str) -> str:
        """Have an object under a key; the key."""
        await self.put(key, b"x", content_type=PNG.content_type, filename="x.png")
        return key

    async def keys(self) -> set[str]:
        """Everything that is stored, but for what the pruner keeps for itself."""
        kept = [found.key async for found in self.list("")]
        return {key for key in kept if not key.startswith(OWN_PREFIX)}


class Scene:
    """A queue and a store, as workers leave them."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.store = Store()

    def finder(self, rules: OrphanRules = AT_ONCE, *, walker: str = "worker-1") -> OrphanFinder:
        """One process's look for orphans."""
        return OrphanFinder(self.queue.database, self.store, rules, walker=walker)

    def pruner(
        self, *, retention: timedelta | None = None, database: Database | None = None, **options: Any
    ) -> Pruner:
        """One process's pruner."""
        finder = OrphanFinder(self.queue.database, self.store, AT_ONCE, walker="worker-1")
        return Pruner(database or self.queue.database, self.store, finder, job_retention=retention, **options)

    async def complete(self, *, ttl: timedelta | None = None, **overrides: Any) -> ClaimedJob:
        """A job whose results are stored."""
        job = await self.queue.accept_and_claim(**overrides)
        assert await self.queue.finish(job, media_ttl=ttl)
        for row in await self.queue.media(job.id):
            await self.store.hold_object(row.key)
        return job

    async def fail(self, job: ClaimedJob | None = None) -> ClaimedJob:
        """A job that gave up."""
        job = job or await self.queue.accept_and_claim()
        assert await self.queue.apply(job, failed(ErrorCode.CONTENT_REFUSED, "no")) is not None
        return job

    async def age(self, job_id: UUID, days: int = 2) -> None:
        """Let a job have ended so long ago."""
        await self.queue.change(
            "UPDATE jobs SET finished_at = finished_at - make_interval(days => :days), "
            "available_at = available_at - make_interval(days => :days) WHERE id = :id",
            days=days,
            id=job_id,
        )

    async def expire(self, job_id: UUID) -> None:
        """Let the time of a job's results have come."""
        await self.queue.change(
            "UPDATE media SET expires_at = clock_timestamp() - interval '1 second' WHERE job_id = :id",
            id=job_id,
        )

    async def keys(self, job_id: UUID) -> list[str]:
        """Where a job's results are stored, as its rows say."""
        return [row.key for row in await self.queue.media(job_id)]

    async def left_by_attempt(self, job: ClaimedJob, fence: int | None = None) -> str:
        """An object that an attempt stored, and no row names."""
        return await self.store.hold_object(object_key(job.id, job.media_ids[0], fence or job.fence, PNG))


def stray_key(after: UUID | None = None) -> str:
    """The key of a result of a job that was made just now, or right before the job `after`."""
    job_id = new_id() if after is None else UUID(int=after.int - (1 << 80))
    return object_key(job_id, new_id(), 1, PNG)
