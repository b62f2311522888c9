"""An attempt that is told to stop, in every phase, or that lost its lease without being told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from tests.executing import Worker
from tests.queueing import Queue, wait_until

from fleek.core.errors import ProviderError, ProviderErrorKind as Kind
from fleek.core.job import Status
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.keeper import Stop
from fleek.providers.base import Capabilities, Handle
from fleek.queue.base import Announcement
from fleek.testing import RESUMABLE, FakeProvider, hold

AT_ONCE = replace(RESUMABLE, resumable=False, cancel=False)
"""A backend that charges, and answers with its outputs or never."""


@pytest.fixture
def worker(queue: Queue) -> Worker:
    """A worker over a provider that answers at once."""
    return Worker(queue)


@pytest.fixture
def remote(queue: Queue) -> Worker:
    """A worker over a provider whose orders are paid for and resumed."""
    return Worker(queue, FakeProvider(capabilities=RESUMABLE))


Phase = Callable[[Worker, asyncio.Event], None]


def in_submit(worker: Worker, gate: asyncio.Event) -> None:
    worker.provider.on_submit(hold(gate))


def in_poll(worker: Worker, gate: asyncio.Event) -> None:
    worker.provider.on_poll(hold(gate))


def in_store(worker: Worker, gate: asyncio.Event) -> None:
    worker.storage.hold = gate


async def reach(worker: Worker, phase: Phase) -> None:
    """Wait until an execution is held in this phase."""
    vendor = worker.provider.vendor
    reached = {in_submit: vendor.creates, in_poll: vendor.polled, in_store: worker.storage.puts}[phase]
    await wait_until(lambda: reached)


async def is_waiting_for_a_lock(queue: Queue) -> bool:
    """Whether a statement of the product waits for one that the test holds."""
    return bool(await queue.query("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


class SlowToCancel(FakeProvider):
    """One whose answer to a cancel travels for a while."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.gate = asyncio.Event()

    async def cancel(self, handle: Handle) -> None:
        await super().cancel(handle)
        await self.gate.wait()


class TestStop:
    @pytest.mark.parametrize("phase", [in_submit, in_store])
    async def test_a_released_job_is_due_at_once_and_nothing_is_counted(
        self, queue: Queue, worker: Worker, phase: Phase
    ) -> None:
        phase(worker, asyncio.Event())
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await reach(worker, phase)

        execution.stop(Stop.RELEASE)
        await running

        row = await queue.row(job.id)
        assert (row.status, row.reason, row.resuming) == ("in_queue", "interrupted", False)
        assert (row.failures, row.deferrals, row.crashes) == (0, 0, 0)
        assert (await queue.claim_one()).fence == 2

    @pytest.mark.parametrize("phase", [in_poll, in_store])
    async def test_a_released_job_with_an_open_order_is_resumed_by_the_next_worker(
        self, queue: Queue, remote: Worker, phase: Phase
    ) -> None:
        gate = asyncio.Event()
        phase(remote, gate)
        job = await queue.accept_and_claim()
        execution, running = remote.begin(job)
        await reach(remote, phase)

        execution.stop(Stop.RELEASE)
        await running

        row = await queue.row(job.id)
        gate.set()
        assert (row.status, row.reason, row.resuming) == ("in_queue", "interrupted", True)
        assert (await remote.claim_and_run()).status == Status.COMPLETED
        assert len(remote.provider.vendor.creates) == 1
        assert remote.provider.vendor.canceled == []

    async def test_a_job_that_is_released_before_it_began_asks_no_provider(
        self, queue: Queue, worker: Worker
    ) -> None:
        job = await queue.accept_and_claim()
        execution = worker.execution(job)
        execution.stop(Stop.RELEASE)
        await execution.run()

        assert (await queue.row(job.id)).reason == "interrupted"
        assert worker.provider.vendor.creates == []

    @pytest.mark.parametrize("phase", [in_submit, in_store])
    async def test_a_canceled_job_ends(self, queue: Queue, worker: Worker, phase: Phase) -> None:
        phase(worker, asyncio.Event())
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await reach(worker, phase)
        await queue.cancel(job.id)

        execution.stop(Stop.CANCEL)
        await running

        row = await queue.row(job.id)
        assert (row.status, row.reason) == ("canceled", "canceled")
        assert worker.pubsub.announced[-1] == Announcement(job.id)

    @pytest.mark.parametrize("phase", [in_submit, in_poll, in_store])
    async def test_a_canceled_job_is_canceled_at_the_provider_too(
        self, queue: Queue, remote: Worker, phase: Phase
    ) -> None:
        gate = asyncio.Event()
        phase(remote, gate)
        job = await queue.accept_and_claim()
        execution, running = remote.begin(job)
        await reach(remote, phase)

        execution.stop(Stop.CANCEL)
        gate.set()
        await running

        [order] = await queue.orders(job.id)
        assert (await queue.row(job.id)).status == Status.CANCELED
        assert remote.provider.vendor.canceled == [order.handle_id]
        assert order.resolution == "canceled"

    async def test_a_claim_that_is_made_only_to_cancel_cancels(self, queue: Queue, remote: Worker) -> None:
        job = await queue.accept_and_claim()
        await queue.order(job, "h-1")
        await queue.put_back(job)
        await queue.cancel(job.id)

        row = await remote.run(await queue.claim_one())

        assert row.status == Status.CANCELED
        assert remote.provider.vendor.canceled == ["h-1"]
        assert remote.provider.vendor.polled == []

    @pytest.mark.parametrize("phase", [in_submit, in_store])
    async def test_a_lost_job_is_left_as_it_is(self, queue: Queue, worker: Worker, phase: Phase) -> None:
        phase(worker, asyncio.Event())
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await reach(worker, phase)
        before = await queue.row(job.id)

        execution.stop(Stop.LOST)
        await running

        assert await queue.row(job.id) == before
        assert worker.pubsub.announced == worker.due == []

    async def test_a_worker_that_lost_its_job_does_not_cancel_the_order_of_the_next_one(
        self, queue: Queue, remote: Worker
    ) -> None:
        remote.provider.on_poll(hold(asyncio.Event()))
        execution, running = remote.begin(await queue.accept_and_claim())
        await reach(remote, in_poll)

        execution.stop(Stop.LOST)
        await running

        assert remote.provider.vendor.canceled == []

    async def test_a_process_that_winds_down_finishes_what_is_ordered(
        self, queue: Queue, remote: Worker
    ) -> None:
        gate = asyncio.Event()
        in_poll(remote, gate)
        job = await queue.accept_and_claim()
        execution, running = remote.begin(job)
        await reach(remote, in_poll)

        execution.wind_down()
        gate.set()
        await running

        assert (await queue.row(job.id)).status == Status.COMPLETED

    async def test_a_process_that_winds_down_leaves_the_next_order_to_another_worker(
        self, queue: Queue, remote: Worker
    ) -> None:
        gate = asyncio.Event()
        in_poll(remote, gate)
        count = 2 * remote.provider.capabilities.max_outputs
        job = await queue.accept_and_claim(n=count)
        execution, running = remote.begin(job)
        await reach(remote, in_poll)

        execution.wind_down()
        gate.set()
        await running

        row = await queue.row(job.id)
        assert (row.status, row.reason, row.resuming) == ("in_queue", "interrupted", True)
        assert (row.failures, row.deferrals, row.crashes) == (0, 0, 0)
        assert len(remote.provider.vendor.creates) == 1
        assert (await remote.claim_and_run()).status == Status.COMPLETED
        assert len(remote.provider.vendor.creates) == 2

    async def test_a_process_that_winds_down_orders_nothing_for_a_job_that_it_has_just_claimed(
        self, queue: Queue, remote: Worker
    ) -> None:
        job = await queue.accept_and_claim()
        execution = remote.execution(job)
        execution.wind_down()
        await execution.run()

        row = await queue.row(job.id)
        assert (row.status, row.reason, row.resuming) == ("in_queue", "interrupted", False)
        assert remote.provider.vendor.creates == []

    @pytest.mark.parametrize(
        ("why", "status"), [(None, "in_queue"), (Stop.RELEASE, "in_queue"), (Stop.CANCEL, "canceled")]
    )
    async def test_nothing_is_ordered_when_the_stop_comes_while_the_intent_is_being_written(
        self, queue: Queue, remote: Worker, why: Stop | None, status: str
    ) -> None:
        job = await queue.accept_and_claim()
        async with queue.database.begin() as other:
            await other.execute(text("SELECT FROM jobs FOR UPDATE"))
            execution, running = remote.begin(job)
            await wait_until(lambda: is_waiting_for_a_lock(queue))
            if why is None:
                execution.wind_down()
            else:
                execution.stop(why)
        await running

        row = await queue.row(job.id)
        [order] = await queue.orders(job.id)
        assert remote.provider.vendor.creates == []
        assert (row.status, row.resuming, order.resolution) == (status, False, "rejected")
        assert (row.failures, row.deferrals, row.crashes) == (0, 0, 0)

    @pytest.mark.parametrize("why", [Stop.RELEASE, Stop.CANCEL])
    async def test_a_stop_does_not_keep_a_failed_job_from_ending_whose_order_is_being_canceled(
        self, queue: Queue, why: Stop
    ) -> None:
        provider = SlowToCancel(capabilities=RESUMABLE)
        provider.on_poll(ProviderError(Kind.RESULT_EXPIRED, "gone"))
        job = await queue.accept_and_claim()
        execution, running = Worker(queue, provider).begin(job)
        await wait_until(lambda: provider.vendor.canceled)

        execution.stop(why)
        provider.gate.set()
        await running

        assert (await queue.row(job.id)).status == Status.ERROR

    @pytest.mark.parametrize("why", [None, Stop.RELEASE, Stop.CANCEL])
    @pytest.mark.parametrize("capabilities", [RESUMABLE, AT_ONCE])
    async def test_a_stop_between_two_orders_keeps_what_could_not_be_asked_for_again_and_places_nothing_else(
        self, queue: Queue, capabilities: Capabilities, why: Stop | None
    ) -> None:
        worker = Worker(queue, FakeProvider(capabilities=replace(capabilities, max_outputs=1)))
        worker.storage.hold = asyncio.Event()
        job = await queue.accept_and_claim(n=2)
        execution, running = worker.begin(job)
        await reach(worker, in_store)
        async with queue.database.begin() as other:
            await other.execute(text("SELECT FROM jobs FOR UPDATE"))
            worker.storage.hold.set()
            await wait_until(lambda: is_waiting_for_a_lock(queue))
            if why is None:
                execution.wind_down()
            else:
                execution.stop(why)
        await running

        goes_on = why is None and not capabilities.resumable
        assert len(worker.provider.vendor.creates) == (2 if goes_on else 1)
        assert ((await queue.row(job.id)).status == Status.COMPLETED) is goes_on

    async def test_what_a_synchronous_paid_provider_has_delivered_is_not_given_up(self, queue: Queue) -> None:
        worker = Worker(queue, FakeProvider(capabilities=replace(AT_ONCE, max_outputs=1)))
        job = await queue.accept_and_claim(n=2)
        execution = worker.execution(job)

        async def stop() -> None:
            execution.wind_down()

        worker.provider.on_submit(stop)
        await execution.run()

        assert (await queue.row(job.id)).status == Status.COMPLETED
        assert [order.resolution for order in await queue.orders(job.id)] == ["result", "result"]

    async def test_the_first_reason_to_stop_counts(self, queue: Queue, worker: Worker) -> None:
        in_submit(worker, asyncio.Event())
        job = await queue.accept_and_claim()
        execution, running = worker.begin(job)
        await reach(worker, in_submit)

        for why in (Stop.CANCEL, Stop.RELEASE, Stop.LOST):
            execution.stop(why)
        await running

        assert (await queue.row(job.id)).status == Status.CANCELED

    async def test_an_end_that_is_being_written_is_not_stopped(self, queue: Queue, worker: Worker) -> None:
        job = await queue.accept_and_claim()
        async with queue.database.begin() as other:
            await other.execute(text("SELECT FROM jobs FOR UPDATE"))
            execution, running = worker.begin(job)
            await wait_until(lambda: worker.storage.puts and worker.keeper.find(job.id) is None)
            execution.stop(Stop.CANCEL)
        await running

        assert (await queue.row(job.id)).status == Status.COMPLETED

    async def test_a_task_that_somebody_else_cancels_gives_its_job_back(
        self, queue: Queue, worker: Worker
    ) -> None:
        in_submit(worker, asyncio.Event())
        job = await queue.accept_and_claim()
        _, running = worker.begin(job)
        await reach(worker, in_submit)

        running.cancel()
        await running

        assert (await queue.row(job.id)).reason == "interrupted"


class TestLostLease:
    @pytest.fixture
    def taken(self, queue: Queue) -> Callable[[ClaimedJob], Any]:
        async def take(job: ClaimedJob) -> ClaimedJob:
            await queue.put_back(job)
            return await queue.claim_one(worker="worker-2")

        return take

    async def test_a_late_result_is_not_committed(
        self, queue: Queue, worker: Worker, taken: Callable[[ClaimedJob], Any]
    ) -> None:
        gate = asyncio.Event()
        in_store(worker, gate)
        job = await queue.accept_and_claim()
        _, running = worker.begin(job)
        await reach(worker, in_store)
        again = await taken(job)
        before = await queue.row(job.id)
        gate.set()
        await running

        assert await queue.row(job.id) == before
        assert worker.pubsub.announced == []
        assert (await worker.run(again)).status == Status.COMPLETED
        [media] = await queue.media(job.id)
        assert media.key.endswith("/2.png")

    async def test_a_late_error_is_not_committed(
        self, queue: Queue, worker: Worker, taken: Callable[[ClaimedJob], Any]
    ) -> None:
        gate = asyncio.Event()

        async def fail() -> None:
            await gate.wait()
            raise ProviderError(Kind.PERMANENT_POLICY, "no")

        worker.provider.on_submit(fail)
        job = await queue.accept_and_claim()
        _, running = worker.begin(job)
        await reach(worker, in_submit)
        await taken(job)
        gate.set()
        await running

        assert (await queue.row(job.id)).status == Status.PROCESSING
        assert worker.due == []

    async def test_a_late_worker_orders_nothing(
        self, queue: Queue, remote: Worker, taken: Callable[[ClaimedJob], Any]
    ) -> None:
        job = await queue.accept_and_claim()
        await taken(job)

        await remote.execution(job).run()

        assert remote.provider.vendor.creates == []
