"""Objects that no row names: what a lost attempt stored, or what the store kept when it should delete.

The store is listed in a walk of bounded passes, by one process at a time. How far it came is kept in an
object of the store itself, beside the name of the database that the store belongs to: another database that
is led to the same bucket, such as a copy for tests, must not take results for orphans. Without that object
a walk begins anew, unless the store is full of results that this database knows nothing of.

A database that finds the store to be another's leaves a mark there. The owner then deletes nothing of jobs
that it does not know, since they may be the other one's.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import structlog

from fleek.core.errors import Conflict
from fleek.core.media import parse_object_key
from fleek.db.session import Database
from fleek.jobs import prunable
from fleek.jobs.prunable import Amount, Identity, Unknown
from fleek.storage.base import ObjectInfo, ObjectNotFoundError, ObjectStorage, StorageError

OWN_PREFIX = "fleek-pruner"
"""Below it lies what the pruner keeps for itself."""
WALK_KEY = f"{OWN_PREFIX}/walk.json"

_log = structlog.get_logger(__name__)

_MARKS = f"{OWN_PREFIX}/databases"
_PREFIX = "media"
_BATCH = 500
_SAMPLE = 1000
"""Objects that say whose a store is."""
_TURN = timedelta(minutes=5)
"""A walk whose process has not been heard of for this long is another one's."""
_FOREIGN = (
    "The object store belongs to another database, or holds results that this one does not know: its orphans "
    "cannot be told from results. `fleek prune --adopt` gives it to this database"
)
_SHARED = (
    "Another database uses the object store, too: what this one does not know may be its results. If that "
    "one is gone, `fleek prune --adopt` gives the store to this database alone"
)


@dataclass(frozen=True, slots=True)
class Walk:
    """How far the listing of the store has come; all times are the database's."""

    database: str
    walker: str
    began_at: str
    touched_at: str
    """Both ISO 8601."""
    after: str | None = None
    """Every key up to this one was looked at."""
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class OrphanRules:
    """How old an orphan must be, and how often the store is listed."""

    age: timedelta = timedelta(days=1)
    interval: timedelta = timedelta(hours=6)
    keys_a_pass: int = 20_000
    """After so many a pass ends, where the store lists in the order of its keys; elsewhere it goes on."""


class OrphanFinder:
    """Deletes orphans that are old enough, and nothing that it does not recognise."""

    def __init__(
        self, database: Database, storage: ObjectStorage, rules: OrphanRules, *, walker: str
    ) -> None:
        self._database = database
        self._storage = storage
        self._rules = rules
        self._walker = walker
        self._rests_until = 0.0

    async def run_once(self) -> int:
        """One pass of the walk, if it is time and our turn; how many objects were deleted.

        Raises StorageError and DatabaseUnavailable.
        """
        if time.monotonic() < self._rests_until:
            return 0
        try:
            return await self._walk_on()
        except StorageError:
            # It may refuse for good, such as for a right that is missing: that need not be said every minute.
            self._rest(_TURN)
            raise

    async def _walk_on(self) -> int:
        identity = await prunable.get_identity(self._database)
        walk = await self._read()
        if not await self._is_ours(walk, identity):
            await self._leave_mark(identity)
            _log.warning("orphans_of_another_database", remedy="fleek prune --adopt")
            self._rest(self._rules.interval)
            return 0
        begun = self._begin(walk, identity.now)
        if begun is None:
            return 0
        walk = replace(
            begun, database=identity.name, walker=self._walker, touched_at=identity.now.isoformat()
        )
        await self._write(WALK_KEY, asdict(walk))
        if await self._read() != walk:
            # Another process came at the same moment, and wrote last.
            return 0
        unknown = await self._judge_unknown(identity)
        return await self._advance(walk, identity.now - self._rules.age, unknown)

    async def sweep(self, *, delete: bool, adopt: bool = False, even_unknown: bool = False) -> Amount:
        """A whole walk now; what was found, and deleted where `delete` says so.

        `adopt` gives the store to this database alone. Without it, raises Conflict where the store belongs
        to another one, and where it is shared and `even_unknown` asks for what may be the other's.
        """
        identity = await prunable.get_identity(self._database)
        await self._require_ours(identity, adopt=adopt, delete=delete)
        unknown = Unknown.NEWER if adopt else await self._judge_unknown(identity)
        if even_unknown:
            if unknown is Unknown.NONE:
                raise Conflict(_SHARED)
            unknown = Unknown.ALL
        number = size = 0
        async for batch in self._batches(None):
            orphans = await self._pick(batch, identity.now - self._rules.age, unknown)
            if delete and orphans:
                await self._storage.delete([one.key for one in orphans])
            number, size = number + len(orphans), size + sum(one.size for one in orphans)
        return Amount(number, size)

    def _begin(self, walk: Walk | None, now: datetime) -> Walk | None:
        """The walk to go on with, or a new one; None where it is not time, or another process walks."""
        new = Walk("", "", began_at=now.isoformat(), touched_at=now.isoformat())
        if walk is None:
            return new
        if walk.is_over:
            left, longest = datetime.fromisoformat(walk.began_at) - now, self._rules.interval
        elif walk.walker != self._walker:
            left, longest = datetime.fromisoformat(walk.touched_at) - now, _TURN
        else:
            return walk
        # A moment that is yet to come was written while the database's clock was wrong.
        if -longest < left <= timedelta(0):
            self._rest(left + longest)
            return None
        return new if walk.is_over else walk

    def _rest(self, duration: timedelta) -> None:
        """Do not even look at the store until then. The monotonic clock only spares requests."""
        self._rests_until = time.monotonic() + min(duration, self._rules.interval).total_seconds()

    async def _advance(self, walk: Walk, cutoff: datetime, unknown: Unknown) -> int:
        seen = deleted = 0
        last, is_sorted = walk.after or "", True
        async for batch in self._batches(walk.after):
            orphans = [one.key for one in await self._pick(batch, cutoff, unknown)]
            if orphans:
                await self._storage.delete(orphans)
            seen, deleted = seen + len(batch), deleted + len(orphans)
            keys = [last, *(one.key for one in batch)]
            is_sorted = is_sorted and keys == sorted(keys)
            last = keys[-1]
            if is_sorted and seen >= self._rules.keys_a_pass:
                await self._write(WALK_KEY, asdict(replace(walk, after=last)))
                return deleted
        await self._write(WALK_KEY, asdict(replace(walk, after=None, is_over=True)))
        return deleted

    async def _batches(self, after: str | None) -> AsyncIterator[list[ObjectInfo]]:
        batch: list[ObjectInfo] = []
        async for found in self._storage.list(_PREFIX, after=after):
            batch.append(found)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _pick(self, batch: list[ObjectInfo], cutoff: datetime, unknown: Unknown) -> list[ObjectInfo]:
        """The orphans among objects of the store; what others have put there is none."""
        old = [one for one in batch if one.last_modified < cutoff]
        names = [name for one in old if (name := parse_object_key(one.key)) is not None]
        if not names:
            return []
        keys = await prunable.list_orphans(self._database, names, unknown)
        return [one for one in old if one.key in keys]

    async def _is_ours(self, walk: Walk | None, identity: Identity) -> bool:
        """The first database owns the store, unless most results there are of jobs that it does not know."""
        if walk is not None:
            return walk.database == identity.name
        jobs = await self._sample_jobs()
        return len(jobs) <= 2 * await prunable.count_known_jobs(self._database, jobs)

    async def _sample_jobs(self) -> set[UUID]:
        """Whose results the store lists first; in a bucket these are the oldest."""
        jobs: set[UUID] = set()
        seen = 0
        async for found in self._storage.list(_PREFIX):
            name = parse_object_key(found.key)
            if name is not None:
                jobs.add(name.job_id)
                seen += 1
            if seen == _SAMPLE:
                break
        return jobs

    async def _judge_unknown(self, identity: Identity) -> Unknown:
        """What may be deleted of jobs that this database does not know; nothing, where it is not alone."""
        marks = [found.key async for found in self._storage.list(_MARKS)]
        if set(marks) <= {_mark_of(identity)}:
            return Unknown.NEWER
        _log.warning("orphans_of_a_shared_store", remedy="fleek prune --adopt")
        return Unknown.NONE

    async def _leave_mark(self, identity: Identity) -> None:
        await self._write(
            _mark_of(identity), {"database": identity.name, "seen_at": identity.now.isoformat()}
        )

    async def _require_ours(self, identity: Identity, *, adopt: bool, delete: bool) -> None:
        walk = await self._read()
        if not adopt and not await self._is_ours(walk, identity):
            raise Conflict(_FOREIGN)
        if not delete:
            return
        if adopt:
            await self._storage.delete([found.key async for found in self._storage.list(_MARKS)])
        if walk is None or walk.database != identity.name:
            never = datetime.fromtimestamp(0, UTC).isoformat()
            await self._write(WALK_KEY, asdict(Walk(identity.name, self._walker, never, never, is_over=True)))

    async def _read(self) -> Walk | None:
        """What is kept of the walk; None where nothing is, or nothing that can be read."""
        try:
            content = b"".join([chunk async for chunk in self._storage.get(WALK_KEY)])
            return Walk(**json.loads(content))
        except (ObjectNotFoundError, ValueError, TypeError):
            return None

    async def _write(self, key: str, record: dict[str, object]) -> None:
        content = json.dumps(record).encode()
        await self._storage.put(key, content, content_type="application/json", filename="record.json")


def _mark_of(identity: Identity) -> str:
    return f"{_MARKS}/{identity.name.replace('/', '-')}.json"
