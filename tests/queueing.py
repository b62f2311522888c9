"""A queue on a real PostgreSQL, for tests of `fleek.jobs`: the product's verbs, and looks behind them.

`queue` gives an empty one. When the test ends, every job's history is checked against its row.
The database is shared by the tests of a module's folder and emptied between them; a test that needs
one of its own takes `database_url`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from fleek.core.events import STATUS_AFTER, EventKind, fold
from fleek.core.ids import new_id
from fleek.core.job import TRANSITIONS, Status, Transition, decide_after_crash
from fleek.core.media import MAX_SEED
from fleek.core.owner import LOCAL_OWNER
from fleek.db.session import Database, PoolOptions
from fleek.jobs import changes, leases, submissions, transitions
from fleek.jobs.changes import Idempotency, NewJob
from fleek.jobs.claim import ClaimedJob, Claimer, ServedModel
from fleek.jobs.transitions import StoredMedia
from fleek.local.postgres import PostgresServer
from fleek.local.valkey import ValkeyServer
from fleek.providers.base import GenerationRequest, Handle

LEASE = timedelta(seconds=30)
TIMEOUT = timedelta(minutes=3)
FAKE = ServedModel("fake", "fake", TIMEOUT)
"""The model that jobs of these tests ask for."""
PARAMETERS = {"width": None, "height": None, "negative_prompt": None, "output_format": "png", "seed": 7}
_NUMBERS = itertools.count(1)


def new_job(**overrides: Any) -> NewJob:
    """A validated request, with every field of `NewJob` open to change."""
    fields: dict[str, Any] = {
        "id": new_id(),
        "owner": LOCAL_OWNER,
        "queue": "default",
        "model": FAKE.name,
        "n": 1,
        "priority": 0,
        "max_attempts": 4,
        "deadline_seconds": 3600,
        "prompt": "a lighthouse at dawn",
        "parameters": PARAMETERS,
        "input": {},
        "metadata": {},
    } | overrides
    n, seed = fields["n"], fields["parameters"]["seed"]
    fields.setdefault("media_ids", [new_id() for _ in range(n)])
    fields.setdefault("seeds", [(seed + index) % (MAX_SEED + 1) for index in range(n)])
    return NewJob(**fields)


def stored(job: ClaimedJob, count: int | None = None) -> list[StoredMedia]:
    """Results of a job as they would be stored, without any bytes; `count` other than n if given."""
    ids = [*job.media_ids, *(new_id() for _ in range(8))]
    return [
        StoredMedia(
            id=ids[index],
            index=index,
            seed=7 + index,
            key=f"media/{job.id}/{ids[index]}/{job.fence}.png",
            content_type="image/png",
            size_bytes=100,
            width=8,
            height=8,
            sha256="0" * 64,
            thumbhash=None,
        )
        for index in range(job.n if count is None else count)
    ]


async def retry_job(database: Database, job_id: UUID, key: Idempotency | None = None) -> changes.Moved | None:
    """A client retries a job as it stands at this moment."""
    lost = await changes.get_lost_orders_or_none(database, LOCAL_OWNER, job_id)
    return None if lost is None else await changes.retry(database, LOCAL_OWNER, job_id, lost.fence, key)


class Queue:
    """One database, and the verbs of `fleek.jobs` with defaults."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def accept(self, *, idempotency: Idempotency | None = None, **overrides: Any) -> NewJob:
        """Accept a job; one whose key is taken raises AssertionError."""
        job = new_job(**overrides)
        assert await changes.accept(self.database, job, idempotency) is not None
        return job

    def claimer(self, *models: ServedModel, worker: str = "worker-1", lease: timedelta = LEASE) -> Claimer:
        """A worker that serves these models, or `FAKE`."""
        return Claimer(self.database, worker=worker, lease=lease, models=models or (FAKE,))

    async def claim(self, slots: int = 1, **options: Any) -> list[ClaimedJob]:
        """What a worker claims now."""
        return await self.claimer(**options).claim("default", slots)

    async def claim_one(self, **options: Any) -> ClaimedJob:
        """The one job that a worker claims now."""
        [claimed] = await self.claim(1, **options)
        return claimed

    async def accept_and_claim(self, **overrides: Any) -> ClaimedJob:
        """A new job under a lease; nothing else may be due."""
        job = await self.accept(**overrides)
        claimed = await self.claim_one()
        assert claimed.id == job.id
        return claimed

    async def cancel(self, job_id: UUID) -> changes.Moved | None:
        """A client cancels."""
        return await changes.cancel(self.database, LOCAL_OWNER, job_id)

    async def retry(self, job_id: UUID, key: Idempotency | None = None) -> changes.Moved | None:
        """A client retries, whatever was ordered before."""
        return await retry_job(self.database, job_id, key)

    async def apply(self, job: ClaimedJob, transition: Transition, **options: Any) -> Status | None:
        """The worker of a claim applies a transition."""
        options.setdefault("provider", "fake")
        moved = await transitions.apply(self.database, job.id, job.fence, transition, **options)
        return None if moved is None else moved.status

    async def rescue(self, job: ClaimedJob, *, own_work: bool = True) -> Status | None:
        """A rescuer that has looked twice takes a job from its worker."""
        crash = decide_after_crash(job.view.crashes, own_work=own_work)
        return await self.apply(job, crash, only_if_abandoned=timedelta(seconds=30))

    async def put_back(self, job: ClaimedJob) -> None:
        """Let a job lose its worker, and be rescued."""
        await self.expire_lease(job.id)
        assert await self.rescue(job, own_work=False) is not None

    async def rescue_all(self) -> None:
        """Take every running job from its worker."""
        await self.change("UPDATE jobs SET lease_expires_at = now() WHERE status = 'processing'")
        for lost in await leases.list_expired(self.database, timedelta(seconds=30)):
            crash = decide_after_crash(0, own_work=False)
            await transitions.apply(self.database, lost.id, lost.fence, crash, provider="fake")

    async def finish(self, job: ClaimedJob, count: int | None = None, **options: Any) -> bool:
        """The worker of a claim completes the job."""
        options = {"metrics": {}} | options
        moved = await transitions.finish(self.database, job.id, job.fence, stored(job, count), **options)
        return moved is not None

    async def order(
        self, job: ClaimedJob, handle_id: str | None = None, *, first_index: int = 0, count: int = 1
    ) -> int:
        """The worker of a claim places an order; without a handle it stays an intent. Its ordinal."""
        request = GenerationRequest("fake", "fake", "x", seed=7, first_index=first_index, count=count)
        placed = await submissions.intend(self.database, job.id, job.fence, request, "fake", LEASE)
        if handle_id is not None:
            handle = Handle(handle_id, {"first": first_index})
            await submissions.record(self.database, job.id, job.fence, placed.ordinal, handle)
        return placed.ordinal

    async def query(self, sql: str, **parameters: Any) -> list[Any]:
        """Rows, past the product's code."""
        return await self.database.fetch_all(text(sql), parameters)

    async def change(self, sql: str, **parameters: Any) -> None:
        """Arrange a situation that the product's verbs reach only with time."""
        await self.database.fetch_rowcount(text(sql), parameters)

    async def row(self, job_id: UUID) -> Any:
        """The row of `jobs`."""
        [row] = await self.query("SELECT * FROM jobs WHERE id = :id", id=job_id)
        return row

    async def history(self, job_id: UUID) -> list[EventKind]:
        """The kinds of the job's events."""
        rows = await self.query("SELECT kind FROM events WHERE job_id = :id ORDER BY sequence", id=job_id)
        return [EventKind(row.kind) for row in rows]

    async def attempts(self, job_id: UUID) -> list[Any]:
        """The rows of `attempts`, by number."""
        return await self.query("SELECT * FROM attempts WHERE job_id = :id ORDER BY number", id=job_id)

    async def orders(self, job_id: UUID) -> list[Any]:
        """The rows of `submissions`, by ordinal."""
        return await self.query("SELECT * FROM submissions WHERE job_id = :id ORDER BY ordinal", id=job_id)

    async def media(self, job_id: UUID) -> list[Any]:
        """The rows of `media`, by index."""
        return await self.query("SELECT * FROM media WHERE job_id = :id ORDER BY index", id=job_id)

    async def expire_lease(self, job_id: UUID) -> None:
        """Let a lease have run out a minute ago."""
        await self.change(
            "UPDATE jobs SET lease_expires_at = clock_timestamp() - interval '1 minute' WHERE id = :id",
            id=job_id,
        )

    async def make_due(self) -> None:
        """Let every waiting job be due."""
        await self.change("UPDATE jobs SET available_at = clock_timestamp() WHERE status = 'in_queue'")

    async def pass_deadline(self, job_id: UUID) -> None:
        """Let the client's deadline have passed a minute ago."""
        await self.change(
            "UPDATE jobs SET deadline_at = clock_timestamp() - interval '1 minute' WHERE id = :id", id=job_id
        )

    async def fill(self, count: int, *, owner: str = LOCAL_OWNER, **columns: Any) -> None:
        """Many waiting jobs in one statement, oldest first."""
        columns = {"model": FAKE.name, "queue": "default", "priority": 0, "seconds_ago": 60} | columns
        await self.change(
            """
            WITH new AS (
                INSERT INTO jobs (id, owner_id, queue, model, n, status, reason, priority, max_attempts,
                    available_at, created_at, deadline_at, event_sequence)
                SELECT uuidv7(), :owner, :queue, :model, 1, 'in_queue', 'accepted', :priority, 4,
                    t.at, t.at, t.at + interval '1 day', 1
                FROM generate_series(1, CAST(:count AS int)) AS g (i),
                    LATERAL (SELECT clock_timestamp() - make_interval(secs => :seconds_ago) AS at) AS t
                RETURNING id
            ),
            request AS (
                INSERT INTO job_requests (job_id, prompt, parameters, input, metadata, deadline_seconds)
                SELECT id, 'many', CAST(:parameters AS jsonb), '{}', '{}', 86400 FROM new
            ),
            event AS (INSERT INTO events (job_id, sequence, kind) SELECT id, 1, 'accepted' FROM new)
            INSERT INTO media (id, job_id, owner_id, index) SELECT uuidv7(), id, :owner, 0 FROM new
            """,
            owner=owner,
            count=count,
            parameters=json.dumps(PARAMETERS),
            **columns,
        )

    async def check_histories(self) -> None:
        """Every row agrees with its history, and with the rows that belong to it."""
        jobs = await self.query("SELECT * FROM jobs")
        events: dict[UUID, list[Any]] = {job.id: [] for job in jobs}
        for event in await self.query("SELECT job_id, sequence, kind FROM events ORDER BY sequence"):
            events[event.job_id].append(event)
        attempts = await self.query("SELECT job_id, number FROM attempts WHERE finished_at IS NULL")
        open_orders = await self.query("SELECT job_id FROM submissions WHERE resolved_at IS NULL")
        is_processing = {(job.id, job.fence) for job in jobs if job.status == Status.PROCESSING}

        assert {(one.job_id, one.number) for one in attempts} == is_processing
        for job in jobs:
            history = events[job.id]
            check_history(job, [one.kind for one in history], [one.sequence for one in history])
            if any(order.job_id == job.id for order in open_orders):
                assert job.status == Status.PROCESSING or job.resuming, job


def check_history(job: Any, events: Sequence[str], sequences: Sequence[int]) -> None:
    """The events lead to the row's status, without a gap, and by legal transitions only."""
    kinds = [EventKind(kind) for kind in events]
    statuses = [STATUS_AFTER[kind] for kind in kinds]

    assert list(sequences) == list(range(1, job.event_sequence + 1)), (job, kinds)
    assert fold(kinds) == job.status, (job, kinds)
    assert kinds.count(EventKind.COMPLETED) <= 1
    for before, after in itertools.pairwise(statuses):
        assert after in TRANSITIONS[before] or before == after == Status.PROCESSING, kinds


async def wait_until(condition: Callable[[], Any], within: float = 20.0) -> None:
    """Return when `condition()`, or what it awaits, is true; AssertionError when that takes too long."""
    async with asyncio.timeout(within):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def away(server: PostgresServer | ValkeyServer) -> AsyncIterator[None]:
    """Kill a server of the session; at the end it is there again, whatever the test has found."""
    await asyncio.to_thread(server.stop, ((signal.SIGQUIT, 1.0),))
    try:
        yield
    finally:
        server.launch()
        await asyncio.to_thread(server.wait_ready)


@pytest.fixture(scope="package")
def queue_url(postgres: PostgresServer, template_database: str) -> Iterator[str]:
    """A migrated database that the tests of one folder share, one after the other."""
    name = f"queue_{next(_NUMBERS)}"
    postgres.query(f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY file_copy", "postgres")
    yield postgres.url(name)
    postgres.query(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
async def queue(queue_url: str) -> AsyncIterator[Queue]:
    """An empty queue, whose histories are checked when the test has ended."""
    database = Database(queue_url, PoolOptions(size=40, max_overflow=20))
    queue = Queue(database)
    await queue.change("DELETE FROM jobs")
    await queue.change("DELETE FROM lane_state")
    yield queue
    try:
        await queue.check_histories()
    finally:
        await database.aclose()
