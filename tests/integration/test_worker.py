"""Real worker processes: they run jobs, whatever happens to the broker and to themselves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.middle import middle_of
from tests.queueing import PARAMETERS, Queue, away, wait_until
from tests.workers import CELERY, FLEEK, START, Start

from fleek.bootstrap.parts import open_waker
from fleek.core.errors import ConfigurationError
from fleek.core.events import EventKind
from fleek.core.ids import new_id
from fleek.db.migrate import upgrade
from fleek.db.session import Database
from fleek.jobs.changes import NewJob
from fleek.local.valkey import ValkeyServer
from fleek.observability.metrics import Metrics
from fleek.queue.base import Announcement
from fleek.queue.celery_app import CeleryWaker, create_celery_app
from fleek.queue.pubsub import RedisPubSub
from fleek.settings import load_settings
from fleek.tasks.runtime import WorkerRuntime

QUICK_RESCUE = {"lease": 0.6, "renew_interval": 0.2, "rescue_interval": 0.2, "rescue_confirm_after": 1.3}
AWAY = "unix:///no/such/folder/valkey.sock"


@pytest.fixture
def settings(queue_url: str, redis_url: str, tmp_path: Path) -> dict[str, Any]:
    """Settings of a worker in this process."""
    return {
        "home": tmp_path,
        "database_url": queue_url,
        "redis_url": redis_url,
        "storage_url": (tmp_path / "media").as_uri(),
        "shutdown_grace": 0.2,
    }


@asynccontextmanager
async def running(settings: dict[str, Any]) -> AsyncIterator[WorkerRuntime]:
    """The loop of a worker, in a thread of this process."""
    runtime = WorkerRuntime(load_settings(**settings))
    await asyncio.to_thread(runtime.start)
    try:
        yield runtime
    finally:
        await asyncio.to_thread(runtime.stop)


async def accept(queue: Queue, delay: float = 0) -> NewJob:
    """A job for the demo model, which takes so many seconds."""
    small = PARAMETERS | {"width": 64, "height": 64}
    return await queue.accept(model="demo", parameters=small, input={"delay_seconds": delay})


async def is_in(queue: Queue, job: NewJob, status: str) -> bool:
    return bool((await queue.row(job.id)).status == status)


async def reaches(queue: Queue, job: NewJob, status: str, within: float = 30) -> None:
    await wait_until(lambda: is_in(queue, job, status), within)


async def test_a_worker_runs_jobs_at_once_when_it_is_woken_and_ends_when_it_is_told(
    queue: Queue, start: Start, redis_url: str
) -> None:
    there_before = await accept(queue)
    worker = await start(claim_interval="3600").started()
    await reaches(queue, there_before, "completed")
    await asyncio.sleep(0.1)
    app = create_celery_app(redis_url)
    waker = CeleryWaker(app)
    jobs = [await accept(queue) for _ in range(5)]
    waker.wake("default")

    for job in jobs:
        await reaches(queue, job, "completed")
    worker.send(signal.SIGTERM)
    waker.close()
    app.close()

    attempts = [(await queue.attempts(job.id))[0] for job in jobs]
    assert any(attempt.celery_task_id for attempt in attempts)
    assert len({attempt.worker for attempt in attempts}) == 1
    assert await worker.ended() == 0
    assert "Traceback" not in worker.log.read_text()


async def test_a_worker_that_is_told_to_stop_gives_its_jobs_back_and_counts_nothing(
    queue: Queue, start: Start
) -> None:
    worker = await start(CELERY, shutdown_grace="0.5").started()
    slow, quick = await accept(queue, delay=300), await accept(queue, delay=300)
    await reaches(queue, slow, "processing")
    await reaches(queue, quick, "processing")

    worker.send(signal.SIGTERM)
    code = await worker.ended()

    rows = [await queue.row(job.id) for job in (slow, quick)]
    assert code == 0
    assert {(row.status, row.reason) for row in rows} == {("in_queue", "interrupted")}
    assert {(row.failures, row.deferrals, row.crashes) for row in rows} == {(0, 0, 0)}
    assert "Traceback" not in worker.log.read_text()


@pytest.mark.parametrize("command", [FLEEK, CELERY], ids=["fleek", "celery"])
async def test_a_worker_that_is_told_to_quit_gives_its_jobs_back_at_once(
    queue: Queue, start: Start, command: tuple[str, ...]
) -> None:
    worker = await start(command, shutdown_grace="3600").started()
    job = await accept(queue, delay=300)
    await reaches(queue, job, "processing")

    worker.send(signal.SIGQUIT)
    await worker.ended()

    row = await queue.row(job.id)
    assert (row.status, row.reason) == ("in_queue", "interrupted")


async def test_the_jobs_of_a_worker_that_was_killed_are_run_by_another(
    queue: Queue, start: Start, settings: dict[str, Any]
) -> None:
    worker = start(lease="2", renew_interval="0.5")
    job = await accept(queue, delay=1)
    await reaches(queue, job, "processing", within=START)
    worker.send(signal.SIGKILL)
    async with running(settings | QUICK_RESCUE):
        await reaches(queue, job, "completed")

    row = await queue.row(job.id)
    assert (row.crashes, row.failures, row.fence) == (1, 0, 2)
    assert (await queue.history(job.id)).count(EventKind.COMPLETED) == 1
    assert [one.outcome for one in await queue.attempts(job.id)] == ["lease_expired", "completed"]


async def test_without_a_broker_jobs_run_within_a_few_seconds_and_the_worker_ends_in_order(
    queue: Queue, start: Start
) -> None:
    worker = await start(CELERY, redis_url=AWAY, shutdown_grace="1").started()
    job = await accept(queue)

    await reaches(queue, job, "completed", within=4)
    worker.send(signal.SIGTERM)

    assert await worker.ended() == 0


async def test_a_broker_that_is_killed_stops_nothing_and_is_used_again_when_it_is_back(
    queue: Queue, start: Start, redis_url: str, valkey: ValkeyServer
) -> None:
    await start().started()
    async with away(valkey):
        job = await accept(queue)
        await reaches(queue, job, "completed", within=5)
    app = create_celery_app(redis_url)
    waker = CeleryWaker(app)

    async def woken() -> bool:
        job = await accept(queue)
        waker.wake("default")
        await reaches(queue, job, "completed")
        return (await queue.attempts(job.id))[0].celery_task_id is not None

    await wait_until(woken, within=20)
    waker.close()
    app.close()


async def test_a_worker_with_a_wrong_setting_says_so_and_ends(start: Start) -> None:
    worker = start(storage_url="ftp://example.com")

    assert await worker.ended() == 2
    assert "FLEEK_STORAGE_URL: must look like" in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()


async def test_a_waker_whose_broker_says_nothing_does_not_hold_the_loop_at_the_end(
    valkey: ValkeyServer,
) -> None:
    loop = asyncio.get_running_loop()
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            gaps.append(loop.time() - before)

    async with middle_of(valkey.socket) as (middle, port), AsyncExitStack() as stack:
        waker = open_waker(stack, create_celery_app(f"redis://127.0.0.1:{port}"), Metrics())
        waker.wake("default")
        await asyncio.sleep(0.3)
        middle.fall_silent()
        waker.wake("default")
        await asyncio.sleep(0.05)
        ticking = asyncio.create_task(tick())
        await stack.aclose()
        ticking.cancel()

    assert max(gaps) < 0.5


class TestRuntime:
    """The loop of a worker process, without Celery around it."""

    async def test_a_job_that_runs_longer_than_its_lease_keeps_it(
        self, queue: Queue, settings: dict[str, Any]
    ) -> None:
        async with running(settings | QUICK_RESCUE):
            job = await accept(queue, delay=3)
            await reaches(queue, job, "completed")

        row = await queue.row(job.id)
        assert (row.fence, row.crashes) == (1, 0)

    async def test_a_client_that_cancels_stops_a_running_job_at_once(
        self, queue: Queue, settings: dict[str, Any]
    ) -> None:
        async with running(settings):
            job = await accept(queue, delay=300)
            await reaches(queue, job, "processing")
            pubsub = RedisPubSub(settings["redis_url"])
            await pubsub.start()
            await queue.cancel(job.id)
            pubsub.announce(Announcement(new_id(), cancel=True))
            pubsub.announce(Announcement(job.id))
            pubsub.announce(Announcement(job.id, cancel=True))

            await reaches(queue, job, "canceled", within=2)
            await pubsub.aclose()

    async def test_without_a_hint_a_cancel_is_noticed_with_the_next_renewal(
        self, queue: Queue, settings: dict[str, Any]
    ) -> None:
        async with running(settings | {"redis_url": AWAY, "lease": 2, "renew_interval": 0.5}):
            job = await accept(queue, delay=300)
            await reaches(queue, job, "processing")
            await queue.cancel(job.id)

            await reaches(queue, job, "canceled", within=3)

    async def test_it_starts_rings_and_stops(self, queue: Queue, settings: dict[str, Any]) -> None:
        runtime = WorkerRuntime(load_settings(**settings, claim_interval=3600))
        there_before = await accept(queue)
        await asyncio.to_thread(runtime.start)
        await reaches(queue, there_before, "completed")
        await asyncio.sleep(0.1)
        job = await accept(queue)
        runtime.ring("default", "task-1")
        await reaches(queue, job, "completed")
        slow = await accept(queue, delay=300)
        runtime.ring("default", "task-2")
        await reaches(queue, slow, "processing")
        runtime.begin_stop()
        await asyncio.to_thread(runtime.stop)

        assert (await queue.row(slow.id)).reason == "interrupted"
        assert (await queue.attempts(job.id))[0].celery_task_id == "task-1"

    async def test_ringing_and_stopping_before_the_start_and_after_the_end_do_no_harm(
        self, queue: Queue, settings: dict[str, Any]
    ) -> None:
        runtime = WorkerRuntime(load_settings(**settings))
        for act in (runtime.begin_stop, runtime.stop):
            act()
        runtime.ring("default", None)
        await asyncio.to_thread(runtime.start)
        await asyncio.to_thread(runtime.stop)
        for act in (runtime.begin_stop, runtime.stop):
            act()
        runtime.ring("default", None)

        assert await queue.query("SELECT id FROM jobs") == []

    async def test_a_start_that_fails_raises_what_was_wrong(self, settings: dict[str, Any]) -> None:
        runtime = WorkerRuntime(load_settings(**settings | {"storage_url": "ftp://example.com"}))

        with pytest.raises(ConfigurationError, match="FLEEK_STORAGE_URL"):
            await asyncio.to_thread(runtime.start)

    async def test_a_database_that_is_away_does_not_keep_it_from_starting(
        self, settings: dict[str, Any]
    ) -> None:
        url = "postgresql+asyncpg://fleek@/fleek?host=/no/such/folder"
        runtime = WorkerRuntime(load_settings(**settings | {"database_url": url}, rescue_interval=0.05))

        await asyncio.to_thread(runtime.start)
        await asyncio.sleep(0.3)

        assert runtime._thread is not None
        assert runtime._thread.is_alive()
        await asyncio.to_thread(runtime.stop)
        assert not runtime._thread.is_alive()

    async def test_one_that_waits_for_the_schema_works_as_soon_as_it_is_there(
        self, settings: dict[str, Any], create_database: Callable[[str], str]
    ) -> None:
        url = create_database("template0")
        async with running(settings | {"database_url": url, "rescue_interval": 1, "wait_for_schema": True}):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(upgrade, url)
            queue = Queue(Database(url))
            job = await accept(queue)
            await reaches(queue, job, "completed")
            await queue.database.aclose()
