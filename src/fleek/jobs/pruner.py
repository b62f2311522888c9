"""Deletes what is not wanted any more: expired results, jobs that ended long ago, orphans, log entries.

Safe to run in many processes at once. Rows are claimed or changed first, then the store is asked, outside
of any transaction; a store that does not answer is asked again by a later pass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

import structlog

from fleek.core.media import VARIANTS, parse_object_key, variant_key
from fleek.db.session import Database
from fleek.jobs import prunable
from fleek.jobs.orphans import OrphanFinder
from fleek.jobs.prunable import OutlivedJob
from fleek.storage.base import ObjectStorage, StorageError

_log = structlog.get_logger(__name__)

_BATCH = 100
_BATCHES_A_PASS = 50
"""A pass is bounded, so that a stop need not wait, and other processes get their share."""
_DELETED_AT_ONCE = 1000
"""What S3 takes in one request."""

PruneLogs = Callable[[], Awaitable[int]]


class Pruner:
    """The caretaker of ages; `job_retention` None keeps jobs for ever."""

    def __init__(
        self,
        database: Database,
        storage: ObjectStorage,
        orphans: OrphanFinder,
        *,
        job_retention: timedelta | None = None,
        prune_logs: PruneLogs | None = None,
    ) -> None:
        self._database = database
        self._storage = storage
        self._orphans = orphans
        self._job_retention = job_retention
        self._prune_logs = prune_logs

    async def run_once(self) -> dict[str, int]:
        """One pass; the counts of `expired` results, `jobs`, `orphans` and `log_entries` that are gone."""
        counts = await self.prune_rows()
        counts["orphans"] = await self._attempt("orphans", self._orphans.run_once)
        if any(counts.values()):
            _log.info("pruned", **counts)
        return counts

    async def prune_rows(self, *, put_off: bool = True) -> dict[str, int]:
        """The same without a look for orphans. Raises StorageError, unless that is `put_off`."""
        parts: Mapping[str, Callable[[], Awaitable[int]]] = {
            "expired": self._expire,
            "jobs": self._delete_outlived,
            "log_entries": self._prune_logs or _nothing,
        }
        return {
            name: await (self._attempt(name, part) if put_off else part()) for name, part in parts.items()
        }

    async def _attempt(self, name: str, part: Callable[[], Awaitable[int]]) -> int:
        """A store that is away keeps no part but its own from being done."""
        try:
            return await part()
        except StorageError as error:
            _log.warning("prune_put_off", part=name, error=str(error))
            return 0

    async def _expire(self) -> int:
        """Rows first: a result is gone for everybody from then on, and what the store keeps is an orphan."""
        expired = 0
        for _ in range(_BATCHES_A_PASS):
            keys = await prunable.expire_media(self._database, _BATCH)
            expired += len(keys)
            if keys:
                await self._delete_or_leave(keys)
            if len(keys) < _BATCH:
                break
        return expired

    async def _delete_outlived(self) -> int:
        if self._job_retention is None:
            return 0
        deleted = 0
        for _ in range(_BATCHES_A_PASS):
            jobs = await prunable.claim_outlived_jobs(self._database, self._job_retention, _BATCH)
            if jobs:
                deleted += await self._delete_or_put_off(jobs, self._job_retention)
            if len(jobs) < _BATCH:
                break
        return deleted

    async def _delete_or_put_off(self, jobs: Sequence[OutlivedJob], retention: timedelta) -> int:
        """Where the store refuses one object only, the job that it belongs to waits, and no other does."""
        try:
            return await self._delete_whole(jobs, retention)
        except StorageError as error:
            refused = error
        deleted = 0
        while len(jobs) > 1:
            middle = len(jobs) // 2
            halves = [jobs[:middle], jobs[middle:]]
            results = [await self._try_whole(half, retention) for half in halves]
            if None not in results:
                return deleted + sum(filter(None, results))
            if results == [None, None]:
                break
            deleted += sum(filter(None, results))
            jobs = halves[results.index(None)]
        if not deleted:
            raise refused
        _log.warning("prune_put_off", part="jobs", error=str(refused))
        return deleted

    async def _try_whole(self, jobs: Sequence[OutlivedJob], retention: timedelta) -> int | None:
        try:
            return await self._delete_whole(jobs, retention)
        except StorageError:
            return None

    async def _delete_whole(self, jobs: Sequence[OutlivedJob], retention: timedelta) -> int:
        """Objects first: without their job nobody would know any more whose they were."""
        await self._delete_objects([key for job in jobs for key in job.keys])
        leftovers = [key for job in jobs if job.may_have_left_objects for key in await self._list_left(job)]
        await self._storage.delete(leftovers)
        return await prunable.delete_jobs(self._database, [job.id for job in jobs], retention)

    async def _list_left(self, job: OutlivedJob) -> list[str]:
        """What attempts of the job stored, but for one that a client's retry may have led to just now."""
        found = [parse_object_key(one.key) async for one in self._storage.list(f"media/{job.id}")]
        return [name.key for name in found if name is not None and name.fence <= job.fence]

    async def _delete_or_leave(self, keys: Sequence[str]) -> None:
        try:
            await self._delete_objects(keys)
        except StorageError as error:
            _log.warning("objects_left_behind", count=len(keys), error=str(error))

    async def _delete_objects(self, keys: Sequence[str]) -> None:
        """Objects and their variants, made or not."""
        names = [name for key in keys for name in (key, *(variant_key(key, each) for each in VARIANTS))]
        for start in range(0, len(names), _DELETED_AT_ONCE):
            await self._storage.delete(names[start : start + _DELETED_AT_ONCE])


async def _nothing() -> int:
    return 0
