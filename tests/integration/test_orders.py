"""Orders: the intent before the create, the handle after it, and never a second create by silence."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from tests.executing import PAID_AT_ONCE, Worker, paid_worker, resolutions, second
from tests.queueing import PARAMETERS, Queue, wait_until

from fleek.core.errors import ProviderError, ProviderErrorKind as Kind
from fleek.core.events import EventKind
from fleek.core.job import ErrorCode, Status
from fleek.core.media import MAX_SEED
from fleek.jobs.keeper import Stop
from fleek.providers.base import Accepted, Capabilities, Handle
from fleek.testing import RESUMABLE, FakeProvider, FakeVendor, fake_picture, hold


@pytest.fixture
def worker(queue: Queue) -> Worker:
    """A worker over a backend that takes three outputs an order, for money."""
    return paid_worker(queue)


class TestPlacing:
    async def test_the_intent_is_committed_before_and_the_handle_after_the_create(
        self, queue: Queue, worker: Worker
    ) -> None:
        gate = asyncio.Event()
        worker.provider.on_submit(hold(gate))
        worker.provider.on_poll(hold(asyncio.Event()))
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await wait_until(lambda: worker.provider.vendor.creates)
        [intent] = await queue.orders(job.id)
        gate.set()
        await wait_until(lambda: worker.provider.vendor.polled)
        [order] = await queue.orders(job.id)
        execution.stop(Stop.LOST)
        await running

        assert (intent.handle_id, intent.accepted_at) == (None, None)
        assert [order.handle_id] == worker.provider.vendor.polled
        assert await queue.history(job.id) == [EventKind.ACCEPTED, EventKind.CLAIMED, EventKind.SUBMITTED]

    async def test_more_outputs_than_a_backend_takes_are_several_orders_in_order(
        self, queue: Queue, worker: Worker
    ) -> None:
        job = await queue.accept_and_claim(n=8, parameters=PARAMETERS | {"seed": MAX_SEED - 3})

        row = await worker.run(job)

        orders = await queue.orders(job.id)
        media = await queue.media(job.id)
        seeds = [*range(MAX_SEED - 3, MAX_SEED + 1), *range(4)]
        assert row.status == Status.COMPLETED
        assert [(one.first_index, one.count) for one in orders] == [(0, 3), (3, 3), (6, 2)]
        assert [one.seed for one in orders] == [MAX_SEED - 3, MAX_SEED, 2]
        assert [one.resolution for one in orders] == ["result"] * 3
        assert [one.cost for one in orders] == [Decimal("0.003")] * 3
        assert [await worker.storage.read(one.key) for one in media] == [fake_picture(seed) for seed in seeds]
        [attempt] = await queue.attempts(job.id)
        assert attempt.metrics["orders"] == [{"fake": True}] * 3

    async def test_a_backend_that_costs_and_keeps_nothing_needs_no_order(self, queue: Queue) -> None:
        worker = Worker(queue, FakeProvider(capabilities=Capabilities(seed=True, max_outputs=3)))
        job = await queue.accept_and_claim(n=4)

        assert (await worker.run(job)).status == Status.COMPLETED
        assert await queue.orders(job.id) == []
        assert [one.count for one in worker.provider.vendor.creates] == [3, 1]

    async def test_a_paid_backend_that_answers_at_once_has_an_order(self, queue: Queue) -> None:
        vendor = FakeVendor(price=Decimal("0.04"))
        worker = Worker(queue, FakeProvider(vendor, capabilities=PAID_AT_ONCE))
        job = await queue.accept_and_claim()

        assert (await worker.run(job)).status == Status.COMPLETED
        [order] = await queue.orders(job.id)
        assert (order.handle_id, order.resolution, order.cost) == (None, "result", Decimal("0.04"))

    async def test_a_backend_that_is_not_resumable_may_not_answer_with_a_handle(self, queue: Queue) -> None:
        worker = Worker(queue)
        worker.provider.on_submit(Accepted(Handle("h-1")))

        row = await worker.run(await queue.accept_and_claim())

        assert (row.status, row.error_code) == ("in_queue", ErrorCode.PROVIDER_BUG)

    @pytest.mark.parametrize(
        ("kind", "status"),
        [
            (Kind.TRANSIENT, "in_queue"),
            (Kind.THROTTLED, "in_queue"),
            (Kind.PERMANENT_INPUT, "error"),
            (Kind.PERMANENT_POLICY, "error"),
        ],
    )
    async def test_a_create_that_did_not_happen_is_rejected(
        self, queue: Queue, worker: Worker, kind: Kind, status: str
    ) -> None:
        worker.provider.on_submit(ProviderError(kind, "no"))
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        assert (row.status, row.resuming) == (status, False)
        assert await resolutions(queue, job.id) == ["rejected"]

    async def test_after_a_rejected_order_a_new_one_follows_the_retry_rules(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_submit(ProviderError(Kind.TRANSIENT, "busy"))
        job = await queue.accept_and_claim()
        await worker.run(job)

        row = await worker.claim_and_run()

        assert (row.status, row.failures) == (Status.COMPLETED, 1)
        assert await resolutions(queue, job.id) == ["rejected", "result"]


class TestAmbiguous:
    async def test_a_create_whose_reply_was_lost_ends_the_job_and_is_not_repeated(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_submit(ProviderError(Kind.AMBIGUOUS, "the reply was lost"))
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        assert (row.status, row.reason, row.error_code) == (
            "error", "ambiguous_submission", "ambiguous_submission"
        )  # fmt: skip
        assert await resolutions(queue, job.id) == ["ambiguous"]
        assert len(worker.provider.vendor.creates) == 1

    async def test_an_unexpected_error_of_a_create_is_ambiguous_too(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_submit(ConnectionResetError("in the middle"))
        job = await queue.accept_and_claim()
        first = await worker.run(job)

        second_row = await worker.claim_and_run()

        assert (first.status, first.resuming) == ("in_queue", True)
        assert (second_row.status, second_row.reason) == ("error", "ambiguous_submission")
        assert len(worker.provider.vendor.creates) == 1

    @pytest.mark.parametrize("capabilities", [RESUMABLE, PAID_AT_ONCE])
    async def test_a_worker_that_died_between_intent_and_handle_leaves_an_ambiguous_order(
        self, queue: Queue, capabilities: Capabilities
    ) -> None:
        worker = Worker(queue, FakeProvider(capabilities=capabilities))
        job = await queue.accept_and_claim()
        await queue.order(job)
        await queue.put_back(job)

        row = await worker.claim_and_run()

        assert (row.status, row.reason, row.crashes) == ("error", "ambiguous_submission", 0)
        assert worker.provider.vendor.creates == []
        assert await resolutions(queue, job.id) == ["ambiguous"]

    async def test_a_retry_after_an_ambiguous_order_places_a_new_one(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_submit(ProviderError(Kind.AMBIGUOUS, "lost"))
        job = await queue.accept_and_claim()
        await worker.run(job)
        await queue.retry(job.id)

        assert (await worker.claim_and_run()).status == Status.COMPLETED
        assert await resolutions(queue, job.id) == ["ambiguous", "result"]


class TestInterruptedCreate:
    @pytest.mark.parametrize("why", [Stop.RELEASE, Stop.CANCEL, Stop.LOST])
    async def test_a_create_that_began_ends_with_its_handle_recorded(
        self, queue: Queue, worker: Worker, why: Stop
    ) -> None:
        gate = asyncio.Event()
        worker.provider.on_submit(hold(gate))
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await wait_until(lambda: worker.provider.vendor.creates)

        execution.stop(why)
        await asyncio.sleep(0.05)
        assert not running.done()
        gate.set()
        await running

        [order] = await queue.orders(job.id)
        [handle_id] = worker.provider.vendor.orders
        assert order.handle_id == handle_id
        assert worker.provider.vendor.canceled == ([handle_id] if why is Stop.CANCEL else [])
        assert (await queue.row(job.id)).status == {
            Stop.RELEASE: "in_queue", Stop.CANCEL: "canceled", Stop.LOST: "processing"
        }[why]  # fmt: skip

    async def test_the_next_worker_polls_what_the_released_one_ordered(
        self, queue: Queue, worker: Worker
    ) -> None:
        gate = asyncio.Event()
        worker.provider.on_submit(hold(gate))
        execution, running = worker.begin(await queue.accept_and_claim())
        await wait_until(lambda: worker.provider.vendor.creates)
        execution.stop(Stop.RELEASE)
        gate.set()
        await running

        row = await second(worker).claim_and_run()

        assert row.status == Status.COMPLETED
        assert len(worker.provider.vendor.creates) == 1

    async def test_an_attempt_that_times_out_and_is_released_during_the_create_still_records_it(
        self, queue: Queue, worker: Worker
    ) -> None:
        gate = asyncio.Event()
        worker.provider.on_submit(hold(gate))
        job = await queue.accept_and_claim()
        job = replace(job, run_deadline_at=job.claimed_at + timedelta(seconds=0.1))
        execution, running = worker.begin(job)
        await asyncio.sleep(0.2)
        execution.stop(Stop.RELEASE)
        await asyncio.sleep(0.05)
        assert not running.done()
        gate.set()
        await running

        [order] = await queue.orders(job.id)
        row = await queue.row(job.id)
        assert order.handle_id is not None
        assert (row.status, row.reason, row.resuming) == ("in_queue", "interrupted", True)

    async def test_a_handle_that_comes_after_the_lease_was_lost_is_used_by_the_next_owner(
        self, queue: Queue, worker: Worker
    ) -> None:
        gate = asyncio.Event()
        worker.provider.on_submit(hold(gate))
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await wait_until(lambda: worker.provider.vendor.creates)
        await queue.put_back(job)
        execution.stop(Stop.LOST)
        gate.set()
        await running

        row = await second(worker).claim_and_run()

        assert row.status == Status.COMPLETED
        assert len(worker.provider.vendor.creates) == 1
