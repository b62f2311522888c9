"""What a worker does to a job that it holds, with the product's own statements. Nobody is told."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

from sqlalchemy import text
from tests.factories import MadeJob, picture

from fleek.core.job import Reason, Status, Transition
from fleek.core.media import PNG, object_key
from fleek.db.session import Database
from fleek.jobs import transitions
from fleek.jobs.transitions import StoredMedia

_DELETE = text("DELETE FROM jobs WHERE id = :id")


async def give_back(database: Database, job: MadeJob) -> None:
    """Back to the queue, as at a shutdown."""
    transition = Transition(Status.IN_QUEUE, Reason.INTERRUPTED)
    moved = await transitions.apply(database, job.id, job.fence, transition, provider="demo")
    assert moved is not None
    assert moved.status is Status.IN_QUEUE


async def complete(database: Database, job: MadeJob) -> None:
    """Complete, with one result for each that was asked for."""
    media = [_stored(job, index) for index in range(len(job.media_ids))]
    assert await transitions.finish(database, job.id, job.fence, media, metrics={"seconds": 1.0})


async def delete(database: Database, job: MadeJob) -> None:
    """What a pruner does: no route deletes a job that has not ended."""
    await database.fetch_rowcount(_DELETE, {"id": job.id})


async def eventually(is_so: Callable[[], bool], *, within: float = 10) -> None:
    """Wait for what another thread is about to do."""
    ends_at = time.monotonic() + within
    while not is_so():
        assert time.monotonic() < ends_at, "it did not happen"
        await asyncio.sleep(0.02)


def _stored(job: MadeJob, index: int) -> StoredMedia:
    content, media_id = picture(index), job.media_ids[index]
    return StoredMedia(
        id=media_id,
        index=index,
        seed=index,
        key=object_key(job.id, media_id, job.fence, PNG),
        content_type=PNG.content_type,
        size_bytes=len(content),
        width=64,
        height=64,
        sha256=hashlib.sha256(content).hexdigest(),
        thumbhash=None,
    )
