"""What processes count, and what the database says of the queue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.executing import Worker, fake_model, paid_worker, second
from tests.queueing import FAKE, PARAMETERS, Queue, away, wait_until
from tests.scraping import Page, parse, scrape
from tests.statements import explain, sent_statements
from tests.workers import FLEEK, Start

from fleek import __version__
from fleek.core import job as core
from fleek.core.cursor import CursorCodec
from fleek.core.errors import ProviderError, ProviderErrorKind as Kind
from fleek.core.job import ErrorCode, Status
from fleek.core.owner import LOCAL_OWNER
from fleek.core.urls import Urls
from fleek.db.session import Database, PoolOptions
from fleek.jobs.caretakers import DeadlineWatcher, Rescuer
from fleek.jobs.changes import Idempotency
from fleek.jobs.claim import Claimer
from fleek.jobs.figures import MOST_COUNTED, QueueWatch
from fleek.jobs.lanes import Lanes
from fleek.jobs.schemas import GenerateRequest, RetryRequest
from fleek.jobs.service import JobService
from fleek.local.postgres import PostgresServer
from fleek.observability.metrics import UNDECLARED, Metrics
from fleek.observability.queue_metrics import QueueCollector
from fleek.providers.registry import Catalog
from fleek.testing import RESUMABLE, FakeProvider, RecordingPubSub, RecordingWaker, fake_picture, hold

THROTTLED = ProviderError(Kind.THROTTLED, "busy", retry_after=timedelta(seconds=60))


def counted(page: Page) -> dict[str, dict[tuple[str, ...], float]]:
    """Everything about jobs that is not 0, but for durations; labels by the order of their names."""
    names = (
        "fleek_attempts_total",
        "fleek_jobs_finished_total",
        "fleek_lane_pauses_total",
        "fleek_provider_errors_total",
        "fleek_submissions_total",
        "fleek_submissions_resolved_total",
        "fleek_storage_written_objects_total",
    )
    return {name.removeprefix("fleek_").removesuffix("_total"): page.series(name) for name in names}


def happened(worker: Worker) -> dict[str, dict[tuple[str, ...], float]]:
    """What a worker has counted at all."""
    return {name: series for name, series in counted(scrape(worker.metrics)).items() if series}


class TestAttempts:
    async def test_a_job_that_completes_counts_its_order_its_results_and_its_times(
        self, queue: Queue
    ) -> None:
        worker = paid_worker(queue)
        job = await queue.accept_and_claim(n=4)

        await worker.run(job)

        page = scrape(worker.metrics)
        written = sum(len(fake_picture(7 + index)) for index in range(4))
        assert counted(page) == {
            "attempts": {("none", "fake", "completed", "fake"): 1},
            "jobs_finished": {("fake", "completed"): 1},
            "lane_pauses": {},
            "provider_errors": {},
            "submissions": {("fake", "fake"): 2},
            "submissions_resolved": {("fake", "result"): 2},
            "storage_written_objects": {(): 4},
        }
        assert page.value("fleek_storage_written_bytes_total") == written
        assert page.value("fleek_submissions_cost_dollars_total", provider="fake", model="fake") == 0.006
        assert page.series("fleek_attempt_duration_seconds_count") == {("fake", "fake"): 1}
        assert page.series("fleek_job_duration_seconds_count") == {("fake", "completed"): 1}
        assert page.series("fleek_jobs_in_progress") == {}

    @pytest.mark.parametrize(
        ("error", "outcome", "code", "finished"),
        [
            (ProviderError(Kind.TRANSIENT, "x"), "retry_scheduled", "transient", {}),
            (THROTTLED, "deferred", "throttled", {}),
            (ProviderError(Kind.PERMANENT_POLICY, "x"), "failed", "content_refused", {("fake", "error"): 1}),
        ],
    )
    async def test_an_attempt_counts_how_it_ended_and_what_its_provider_said(
        self,
        queue: Queue,
        error: ProviderError,
        outcome: str,
        code: str,
        finished: dict[tuple[str, ...], float],
    ) -> None:
        worker = Worker(queue)
        worker.provider.on_submit(error)

        await worker.run(await queue.accept_and_claim())

        seen = counted(scrape(worker.metrics))
        assert seen["attempts"] == {(code, "fake", outcome, "fake"): 1}
        assert seen["provider_errors"] == {(str(error.kind), "fake"): 1}
        assert seen["jobs_finished"] == finished
        assert seen["lane_pauses"] == ({("fake", "fake", "throttled"): 1} if error is THROTTLED else {})

    async def test_a_pause_that_another_job_made_already_is_not_counted_again(self, queue: Queue) -> None:
        worker = Worker(queue)
        worker.provider.on_submit(
            THROTTLED, ProviderError(Kind.THROTTLED, "x", retry_after=timedelta(seconds=1))
        )
        await queue.fill(2)

        for job in await queue.claim(2):
            await worker.run(job)

        seen = counted(scrape(worker.metrics))
        assert seen["attempts"] == {("throttled", "fake", "deferred", "fake"): 2}
        assert seen["lane_pauses"] == {("fake", "fake", "throttled"): 1}

    async def test_an_order_whose_reply_was_lost_is_ambiguous(self, queue: Queue) -> None:
        worker = Worker(queue, FakeProvider(capabilities=RESUMABLE))
        worker.provider.on_submit(ProviderError(Kind.AMBIGUOUS, "no reply"))

        await worker.run(await queue.accept_and_claim())

        seen = counted(scrape(worker.metrics))
        assert seen["attempts"] == {("ambiguous_submission", "fake", "ambiguous_submission", "fake"): 1}
        assert seen["submissions"] == {("fake", "fake"): 1}
        assert seen["submissions_resolved"] == {("fake", "ambiguous"): 1}

    async def test_orders_that_were_refused_and_that_failed_are_told_apart(self, queue: Queue) -> None:
        worker = Worker(queue, FakeProvider(capabilities=RESUMABLE))
        worker.provider.on_submit(ProviderError(Kind.TRANSIENT, "busy"))
        worker.provider.on_poll(ProviderError(Kind.TRANSIENT, "it broke", ends_order=True))
        await queue.accept()

        for _ in range(3):
            await worker.claim_and_run()

        seen = counted(scrape(worker.metrics))
        assert seen["submissions"] == {("fake", "fake"): 3}
        assert seen["submissions_resolved"] == {
            ("fake", "rejected"): 1,
            ("fake", "failed"): 1,
            ("fake", "result"): 1,
        }

    async def test_a_job_in_progress_is_counted_while_it_runs(self, queue: Queue) -> None:
        worker, gate = Worker(queue), asyncio.Event()
        worker.provider.on_submit(hold(gate))
        _, running = worker.begin(await queue.accept_and_claim())
        await wait_until(lambda: worker.provider.vendor.creates)

        during = scrape(worker.metrics)
        gate.set()
        await running

        assert during.value("fleek_jobs_in_progress", model="fake") == 1
        assert scrape(worker.metrics).value("fleek_jobs_in_progress", model="fake") == 0

    async def test_a_worker_that_lost_its_job_counts_nothing_of_its_end(self, queue: Queue) -> None:
        late, gate = paid_worker(queue), asyncio.Event()
        late.provider.on_poll(hold(gate))
        job = await queue.accept_and_claim()
        _, running = late.begin(job)
        await wait_until(lambda: late.provider.vendor.polled)
        await queue.put_back(job)
        owner = second(late)
        await owner.claim_and_run()

        gate.set()
        await running

        assert happened(late) == {"submissions": {("fake", "fake"): 1}}
        seen = counted(scrape(owner.metrics))
        assert seen["jobs_finished"] == {("fake", "completed"): 1}
        assert seen["submissions_resolved"] == {("fake", "result"): 1}

    async def test_a_worker_that_lost_its_job_counts_no_error_either(self, queue: Queue) -> None:
        late, gate = Worker(queue), asyncio.Event()

        async def break_off() -> None:
            await gate.wait()
            raise ProviderError(Kind.THROTTLED, "busy")

        late.provider.on_submit(break_off)
        job = await queue.accept_and_claim()
        _, running = late.begin(job)
        await wait_until(lambda: late.provider.vendor.creates)
        await queue.put_back(job)

        gate.set()
        await running

        assert happened(late) == {}


class TestClaims:
    async def test_a_claim_counts_how_long_the_job_had_been_due(self, queue: Queue) -> None:
        metrics = Metrics([FAKE.name])
        claimer = Claimer(
            queue.database, worker="w", lease=timedelta(seconds=30), models=[FAKE], metrics=metrics
        )
        await queue.fill(2, seconds_ago=100)
        await queue.accept()

        assert len(await claimer.claim("default", 8)) == 3
        assert await claimer.claim("default", 8) == []

        page = scrape(metrics)
        labels = {"queue": "default", "model": "fake"}
        assert page.value("fleek_job_wait_seconds_count", **labels) == 3
        assert page.value("fleek_job_wait_seconds_bucket", **labels, le="60.0") == 1
        assert 200 <= page.value("fleek_job_wait_seconds_sum", **labels) < 260

    async def test_a_job_that_was_put_off_waits_from_when_it_is_due_again(self, queue: Queue) -> None:
        metrics = Metrics([FAKE.name])
        await queue.accept()
        await queue.change("UPDATE jobs SET available_at = available_at - interval '100 seconds'")

        await Claimer(
            queue.database, worker="w", lease=timedelta(seconds=30), models=[FAKE], metrics=metrics
        ).claim("default", 1)

        waited = scrape(metrics).value("fleek_job_wait_seconds_sum", queue="default", model="fake")
        assert 100 <= waited < 160

    async def test_a_retry_by_the_client_begins_the_time_that_a_job_took_anew(self, queue: Queue) -> None:
        job = await queue.accept_and_claim()
        await queue.apply(job, core.failed(ErrorCode.TRANSIENT, "no"))
        await queue.change("UPDATE jobs SET created_at = created_at - interval '1 hour'")
        await queue.retry(job.id)

        again = await queue.claim_one()

        row = await queue.row(job.id)
        assert again.asked_at == row.deadline_at - timedelta(hours=1)
        assert timedelta(0) <= again.claimed_at - again.asked_at < timedelta(minutes=1)


class TestCaretakers:
    @pytest.mark.parametrize("is_wedged", [False, True])
    async def test_a_rescue_counts_the_attempt_that_its_worker_did_not_end(
        self, queue: Queue, *, is_wedged: bool
    ) -> None:
        metrics, waker, pubsub = Metrics([FAKE.name]), RecordingWaker(), RecordingPubSub()
        rescuer = Rescuer(
            queue.database, waker, pubsub, provider_of=lambda _: "fake", confirm_after=0, metrics=metrics
        )
        job = await queue.accept_and_claim()
        late = "UPDATE attempts SET run_deadline_at = clock_timestamp() - interval '1 hour'"
        await (queue.change(late) if is_wedged else queue.expire_lease(job.id))

        await rescuer.run_once()
        await rescuer.run_once()

        page = scrape(metrics)
        assert page.series("fleek_leases_rescued_total") == {("wedged" if is_wedged else "expired",): 1}
        assert counted(page)["attempts"] == {("none", "fake", "lease_expired", "fake"): 1}
        assert page.series("fleek_attempt_duration_seconds_count") == {}

    async def test_jobs_that_their_deadline_ended_are_counted_with_their_orders(self, queue: Queue) -> None:
        metrics = Metrics([FAKE.name])
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")
        await queue.put_back(job)
        await queue.accept()
        await queue.change("UPDATE jobs SET deadline_at = clock_timestamp() - interval '25 hours'")

        await DeadlineWatcher(queue.database, RecordingPubSub(), metrics=metrics).run_once()

        seen = counted(scrape(metrics))
        assert seen["jobs_finished"] == {("fake", "error"): 2}
        assert seen["submissions_resolved"] == {("fake", "ambiguous"): 1}


class TestClients:
    async def test_what_clients_change_is_counted_once(self, queue: Queue) -> None:
        metrics = Metrics([FAKE.name])
        catalog = Catalog([fake_model(FakeProvider())], {}, default="fake")
        service = JobService(
            queue.database, catalog, RecordingWaker(), RecordingPubSub(), CursorCodec(b"x"), forget, metrics
        )
        request, urls, key = GenerateRequest(prompt="x"), Urls("http://x"), Idempotency("k", "print")

        accepted = await service.accept(LOCAL_OWNER, request, urls, idempotency=key)
        await service.accept(LOCAL_OWNER, request, urls, idempotency=key)
        for _ in range(2):
            await service.cancel(LOCAL_OWNER, accepted.job.id, urls)
        for _ in range(2):
            await service.retry(LOCAL_OWNER, accepted.job.id, RetryRequest(), urls, idempotency=key)

        page = scrape(metrics)
        assert page.series("fleek_jobs_accepted_total") == {
            ("new", "fake", "default"): 1,
            ("retry", "fake", "default"): 1,
        }
        assert counted(page)["jobs_finished"] == {("fake", "canceled"): 1}

    async def test_a_running_job_that_is_canceled_is_counted_by_its_worker_alone(self, queue: Queue) -> None:
        metrics, worker = Metrics([FAKE.name]), Worker(queue)
        catalog = Catalog([fake_model(FakeProvider())], {}, default="fake")
        service = JobService(
            queue.database, catalog, RecordingWaker(), RecordingPubSub(), CursorCodec(b"x"), forget, metrics
        )
        job = await queue.accept_and_claim()

        await service.cancel(LOCAL_OWNER, job.id, Urls("http://x"))
        await worker.run(replace(job, cancel_requested=True))

        assert counted(scrape(metrics))["jobs_finished"] == {}
        assert happened(worker) == {
            "attempts": {("none", "fake", "canceled", "fake"): 1},
            "jobs_finished": {("fake", "canceled"): 1},
        }

    async def test_a_pause_by_a_person_is_counted_without_their_words(self, queue: Queue) -> None:
        metrics = Metrics([FAKE.name])
        lanes = Lanes(queue.database, RecordingWaker(), metrics=metrics)

        await lanes.pause(fake_model(FakeProvider()), timedelta(hours=1), "new weights")

        assert counted(scrape(metrics))["lane_pauses"] == {("fake", "fake", "operator"): 1}


async def forget(_keys: Any) -> None:
    """Objects that nobody looks for."""


class Watched:
    """The page of an api that looks at this queue."""

    def __init__(self, database: Database, *, kept_seconds: float = 0) -> None:
        self.metrics = Metrics([FAKE.name])
        collector = QueueCollector(self.metrics.model_label)
        self.metrics.registry.register(collector)
        self.watch = QueueWatch(database, collector, kept_seconds=kept_seconds)

    async def page(self) -> Page:
        await self.watch.refresh()
        return scrape(self.metrics)


@pytest.fixture
def watched(queue: Queue) -> Watched:
    return Watched(queue.database)


class TestQueueFigures:
    async def test_an_empty_queue_has_no_jobs(self, watched: Watched) -> None:
        page = await watched.page()

        assert page.value("fleek_database_up") == 1
        assert page.series("fleek_queue_jobs") == {}

    async def test_jobs_are_told_by_queue_model_and_state(self, queue: Queue, watched: Watched) -> None:
        await queue.accept_and_claim()
        await queue.fill(3, seconds_ago=50)
        await queue.fill(2, seconds_ago=-100, priority=3)
        await queue.fill(4, queue="gpu", seconds_ago=20)

        page = await watched.page()

        assert page.series("fleek_queue_jobs") == {
            ("fake", "default", "due"): 3,
            ("fake", "default", "scheduled"): 2,
            ("fake", "default", "processing"): 1,
            ("fake", "gpu", "due"): 4,
        }
        ages = page.series("fleek_queue_oldest_age_seconds")
        assert 50 <= ages["fake", "default"] < 110
        assert 20 <= ages["fake", "gpu"] < 80

    @pytest.mark.parametrize(("owner", "priority"), [("anna", 10), ("local", -10), ("zoe", 0)])
    async def test_the_oldest_job_is_found_whosever_it_is_and_whatever_its_priority(
        self, queue: Queue, watched: Watched, owner: str, priority: int
    ) -> None:
        for other in ("bert", "local", "xaver"):
            for others in (-3, 0, 3):
                await queue.fill(2, owner=other, priority=others, seconds_ago=50)
        await queue.fill(1, owner=owner, priority=priority, seconds_ago=500)

        page = await watched.page()

        assert 500 <= page.value("fleek_queue_oldest_age_seconds", queue="default", model="fake") < 560

    async def test_a_backlog_is_counted_up_to_a_bound(self, queue: Queue, watched: Watched) -> None:
        await queue.fill(MOST_COUNTED // 2 + 10)
        await queue.fill(10, queue="gpu")

        page = await watched.page()

        assert page.series("fleek_queue_jobs") == {
            ("fake", "default", "due"): MOST_COUNTED // 2,
            ("fake", "gpu", "due"): 10,
        }

    async def test_pauses_overdue_leases_and_lost_orders_are_shown(
        self, queue: Queue, watched: Watched
    ) -> None:
        ambiguous = await queue.accept_and_claim()
        await queue.apply(ambiguous, core.failed(ErrorCode.AMBIGUOUS_SUBMISSION, "?"))
        overdue = await queue.accept_and_claim()
        await queue.expire_lease(overdue.id)
        throttled = await queue.accept_and_claim()
        paused = replace(core.released(), error=core.JobError(ErrorCode.THROTTLED, "x"))
        await queue.apply(throttled, replace(paused, pause_lane=timedelta(minutes=1)))
        await Lanes(queue.database, RecordingWaker()).pause(
            fake_model(FakeProvider(name="other")), None, '<new> "weights"'
        )

        page = await watched.page()

        assert page.series("fleek_lane_paused") == {
            ("fake", "fake", "throttled"): 1,
            ("fake", "other", "operator"): 1,
        }
        assert page.value("fleek_leases_overdue") == 1
        assert page.value("fleek_jobs_ambiguous") == 1

    async def test_models_that_nobody_declared_share_one_name(self, queue: Queue, watched: Watched) -> None:
        for number in range(30):
            await queue.accept(model=f"someone/model-{number}")

        page = await watched.page()

        assert page.series("fleek_queue_jobs") == {(UNDECLARED, "default", "due"): 30}
        assert set(page.series("fleek_queue_oldest_age_seconds")) == {(UNDECLARED, "default")}

    async def test_one_statement_serves_everybody_who_asks_within_seconds(self, queue: Queue) -> None:
        watched = Watched(queue.database, kept_seconds=60)

        with sent_statements() as sent:
            await asyncio.gather(*(watched.watch.refresh() for _ in range(20)))
            await watched.page()

        assert len(sent) == 1

    async def test_the_statement_reads_no_more_of_the_table_than_its_indexes_hold(
        self, queue: Queue, watched: Watched
    ) -> None:
        await queue.fill(100)
        with sent_statements() as sent:
            await watched.page()
        [statement] = sent

        plan = await explain(queue.database, statement)

        assert "Seq Scan on jobs" not in plan
        for index in ("ix_jobs_queue_due", "ix_jobs_processing"):
            assert index in plan

    async def test_a_database_that_was_not_migrated_yet_is_as_good_as_none(
        self, create_database: Callable[[str], str]
    ) -> None:
        database = Database(create_database("template0"))
        try:
            page = await Watched(database).page()
        finally:
            await database.aclose()

        assert "fleek_queue_jobs" not in page.names()
        assert page.samples["fleek_database_up", frozenset()] == 0

    async def test_without_its_database_a_process_still_shows_what_it_counted(
        self, queue_url: str, postgres: PostgresServer
    ) -> None:
        database = Database(queue_url, PoolOptions(connect_timeout=1, pool_timeout=1))
        watched = Watched(database)
        watched.metrics.job_accepted("default", FAKE.name)
        try:
            before = await watched.page()
            async with away(postgres):
                during = await watched.page()
            after = await watched.page()
        finally:
            await database.aclose()

        pages = (before, during, after)
        assert [page.samples["fleek_database_up", frozenset()] for page in pages] == [1, 0, 1]
        assert during.series("fleek_jobs_accepted_total") == {("new", "fake", "default"): 1}
        assert during.value("fleek_build_info", version=__version__) == 1
        assert "fleek_leases_overdue" not in during.names()


class TestProcesses:
    async def test_a_worker_shows_on_its_own_port_what_it_counted(self, queue: Queue, start: Start) -> None:
        worker = await start(FLEEK, worker_port="0", slots="3").started()
        job = await queue.accept(model="demo", parameters=PARAMETERS | {"width": 64, "height": 64})
        await wait_until(lambda: is_completed(queue, job.id))

        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{probe_port(worker.log)}/metrics")

        page = parse(answer.text)
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert counted(page)["jobs_finished"] == {("demo", "completed"): 1}
        assert page.value("fleek_worker_slots") == 3
        assert page.value("process_resident_memory_bytes") > 10_000_000
        assert "fleek_database_up" not in page.names()

    async def test_a_worker_counts_what_it_deletes_for_its_age(self, queue: Queue, start: Start) -> None:
        worker = await start(FLEEK, worker_port="0", prune_interval="0.1", job_retention="1d").started()
        job = await queue.accept()
        await queue.cancel(job.id)
        await queue.change("UPDATE jobs SET finished_at = now() - interval '2 days'")

        async with httpx2.AsyncClient() as client:
            url = f"http://127.0.0.1:{probe_port(worker.log)}/metrics"

            async def has_pruned() -> bool:
                page = parse((await client.get(url)).text)
                return page.series("fleek_pruned_total") == {("jobs",): 1}

            await wait_until(has_pruned)

    async def test_a_worker_that_is_to_show_nothing_does_not(self, start: Start) -> None:
        worker = await start(FLEEK, worker_port="0", metrics="false").started()

        async with httpx2.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{probe_port(worker.log)}/metrics")

        assert answer.status_code == httpx2.codes.NOT_FOUND


async def is_completed(queue: Queue, job_id: UUID) -> bool:
    return (await queue.row(job_id)).status == Status.COMPLETED


def probe_port(log: Path) -> int:
    """Where a worker says that it answers."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    [said] = [line for line in lines if line["event"] == "worker_answers_probes"]
    return int(said["port"])
