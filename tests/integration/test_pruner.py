"""What is deleted by age: expired results, jobs that ended long ago; and what is not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.pruning import DAY, NOTHING, Scene
from tests.queueing import PARAMETERS, Queue, wait_until

from fleek.core.job import Status
from fleek.core.media import VARIANTS, variant_key
from fleek.jobs import prunable
from fleek.jobs.changes import Idempotency
from fleek.settings import load_settings
from fleek.tasks.runtime import WorkerRuntime

TABLES = (
    "jobs",
    "job_requests",
    "attempts",
    "submissions",
    "media",
    "events",
    "idempotency_keys",
    "log_entries",
)


@pytest.fixture
def scene(queue: Queue) -> Scene:
    """An empty queue and an empty store."""
    return Scene(queue)


async def rows(queue: Queue) -> dict[str, int]:
    """How many rows each table has."""
    return {name: (await queue.query(f"SELECT count(*) AS n FROM {name}"))[0].n for name in TABLES}  # noqa: S608  names from above


class TestExpiry:
    async def test_a_result_lives_as_long_as_configured_from_when_it_is_stored(self, scene: Scene) -> None:
        job = await scene.complete(ttl=DAY, n=2)

        lives = [row.expires_at - row.stored_at for row in await scene.queue.media(job.id)]
        assert lives == [DAY, DAY]

    async def test_without_a_configured_life_a_result_never_expires(self, scene: Scene) -> None:
        job = await scene.complete()

        assert [row.expires_at for row in await scene.queue.media(job.id)] == [None]

    async def test_an_expired_result_becomes_a_tombstone_and_its_bytes_and_variants_go(
        self, scene: Scene
    ) -> None:
        job, other = await scene.complete(ttl=DAY), await scene.complete(ttl=DAY)
        [key] = await scene.keys(job.id)
        await scene.store.hold_object(variant_key(key, VARIANTS[0]))
        await scene.queue.change("UPDATE media SET thumbhash = 'abc'")
        await scene.expire(job.id)

        assert await scene.pruner().run_once() == NOTHING | {"expired": 1}
        [row] = await scene.queue.media(job.id)
        assert (row.deleted_at is not None, row.thumbhash, row.key) == (True, None, key)
        assert await scene.store.keys() == set(await scene.keys(other.id))
        assert (await scene.queue.row(job.id)).status == Status.COMPLETED
        assert await scene.pruner().run_once() == NOTHING

    async def test_more_results_than_one_batch_are_all_done_in_one_pass(self, scene: Scene) -> None:
        jobs = [await scene.complete(ttl=DAY, n=8) for _ in range(14)]
        for job in jobs:
            await scene.expire(job.id)

        assert (await scene.pruner().prune_rows())["expired"] == 112
        assert await scene.store.keys() == set()

    async def test_what_a_store_that_is_away_keeps_is_found_as_an_orphan(self, scene: Scene) -> None:
        job = await scene.complete(ttl=DAY)
        await scene.expire(job.id)
        scene.store.keeps = True
        first = await scene.pruner().prune_rows()
        scene.store.keeps = False

        assert first["expired"] == 1
        assert await scene.store.keys() == set(await scene.keys(job.id))
        assert await scene.pruner().run_once() == NOTHING | {"orphans": 1}
        assert await scene.store.keys() == set()


class TestRetention:
    async def test_without_retention_jobs_are_kept_for_ever(self, scene: Scene) -> None:
        job = await scene.complete()
        await scene.age(job.id, days=5000)

        assert await scene.pruner().run_once() == NOTHING

    async def test_a_job_that_ended_long_ago_goes_with_all_that_belongs_to_it(
        self, scene: Scene, queue: Queue
    ) -> None:
        job = await scene.complete(n=2, idempotency=None)
        await queue.order(await queue.accept_and_claim(prompt="another"), "handle")
        before = await rows(queue)
        old = await queue.accept(idempotency=Idempotency("key", "print"), n=2)
        claimed = await queue.claim_one()
        await queue.order(claimed, "paid")
        assert await queue.finish(claimed)
        for row in await queue.media(old.id):
            await scene.store.hold_object(row.key)
        await queue.change(
            "INSERT INTO log_entries (at, level, event, process, job_id) "
            "VALUES (now(), 'info', 'x', 'x', :id)",
            id=old.id,
        )
        await scene.age(old.id)

        assert await scene.pruner(retention=DAY).run_once() == NOTHING | {"jobs": 1}
        assert await rows(queue) == before
        assert await scene.store.keys() == set(await scene.keys(job.id))

    @pytest.mark.parametrize("days", [0, 1])
    async def test_a_younger_job_stays(self, scene: Scene, days: int) -> None:
        job = await scene.complete()
        await scene.age(job.id, days=days)

        assert await scene.pruner(retention=2 * DAY).run_once() == NOTHING
        assert await scene.store.keys() == set(await scene.keys(job.id))

    async def test_a_job_that_has_not_ended_stays_however_old_it_is(self, scene: Scene, queue: Queue) -> None:
        running = await queue.accept_and_claim()
        waiting = await queue.accept()
        await queue.change(
            "UPDATE jobs SET created_at = now() - interval '9 years', started_at = now() - interval '9 years'"
        )

        assert await scene.pruner(retention=DAY).run_once() == NOTHING
        assert [(await queue.row(job.id)).status for job in (running, waiting)] == ["processing", "in_queue"]

    async def test_what_lost_attempts_stored_goes_with_their_job(self, scene: Scene, queue: Queue) -> None:
        first = await queue.accept_and_claim()
        await scene.left_by_attempt(first)
        await queue.put_back(first)
        await queue.make_due()
        second = await queue.claim_one()
        await scene.left_by_attempt(second)
        await scene.fail(second)
        await scene.age(second.id)

        assert (await scene.pruner(retention=DAY).prune_rows())["jobs"] == 1
        assert await scene.store.keys() == set()

    async def test_a_job_whose_objects_the_store_keeps_is_kept_too_and_deleted_later(
        self, scene: Scene, queue: Queue
    ) -> None:
        job = await scene.complete()
        await scene.age(job.id)
        scene.store.keeps = True
        kept = await scene.pruner(retention=DAY).prune_rows()
        still = (await queue.row(job.id)).status
        scene.store.keeps = False
        at_once = await scene.pruner(retention=DAY).prune_rows()
        await queue.change("UPDATE jobs SET available_at = clock_timestamp() - interval '1 s'")
        later = await scene.pruner(retention=DAY).prune_rows()

        assert (kept["jobs"], still, at_once["jobs"], later["jobs"]) == (0, "completed", 0, 1)
        assert await scene.store.keys() == set()

    async def test_one_object_that_the_store_refuses_to_delete_keeps_no_job_but_its_own(
        self, scene: Scene, queue: Queue
    ) -> None:
        jobs = [await scene.complete() for _ in range(9)]
        for job in jobs:
            await scene.age(job.id)
        scene.store.stuck = set(await scene.keys(jobs[4].id))

        assert (await scene.pruner(retention=DAY).prune_rows())["jobs"] == 8
        assert [row.id for row in await queue.query("SELECT id FROM jobs")] == [jobs[4].id]

    async def test_more_jobs_than_one_batch_are_all_done_in_one_pass(
        self, scene: Scene, queue: Queue
    ) -> None:
        await queue.fill(250)
        await queue.change(
            """
            WITH ended AS (
                UPDATE jobs SET status = 'canceled', reason = 'canceled', event_sequence = 2,
                    finished_at = now() - interval '9 days' RETURNING id
            )
            INSERT INTO events (job_id, sequence, kind) SELECT id, 2, 'canceled' FROM ended
            """
        )

        assert (await scene.pruner(retention=DAY).prune_rows())["jobs"] == 250

    async def test_a_job_that_somebody_works_on_is_left_for_the_next_pass(
        self, scene: Scene, queue: Queue
    ) -> None:
        job, other = await scene.complete(), await scene.complete()
        await scene.age(job.id)
        await scene.age(other.id)

        async with queue.database.begin() as connection:
            await connection.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": job.id})
            during = await scene.pruner(retention=DAY).prune_rows()
        after = await scene.pruner(retention=DAY).prune_rows()

        assert (during["jobs"], after["jobs"]) == (1, 1)


class TestLogs:
    async def test_log_entries_are_pruned_by_those_who_own_them(self, scene: Scene) -> None:
        async def prune_logs() -> int:
            return 7

        assert await scene.pruner(prune_logs=prune_logs).run_once() == NOTHING | {"log_entries": 7}


class TestCounting:
    async def test_a_dry_run_counts_and_changes_nothing(self, scene: Scene, queue: Queue) -> None:
        expired, old = await scene.complete(ttl=DAY, n=3), await scene.complete(n=2)
        await scene.expire(expired.id)
        await scene.age(old.id)
        before = await rows(queue), await scene.store.keys()

        counts: list[Any] = [
            await prunable.count_expired_media(queue.database),
            await prunable.count_outlived_jobs(queue.database, DAY),
            await prunable.count_outlived_jobs(queue.database, timedelta(days=9)),
        ]

        assert [(one.number, one.size) for one in counts] == [(3, 300), (1, 200), (0, 0)]
        assert (await rows(queue), await scene.store.keys()) == before


class TestWorker:
    async def test_a_worker_gives_results_their_time_and_prunes_by_itself(
        self, queue: Queue, redis_url: str, tmp_path: Path
    ) -> None:
        settings = load_settings(
            home=tmp_path,
            database_url=queue.database._engine.url.render_as_string(hide_password=False),
            redis_url=redis_url,
            storage_url=(tmp_path / "media").as_uri(),
            shutdown_grace=0.2,
            media_ttl="30d",
            prune_interval=0.1,
        )
        small = PARAMETERS | {"width": 64, "height": 64}
        job = await queue.accept(model="demo", parameters=small, input={"delay_seconds": 0})
        runtime = WorkerRuntime(settings)
        await asyncio.to_thread(runtime.start)
        try:
            await wait_until(lambda: is_stored(queue))
            [row] = await queue.media(job.id)
            path = tmp_path / "media" / row.key
            was_there = path.exists()
            await queue.change("UPDATE media SET expires_at = now()")
            await wait_until(lambda: not path.exists())
        finally:
            await asyncio.to_thread(runtime.stop)

        assert row.expires_at - row.stored_at == timedelta(days=30)
        assert was_there


async def is_stored(queue: Queue) -> bool:
    """Whether some result is stored."""
    return bool(await queue.query("SELECT id FROM media WHERE key IS NOT NULL"))
