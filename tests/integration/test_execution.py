"""One attempt, from its claim to its end: results, errors, storing, progress."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.executing import MAX_BYTES, Worker
from tests.queueing import FAKE, PARAMETERS, Queue, ServedModel, wait_until

from fleek.core.errors import OutputInvalid, ProviderError, ProviderErrorKind as Kind
from fleek.core.job import ErrorCode, Status
from fleek.core.media import MAX_SEED
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.keeper import Stop
from fleek.providers.base import BytesOutput, Done, Pending, StreamOutput
from fleek.queue.base import Announcement
from fleek.testing import RESUMABLE, FakeProvider, fake_picture, hold


@pytest.fixture
def worker(queue: Queue) -> Worker:
    """A worker over a provider that answers at once."""
    return Worker(queue)


@pytest.fixture
def remote(queue: Queue) -> Worker:
    """A worker over a provider whose orders are paid for and resumed."""
    return Worker(queue, FakeProvider(capabilities=RESUMABLE))


async def quick_claim(queue: Queue, seconds: float) -> ClaimedJob:
    """A new job whose attempt may take only so long."""
    await queue.accept()
    model = ServedModel(FAKE.name, FAKE.provider, timedelta(seconds=seconds))
    [job] = await queue.claimer(model).claim("default", 1)
    return job


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


class TestResults:
    async def test_outputs_are_stored_before_the_job_is_completed(self, queue: Queue, worker: Worker) -> None:
        job = await queue.accept_and_claim(n=3, parameters=PARAMETERS | {"seed": MAX_SEED - 1})

        row = await worker.run(job)

        media = await queue.media(job.id)
        assert (row.status, row.n) == (Status.COMPLETED, 3)
        assert [one.seed for one in media] == [MAX_SEED - 1, MAX_SEED, 0]
        for one in media:
            content = await worker.storage.read(one.key)
            assert content == fake_picture(one.seed)
            assert one.key == f"media/{job.id}/{one.id}/{job.fence}.png"
            assert one.sha256 == hashlib.sha256(content).hexdigest()
            assert (one.size_bytes, one.content_type) == (len(content), "image/png")
            assert (one.width, one.height) == (8, 8)
            assert one.thumbhash

    async def test_the_attempt_says_how_long_it_took_and_waiters_are_told(
        self, queue: Queue, worker: Worker
    ) -> None:
        job = await queue.accept_and_claim()

        await worker.run(job)

        [attempt] = await queue.attempts(job.id)
        assert attempt.metrics["fake"] is True
        assert 0 <= attempt.metrics["seconds"] < 5
        assert worker.pubsub.announced == [Announcement(job.id)]
        assert worker.due == []
        assert worker.keeper.find(job.id) is None

    async def test_the_order_says_what_was_asked_for(self, queue: Queue, worker: Worker) -> None:
        parameters = {
            "width": 64,
            "height": 128,
            "seed": 7,
            "negative_prompt": "fog",
            "output_format": "webp",
        }
        job = await queue.accept_and_claim(n=2, parameters=parameters, input={"steps": 4}, prompt="a ship")

        await worker.run(job)

        [order] = worker.provider.vendor.creates
        assert (order.model, order.ref, order.prompt, order.input) == (
            "fake", "vendor/fake", "a ship", {"steps": 4}
        )  # fmt: skip
        assert (order.width, order.height, order.negative_prompt, str(order.output_format)) == (
            64, 128, "fog", "webp"
        )  # fmt: skip
        assert (order.seed, order.first_index, order.count) == (7, 0, 2)

    async def test_a_side_that_was_not_asked_for_is_the_default(self, queue: Queue, worker: Worker) -> None:
        await worker.run(await queue.accept_and_claim())

        [order] = worker.provider.vendor.creates
        assert (order.width, order.height) == (1024, 1024)

    @pytest.mark.parametrize("given", [1, 2, 4])
    async def test_a_provider_may_give_fewer_or_more_than_asked(
        self, queue: Queue, worker: Worker, given: int
    ) -> None:
        worker.provider.on_submit(Done(tuple(BytesOutput(fake_picture(seed)) for seed in range(given))))
        job = await queue.accept_and_claim(n=2)

        row = await worker.run(job)

        media = await queue.media(job.id)
        assert (row.status, row.n, len(media)) == (Status.COMPLETED, given, given)
        assert [one.id for one in media][:2] == list(job.media_ids[:given])
        assert all([await worker.storage.read(one.key) for one in media])

    async def test_a_provider_that_gives_nothing_has_failed(self, queue: Queue, worker: Worker) -> None:
        worker.provider.on_submit(Done(()))

        row = await worker.run(await queue.accept_and_claim())

        assert (row.status, row.reason, row.failures) == ("in_queue", "retry_scheduled", 1)
        assert row.error_code == ErrorCode.PROVIDER_BUG

    async def test_a_stream_is_stored_as_bytes_are(self, queue: Queue, worker: Worker) -> None:
        picture = fake_picture(3)
        worker.provider.on_submit(Done((StreamOutput(stream(picture[:10], picture[10:])),)))
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        [media] = await queue.media(job.id)
        assert row.status == Status.COMPLETED
        assert await worker.storage.read(media.key) == picture

    async def test_the_second_attempt_of_a_job_writes_other_objects(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_submit(
            Done((BytesOutput(fake_picture(1)), BytesOutput(b"no media"))),
            Done((BytesOutput(fake_picture(1)),)),
        )
        job = await queue.accept_and_claim()
        await worker.run(job)
        await worker.claim_and_run()

        assert len(set(worker.storage.puts)) == len(worker.storage.puts) == 2


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "status", "code", "failures", "deferrals"),
        [
            (ProviderError(Kind.TRANSIENT, "x"), "in_queue", ErrorCode.TRANSIENT, 1, 0),
            (ProviderError(Kind.THROTTLED, "x"), "in_queue", ErrorCode.THROTTLED, 0, 1),
            (ProviderError(Kind.PERMANENT_POLICY, "x"), "error", ErrorCode.CONTENT_REFUSED, 0, 0),
            (ProviderError(Kind.PERMANENT_INPUT, "x"), "error", ErrorCode.PROVIDER_REJECTED_INPUT, 0, 0),
            (OutputInvalid("x"), "in_queue", ErrorCode.OUTPUT_INVALID, 1, 0),
            (RuntimeError("a bug"), "in_queue", ErrorCode.INTERNAL_ERROR, 1, 0),
        ],
    )
    async def test_every_error_becomes_one_decision(
        self,
        queue: Queue,
        worker: Worker,
        error: Exception,
        status: str,
        code: ErrorCode,
        failures: int,
        deferrals: int,
    ) -> None:
        worker.provider.on_submit(error)
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        assert (row.status, row.error_code) == (status, code)
        assert (row.failures, row.deferrals, row.crashes) == (failures, deferrals, 0)
        assert worker.pubsub.announced == [Announcement(job.id)]
        assert len(worker.due) == (status == "in_queue")

    async def test_failures_end_at_the_budget(self, queue: Queue, worker: Worker) -> None:
        worker.provider.on_submit(*[ProviderError(Kind.TRANSIENT, "busy")] * 3)
        await queue.accept(max_attempts=3)

        rows = [await worker.claim_and_run() for _ in range(3)]

        assert [(row.status, row.failures) for row in rows] == [
            ("in_queue", 1),
            ("in_queue", 2),
            ("error", 3),
        ]
        assert rows[-1].error_code == ErrorCode.ATTEMPTS_EXHAUSTED
        assert len(worker.provider.vendor.creates) == 3

    async def test_deferrals_are_never_counted(self, queue: Queue, worker: Worker) -> None:
        worker.provider.on_submit(*[ProviderError(Kind.THROTTLED, "busy")] * 6)
        await queue.accept(max_attempts=1)
        for deferrals in range(1, 7):
            await queue.change("DELETE FROM lane_state")
            row = await worker.claim_and_run()
            assert (row.status, row.failures, row.deferrals) == ("in_queue", 0, deferrals)

        await queue.change("DELETE FROM lane_state")
        assert (await worker.claim_and_run()).status == Status.COMPLETED

    async def test_a_throttled_job_pauses_its_lane(self, queue: Queue, worker: Worker) -> None:
        error = ProviderError(Kind.THROTTLED, "busy", retry_after=timedelta(seconds=30))
        worker.provider.on_submit(error)
        await queue.accept()

        row = await worker.run(await queue.claim_one())

        assert row.available_at - row.started_at > timedelta(seconds=29)
        await queue.accept()
        assert await queue.claim(8) == []

    async def test_the_dispatcher_is_told_when_the_job_will_be_due(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_submit(ProviderError(Kind.TRANSIENT, "busy"))

        await worker.run(await queue.accept_and_claim())

        assert timedelta(seconds=0.5) <= worker.due[0] <= timedelta(seconds=1)

    async def test_an_output_that_is_too_large_ends_the_job(self, queue: Queue, worker: Worker) -> None:
        worker.provider.on_submit(Done((BytesOutput(fake_picture(1) + bytes(MAX_BYTES)),)))

        row = await worker.run(await queue.accept_and_claim())

        assert (row.status, row.error_code) == (Status.ERROR, ErrorCode.OUTPUT_TOO_LARGE)
        assert worker.storage.puts == []

    @pytest.mark.parametrize("content", [b"", b"<!doctype html>", fake_picture(1)[:40]])
    async def test_an_output_that_is_no_media_is_a_counted_failure(
        self, queue: Queue, worker: Worker, content: bytes
    ) -> None:
        worker.provider.on_submit(Done((BytesOutput(content),)))

        row = await worker.run(await queue.accept_and_claim())

        assert (row.status, row.error_code, row.failures) == ("in_queue", ErrorCode.OUTPUT_INVALID, 1)
        assert worker.storage.puts == []

    async def test_an_attempt_that_takes_too_long_is_a_counted_failure(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_submit(hold(asyncio.Event()))

        row = await worker.run(await quick_claim(queue, 0.2))

        assert (row.status, row.error_code, row.failures) == ("in_queue", ErrorCode.TIMEOUT, 1)

    async def test_words_of_an_unexpected_error_are_not_shown(self, queue: Queue, worker: Worker) -> None:
        worker.provider.on_submit(RuntimeError("password=hunter2"))

        row = await worker.run(await queue.accept_and_claim())

        assert "hunter2" not in row.error_message

    async def test_no_order_is_placed_after_the_clients_deadline(self, queue: Queue, worker: Worker) -> None:
        job = await queue.accept()
        await queue.pass_deadline(job.id)

        row = await worker.run(await queue.claim_one())

        assert (row.status, row.reason) == ("error", "deadline_passed")
        assert worker.provider.vendor.creates == []

    async def test_a_result_that_comes_after_the_clients_deadline_is_stored(
        self, queue: Queue, worker: Worker
    ) -> None:
        job = await queue.accept_and_claim()
        gate = asyncio.Event()
        worker.provider.on_submit(hold(gate))
        _, running = worker.begin(job)
        await wait_until(lambda: worker.provider.vendor.creates)
        await queue.pass_deadline(job.id)
        gate.set()
        await running

        assert (await queue.row(job.id)).status == Status.COMPLETED


class TestStorageDown:
    async def test_bytes_that_only_this_process_has_are_offered_again(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.storage.down = True
        job = await queue.accept_and_claim()
        _, running = worker.begin(job)
        await wait_until(lambda: len(worker.storage.puts) >= 2)
        worker.storage.down = False
        await running

        row = await queue.row(job.id)
        assert (row.status, row.failures, row.deferrals) == (Status.COMPLETED, 0, 0)
        assert len(worker.provider.vendor.creates) == 1

    async def test_they_are_offered_until_the_attempts_end(self, queue: Queue, worker: Worker) -> None:
        worker.storage.down = True

        row = await worker.run(await quick_claim(queue, 0.5))

        assert (row.status, row.error_code, row.failures) == ("in_queue", ErrorCode.TIMEOUT, 1)

    async def test_what_an_open_order_still_has_is_fetched_again_and_not_generated_again(
        self, queue: Queue, remote: Worker
    ) -> None:
        remote.storage.down = True
        row = await remote.run(await queue.accept_and_claim(max_attempts=1))

        assert (row.status, row.reason, row.error_code) == ("in_queue", "deferred", "storage_unavailable")
        assert (row.failures, row.deferrals, row.resuming) == (0, 1, True)

        remote.storage.down = False
        row = await remote.claim_and_run()
        vendor = remote.provider.vendor
        assert row.status == Status.COMPLETED
        assert (len(vendor.creates), len(vendor.polled)) == (1, 2)

    async def test_a_stream_that_was_half_read_is_not_offered_again(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.storage.down = True
        worker.provider.on_submit(Done((StreamOutput(stream(fake_picture(1))),)))

        row = await worker.run(await queue.accept_and_claim())

        assert (row.status, row.error_code, row.failures) == ("in_queue", "storage_unavailable", 0)


class TestProgress:
    async def test_progress_is_announced_now_and_then_and_never_goes_back(
        self, queue: Queue, worker: Worker
    ) -> None:
        execution = worker.execution(await queue.accept_and_claim())
        for fraction in (0.2, 0.1, float("nan"), float("inf"), -1.0, 0.5):
            execution._report_progress(fraction)
            await asyncio.sleep(0.11)

        announced = [one.progress for one in worker.pubsub.announced]
        assert announced == [0.2, 0.2, 0.2, 0.5]
        assert execution.progress == 0.5

    async def test_a_burst_of_progress_is_one_announcement(self, queue: Queue, worker: Worker) -> None:
        execution = worker.execution(await queue.accept_and_claim())
        for step in range(1000):
            execution._report_progress(step / 1000)

        assert len(worker.pubsub.announced) <= 2
        assert execution.progress == 0.999

    async def test_more_than_all_is_all(self, queue: Queue, worker: Worker) -> None:
        execution = worker.execution(await queue.accept_and_claim())

        execution._report_progress(7.0)

        assert execution.progress == 1.0

    async def test_what_a_poll_tells_is_written_with_the_next_renewal(
        self, queue: Queue, remote: Worker
    ) -> None:
        remote.provider.on_poll(Pending(0.5, timedelta(0)), hold(asyncio.Event()))
        job = await queue.accept_and_claim()
        execution, running = remote.begin(job)
        await wait_until(lambda: len(remote.provider.vendor.polled) == 2)

        await remote.keeper.run_once()
        execution.stop(Stop.LOST)
        await running

        assert (await queue.row(job.id)).progress == 0.5
