"""The pruner, and whoever wants the same job, result or object at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from tests.pruning import DAY, Scene
from tests.queueing import Queue, wait_until

from fleek.core.job import ErrorCode, Status, failed
from fleek.core.media import PNG, object_key
from fleek.core.owner import LOCAL_OWNER
from fleek.db.session import Database, PoolOptions
from fleek.jobs import changes, prunable
from fleek.jobs.claim import ClaimedJob
from fleek.media.repository import delete_media

ROUNDS = 12


@pytest.fixture
def scene(queue: Queue) -> Scene:
    """An empty queue and an empty store."""
    return Scene(queue)


@pytest.fixture
async def others(queue_url: str) -> AsyncIterator[Database]:
    """Another process."""
    database = Database(queue_url, PoolOptions(lock_timeout=20, statement_timeout=30))
    yield database
    await database.aclose()


class SlowStore:
    """Stops at the first delete until it may go on: what happens meanwhile is up to the test."""

    def __init__(self, scene: Scene) -> None:
        self._delete = scene.store.delete
        self.asked, self.go = asyncio.Event(), asyncio.Event()
        scene.store.delete = self.delete  # type: ignore[method-assign]  # the test's own fake

    async def delete(self, keys: list[str]) -> None:
        self.asked.set()
        await self.go.wait()
        await self._delete(keys)


async def run_again(scene: Scene, queue: Queue) -> ClaimedJob:
    """A worker claims the job that was retried, stores its result and completes it."""
    again = await queue.claim_one()
    for media_id in again.media_ids:
        await scene.store.hold_object(object_key(again.id, media_id, again.fence, PNG))
    assert await queue.finish(again)
    return again


async def lost_job(scene: Scene, queue: Queue) -> ClaimedJob:
    """A job that failed long ago, and left an object."""
    job = await queue.accept_and_claim()
    await scene.left_by_attempt(job)
    await scene.fail(job)
    await scene.age(job.id)
    return job


class TestRetention:
    async def test_a_job_that_is_retried_while_its_objects_go_keeps_its_new_result(
        self, scene: Scene, queue: Queue
    ) -> None:
        job = await lost_job(scene, queue)
        slow = SlowStore(scene)
        pruning = asyncio.create_task(scene.pruner(retention=DAY).prune_rows())
        await slow.asked.wait()
        assert await queue.retry(job.id) is not None
        again = await run_again(scene, queue)
        slow.go.set()

        assert (await pruning)["jobs"] == 0
        assert (await queue.row(job.id)).status == Status.COMPLETED
        assert await scene.store.keys() == set(await scene.keys(again.id))
        assert [row.deleted_at for row in await queue.media(job.id)] == [None]

    async def test_a_job_that_is_retried_while_its_objects_are_listed_keeps_its_new_result(
        self, scene: Scene, queue: Queue
    ) -> None:
        job = await lost_job(scene, queue)
        [outlived] = await prunable.claim_outlived_jobs(queue.database, DAY, 9)
        assert await queue.retry(job.id) is not None
        again = await run_again(scene, queue)

        assert await scene.pruner()._delete_whole([outlived], DAY) == 0
        assert await scene.store.keys() == set(await scene.keys(again.id))

    async def test_a_job_that_was_retried_and_failed_again_is_as_young_as_its_new_end(
        self, scene: Scene, queue: Queue
    ) -> None:
        job = await lost_job(scene, queue)
        [outlived] = await prunable.claim_outlived_jobs(queue.database, DAY, 9)
        await queue.retry(job.id)
        await queue.apply(await queue.claim_one(), failed(ErrorCode.CONTENT_REFUSED, "no"))

        assert await prunable.delete_jobs(queue.database, [outlived.id], DAY) == 0

    @pytest.mark.parametrize("first", ["retry", "prune"])
    async def test_of_a_retry_and_the_deletion_that_want_the_row_at_once_the_first_one_counts(
        self, scene: Scene, queue: Queue, others: Database, first: str
    ) -> None:
        job = await lost_job(scene, queue)
        lost = await changes.get_lost_orders_or_none(others, LOCAL_OWNER, job.id)
        assert lost is not None
        retry = changes.retry(others, LOCAL_OWNER, job.id, lost.fence)
        prune = prunable.delete_jobs(queue.database, [job.id], DAY)
        if first == "retry":
            moved, deleted = await retry, await prune
        else:
            deleted, moved = await prune, await retry

        assert (moved is not None, deleted) == ((True, 0) if first == "retry" else (False, 1))

    async def test_a_retry_that_holds_the_row_is_not_waited_for(
        self, scene: Scene, queue: Queue, others: Database
    ) -> None:
        job = await lost_job(scene, queue)
        async with others.begin() as connection:
            await connection.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": job.id})
            deleted = await asyncio.wait_for(prunable.delete_jobs(queue.database, [job.id], DAY), 10)

        assert deleted == 0

    async def test_two_pruners_share_the_work(self, scene: Scene, queue: Queue, others: Database) -> None:
        jobs = [await scene.complete() for _ in range(40)]
        for job in jobs:
            await scene.age(job.id)

        counts = await asyncio.gather(
            *(scene.pruner(retention=DAY, database=one).prune_rows() for one in (queue.database, others))
        )

        assert sum(count["jobs"] for count in counts) == 40
        assert await scene.store.keys() == set()

    async def test_a_client_that_deletes_at_the_same_time_disturbs_nothing(
        self, scene: Scene, queue: Queue, others: Database
    ) -> None:
        for _ in range(ROUNDS):
            job = await scene.complete()
            await scene.age(job.id)

            async def delete(job_id: Any = job.id) -> bool:
                return await changes.delete(others, LOCAL_OWNER, job_id) is not None

            counts, by_client = await asyncio.gather(scene.pruner(retention=DAY).prune_rows(), delete())

            assert counts["jobs"] + by_client == 1
        assert await queue.query("SELECT id FROM jobs") == []

    async def test_lives_that_begin_again_at_any_moment_lose_nothing(
        self, scene: Scene, queue: Queue, others: Database
    ) -> None:
        for _ in range(ROUNDS):
            job = await lost_job(scene, queue)
            lost = await changes.get_lost_orders_or_none(others, LOCAL_OWNER, job.id)
            assert lost is not None

            async def again(job_id: Any = job.id, fence: Any = lost.fence) -> ClaimedJob | None:
                if await changes.retry(others, LOCAL_OWNER, job_id, fence) is None:
                    return None
                return await run_again(scene, queue)

            counts, completed = await asyncio.gather(scene.pruner(retention=DAY).prune_rows(), again())

            assert counts["jobs"] == (completed is None)
            if completed is not None:
                assert set(await scene.keys(job.id)) <= await scene.store.keys()


class TestResults:
    async def test_a_result_expires_or_is_deleted_but_not_both(
        self, scene: Scene, queue: Queue, others: Database
    ) -> None:
        for _ in range(ROUNDS):
            job = await scene.complete(ttl=DAY)
            await queue.change("UPDATE media SET expires_at = clock_timestamp() + interval '1 ms'")

            deleted, expired = await asyncio.gather(
                delete_media(others, LOCAL_OWNER, job.media_ids[0]), prunable.expire_media(queue.database, 9)
            )
            expired += await prunable.expire_media(queue.database, 9)

            assert (deleted is not None) + len(expired) == 1

    async def test_two_pruners_expire_each_result_once(
        self, scene: Scene, queue: Queue, others: Database
    ) -> None:
        for _ in range(5):
            await scene.expire((await scene.complete(n=8, ttl=DAY)).id)

        counts = await asyncio.gather(
            *(scene.pruner(database=one).prune_rows() for one in (queue.database, others))
        )

        assert sum(count["expired"] for count in counts) == 40


class TestOrphans:
    async def test_a_result_that_is_named_while_the_store_is_listed_stays(
        self, scene: Scene, queue: Queue
    ) -> None:
        job = await queue.accept_and_claim()
        key = await scene.left_by_attempt(job)
        finder = scene.finder()
        [batch] = [batch async for batch in finder._batches(None)]
        assert await queue.finish(job)

        found = await finder._pick(
            batch, (await prunable.get_identity(queue.database)).now, prunable.Unknown.NEWER
        )
        assert found == []
        assert await scene.store.keys() == {key}

    async def test_a_job_that_is_retried_while_its_orphans_go_keeps_its_new_result(
        self, scene: Scene, queue: Queue
    ) -> None:
        job = await lost_job(scene, queue)
        slow = SlowStore(scene)
        finding = asyncio.create_task(scene.finder().run_once())
        await slow.asked.wait()
        assert await queue.retry(job.id) is not None
        again = await run_again(scene, queue)
        slow.go.set()

        assert await finding == 1
        assert await scene.store.keys() == set(await scene.keys(again.id))

    async def test_of_processes_that_begin_to_walk_at_once_one_does(self, scene: Scene, queue: Queue) -> None:
        await queue.accept()
        writes = scene.store.puts
        writes.clear()
        scene.store.hold = asyncio.Event()
        walks = [asyncio.create_task(scene.finder(walker=name).run_once()) for name in ("one", "two")]
        await wait_until(lambda: len(writes) == 2)
        scene.store.hold.set()
        await asyncio.gather(*walks)

        assert len(writes) == 3
