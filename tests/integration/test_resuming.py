"""Orders that are open: whoever claims the job next polls them, and cancels them when that is asked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.executing import PAID_AT_ONCE, Worker, fake_model, paid_worker, resolutions, second
from tests.queueing import LEASE, Queue, wait_until

from fleek.core.errors import ProviderError, ProviderErrorKind as Kind
from fleek.core.events import EventKind
from fleek.core.job import ErrorCode, Status
from fleek.jobs import submissions
from fleek.jobs.keeper import Stop
from fleek.jobs.orders import OrderLimits, Orders
from fleek.providers.base import Capabilities, Done, GenerationRequest, Handle, Pending
from fleek.testing import RESUMABLE, FakeProvider, FakeVendor, fake_picture, hold

FIRST_REQUEST = GenerationRequest("fake", "vendor/fake", "a lighthouse at dawn", seed=7)


@pytest.fixture
def worker(queue: Queue) -> Worker:
    """A worker over a backend that takes three outputs an order, for money."""
    return paid_worker(queue)


def open_gate() -> asyncio.Event:
    """An event that has happened: a step that holds by it goes on as usual."""
    event = asyncio.Event()
    event.set()
    return event


class TestResuming:
    async def test_a_resumed_order_is_polled_and_never_created_again(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_poll(*[ProviderError(Kind.TRANSIENT, "busy")] * 2)
        job = await queue.accept_and_claim()
        rows = [await worker.run(job), await second(worker).claim_and_run()]

        assert [(row.status, row.failures, row.resuming) for row in rows] == [
            ("in_queue", 1, True),
            ("completed", 1, False),
        ]
        assert len(worker.provider.vendor.creates) == 1
        assert await queue.history(job.id) == [
            EventKind.ACCEPTED,
            EventKind.CLAIMED,
            EventKind.SUBMITTED,
            EventKind.RETRY_SCHEDULED,
            EventKind.RESUMED,
            EventKind.COMPLETED,
        ]

    async def test_of_several_orders_only_those_that_are_missing_are_placed(
        self, queue: Queue, worker: Worker
    ) -> None:
        job = await queue.accept_and_claim(n=8)
        worker.provider.on_submit(hold(open_gate()), hold(open_gate()), ProviderError(Kind.TRANSIENT, "busy"))
        row = await worker.run(job)
        assert (row.status, row.resuming) == ("in_queue", True)

        row = await second(worker).claim_and_run()

        media = await queue.media(job.id)
        assert row.status == Status.COMPLETED
        assert [one.first_index for one in worker.provider.vendor.creates] == [0, 3, 6, 6]
        assert await resolutions(queue, job.id) == ["result", "result", "rejected", "result"]
        assert [one.seed for one in media] == list(range(7, 15))

    @pytest.mark.parametrize("max_outputs", [1, 2, 4, 8])
    async def test_an_open_order_keeps_its_cut_when_the_backend_takes_another_number_now(
        self, queue: Queue, worker: Worker, max_outputs: int
    ) -> None:
        vendor = worker.provider.vendor
        job = await queue.accept_and_claim(n=8)
        worker.provider.on_poll(hold(open_gate()), ProviderError(Kind.PROVIDER_BUG, "broken"))
        await worker.run(job)
        assert await resolutions(queue, job.id) == [None, "failed"]
        worker = Worker(queue, FakeProvider(vendor, capabilities=replace(RESUMABLE, max_outputs=max_outputs)))
        worker.provider.on_poll(hold(open_gate()), ProviderError(Kind.TRANSIENT, "busy"))
        await worker.claim_and_run()

        row = await worker.claim_and_run()

        media = await queue.media(job.id)
        taken = [order for order in await queue.orders(job.id) if order.resolution == "result"]
        covered = [index for one in taken for index in range(one.first_index, one.first_index + one.count)]
        assert (row.status, row.n) == (Status.COMPLETED, 8)
        assert sorted(covered) == list(range(8))
        assert [await worker.storage.read(one.key) for one in media] == [
            fake_picture(seed) for seed in range(7, 15)
        ]

    async def test_an_open_order_in_the_middle_is_not_passed_over(self, queue: Queue) -> None:
        vendor = FakeVendor()
        worker = Worker(queue, FakeProvider(vendor, capabilities=replace(RESUMABLE, max_outputs=8)))
        job = await queue.accept_and_claim(n=4)
        middle = await queue.order(job, first_index=2)
        request = replace(FIRST_REQUEST, first_index=2, seed=9)
        await submissions.record(queue.database, job.id, job.fence, middle, vendor.take(request))
        await queue.put_back(job)

        row = await worker.claim_and_run()

        assert (row.status, row.n) == (Status.COMPLETED, 4)
        assert [(one.first_index, one.count) for one in vendor.creates] == [(0, 2), (3, 1)]
        assert [one.seed for one in await queue.media(job.id)] == [7, 8, 9, 10]


class TestPolling:
    @pytest.mark.parametrize("kind", [Kind.TRANSIENT, Kind.TIMEOUT, Kind.THROTTLED, Kind.PERMANENT_AUTH])
    async def test_trouble_on_the_way_to_an_order_leaves_it_open(
        self, queue: Queue, worker: Worker, kind: Kind
    ) -> None:
        worker.provider.on_poll(ProviderError(kind, "trouble"))
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        assert (row.status, row.resuming) == ("in_queue", True)
        assert await resolutions(queue, job.id) == [None]

    @pytest.mark.parametrize(
        ("kind", "status"),
        [(Kind.PERMANENT_INPUT, "error"), (Kind.PERMANENT_POLICY, "error"), (Kind.PROVIDER_BUG, "in_queue")],
    )
    async def test_an_order_that_failed_at_the_backend_is_over(
        self, queue: Queue, worker: Worker, kind: Kind, status: str
    ) -> None:
        worker.provider.on_poll(ProviderError(kind, "failed"))
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        assert (row.status, row.resuming) == (status, False)
        assert await resolutions(queue, job.id) == ["failed"]

    @pytest.mark.parametrize("capabilities", [RESUMABLE, PAID_AT_ONCE])
    async def test_an_order_without_any_output_has_failed(
        self, queue: Queue, capabilities: Capabilities
    ) -> None:
        worker = Worker(queue, FakeProvider(capabilities=capabilities))
        if capabilities.resumable:
            worker.provider.on_poll(Done(()))
        else:
            worker.provider.on_submit(Done(()))
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        assert (row.status, row.error_code, row.failures) == ("in_queue", ErrorCode.PROVIDER_BUG, 1)
        assert await resolutions(queue, job.id) == ["failed"]

    async def test_polls_come_when_the_backend_asked_for_them(self, queue: Queue, worker: Worker) -> None:
        soon = timedelta(seconds=0.01)
        worker.provider.on_poll(Pending(None, soon), Pending(0.5, soon), Pending(None, soon))
        job = await queue.accept_and_claim()

        row = await worker.run(job)

        assert row.status == Status.COMPLETED
        assert len(worker.provider.vendor.polled) == 4
        assert worker.pubsub.announced[0].progress == 0.5

    async def test_polls_come_less_and_less_often_by_themselves(self, queue: Queue, worker: Worker) -> None:
        worker.provider.on_poll(Pending(), Pending())
        loop = asyncio.get_running_loop()
        started = loop.time()

        await worker.run(await queue.accept_and_claim())

        assert 0.8 * (0.5 + 0.75) <= loop.time() - started < 3

    async def test_an_order_that_takes_longer_than_the_clients_deadline_is_canceled_there(
        self, queue: Queue, worker: Worker
    ) -> None:
        worker.provider.on_poll(Pending())
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")
        worker.provider.vendor.orders["h-1"] = FIRST_REQUEST
        await queue.put_back(job)
        await queue.pass_deadline(job.id)

        row = await worker.claim_and_run()

        assert (row.status, row.reason) == ("error", "deadline_passed")
        assert worker.provider.vendor.canceled == ["h-1"]
        assert await resolutions(queue, job.id) == ["ambiguous"]

    async def test_an_order_that_is_done_is_stored_after_the_clients_deadline(
        self, queue: Queue, worker: Worker
    ) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")
        worker.provider.vendor.orders["h-1"] = FIRST_REQUEST
        await queue.put_back(job)
        await queue.pass_deadline(job.id)

        assert (await worker.claim_and_run()).status == Status.COMPLETED


class Unkind(FakeProvider):
    """Its `cancel` does what the port forbids."""

    async def cancel(self, handle: Handle) -> None:
        await super().cancel(handle)
        raise RuntimeError("no such order")


class TestCancel:
    async def test_a_backend_that_fails_to_cancel_does_not_keep_the_job(self, queue: Queue) -> None:
        worker = Worker(queue, Unkind(capabilities=RESUMABLE))
        worker.provider.on_poll(hold(asyncio.Event()))
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await wait_until(lambda: worker.provider.vendor.polled)

        execution.stop(Stop.CANCEL)
        await running

        assert (await queue.row(job.id)).status == Status.CANCELED

    async def test_a_backend_that_never_answers_a_cancel_does_not_keep_the_job(self, queue: Queue) -> None:
        class Silent(FakeProvider):
            async def cancel(self, handle: Handle) -> None:
                await super().cancel(handle)
                await asyncio.Event().wait()

        provider = Silent(capabilities=RESUMABLE)
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")
        await queue.put_back(job)
        again = await queue.claim_one()
        limits = OrderLimits(cancel=timedelta(seconds=0.05))
        orders = Orders(
            queue.database, again, fake_model(provider), lambda _: None, lease=LEASE, limits=limits
        )

        await asyncio.wait_for(orders.cancel(), timeout=2)

        assert provider.vendor.canceled == ["h-1"]

    async def test_a_worker_that_gives_up_a_job_which_it_has_lost_leaves_the_order_to_the_next(
        self, queue: Queue
    ) -> None:
        provider = FakeProvider(capabilities=RESUMABLE)
        gate = asyncio.Event()

        async def break_off() -> None:
            await gate.wait()
            raise ProviderError(Kind.TRANSIENT, "the connection broke")

        provider.on_poll(break_off)
        job = await queue.accept_and_claim(max_attempts=1)
        _, running = Worker(queue, provider).begin(job)
        await wait_until(lambda: provider.vendor.polled)
        await queue.put_back(job)
        again = await queue.claim_one()
        gate.set()
        await running

        assert provider.vendor.canceled == []
        assert (await Worker(queue, provider).run(again)).status == Status.COMPLETED

    async def test_every_open_order_is_canceled(self, queue: Queue, worker: Worker) -> None:
        worker.provider.on_poll(hold(open_gate()), hold(asyncio.Event()))
        job = await queue.accept_and_claim(n=5)
        execution, running = worker.begin(job)
        await wait_until(lambda: len(worker.provider.vendor.polled) == 2)

        execution.stop(Stop.CANCEL)
        await running

        assert worker.provider.vendor.canceled == list(worker.provider.vendor.orders)
        assert await resolutions(queue, job.id) == ["canceled", "canceled"]
