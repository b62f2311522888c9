"""An order whose reply was never seen is found again or given up, and never placed twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.executing import Worker
from tests.queueing import Queue, wait_until

from fleek.core.errors import DatabaseUnavailable, ProviderError, ProviderErrorKind as Kind
from fleek.core.job import ErrorCode, Status
from fleek.db.session import Database
from fleek.jobs import submissions
from fleek.jobs.keeper import Stop
from fleek.jobs.orders import OrderLimits
from fleek.providers.base import Accepted, Capabilities, Handle
from fleek.testing import RESUMABLE, FakeProvider, hold

LOST = ProviderError(Kind.AMBIGUOUS, "the reply was lost")
LOOKUP = replace(RESUMABLE, lookup=True)


def a_worker(queue: Queue, capabilities: Capabilities, grace: timedelta = timedelta(seconds=20)) -> Worker:
    worker = Worker(queue, FakeProvider(capabilities=capabilities))
    worker.shop = replace(worker.shop, order_limits=OrderLimits(reconcile=grace))
    return worker


async def test_an_order_whose_reply_was_lost_is_looked_up_and_adopted(queue: Queue) -> None:
    worker = a_worker(queue, LOOKUP)

    async def take_and_lose() -> Accepted:
        worker.provider.vendor.take(worker.provider.vendor.creates[-1])
        raise LOST

    worker.provider.on_submit(take_and_lose)
    row = await worker.run(await queue.accept_and_claim())

    assert row.status == Status.COMPLETED
    assert len(worker.provider.vendor.creates) == 1
    assert [order.resolution for order in await queue.orders(row.id)] == ["result"]


async def test_an_order_that_is_not_found_is_given_up_and_never_repeated(queue: Queue) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    worker.provider.on_submit(LOST)

    row = await worker.run(await queue.accept_and_claim())

    assert (row.status, row.error_code) == (Status.ERROR, ErrorCode.AMBIGUOUS_SUBMISSION)
    assert len(worker.provider.vendor.creates) == 1
    assert [order.resolution for order in await queue.orders(row.id)] == ["ambiguous"]


async def test_a_model_that_allows_two_paid_orders_is_ordered_once_more_and_not_twice(
    queue: Queue,
) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    worker.provider.on_submit(LOST, LOST)
    first = await worker.run(await queue.accept_and_claim(), max_paid_submissions=2)
    await queue.make_due()

    last = await worker.run(await queue.claim_one(), max_paid_submissions=2)

    assert (first.status, first.reason, first.failures) == (Status.IN_QUEUE, "retry_scheduled", 1)
    assert (last.status, last.error_code) == (Status.ERROR, ErrorCode.AMBIGUOUS_SUBMISSION)
    orders = await queue.orders(last.id)
    assert [order.resolution for order in orders] == ["ambiguous", "ambiguous"]
    assert orders[0].resolved_at <= orders[1].intent_at
    assert len(worker.provider.vendor.creates) == 2


async def test_the_last_attempt_ends_as_ambiguous_although_the_model_allows_another_order(
    queue: Queue,
) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    worker.provider.on_submit(LOST)

    row = await worker.run(await queue.accept_and_claim(max_attempts=1), max_paid_submissions=2)

    assert (row.status, row.error_code) == (Status.ERROR, ErrorCode.AMBIGUOUS_SUBMISSION)
    assert len(worker.provider.vendor.creates) == 1


async def test_each_output_has_its_own_count_of_paid_orders(queue: Queue) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    count = 2 * worker.provider.capabilities.max_outputs
    worker.provider.on_submit(LOST)
    first = await worker.run(await queue.accept_and_claim(n=count), max_paid_submissions=2)
    await queue.make_due()

    last = await worker.run(await queue.claim_one(), max_paid_submissions=2)

    assert first.status == Status.IN_QUEUE
    assert last.status == Status.COMPLETED
    resolutions = [(order.first_index, order.resolution) for order in await queue.orders(last.id)]
    assert sorted(resolutions) == [(0, "ambiguous"), (0, "result"), (count // 2, "result")]


async def test_a_handle_that_the_first_worker_writes_late_is_adopted_by_the_next(queue: Queue) -> None:
    worker = a_worker(queue, RESUMABLE)
    first = await queue.accept_and_claim()
    ordinal = await queue.order(first)
    await queue.put_back(first)
    _, running = worker.begin(await queue.claim_one())
    await asyncio.sleep(0.2)

    worker.provider.vendor.orders["h-late"] = worker.execution(first)._orders._request(0, 1)
    await submissions.record(queue.database, first.id, first.fence, ordinal, Handle("h-late"))
    await asyncio.wait_for(running, 20)

    assert (await queue.row(first.id)).status == Status.COMPLETED
    assert worker.provider.vendor.creates == []


async def test_an_order_that_another_job_owns_is_not_adopted(queue: Queue) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    owner = await queue.accept_and_claim()
    await queue.order(owner, "h-1")
    worker.provider.find = lambda *_: _answer([Handle("h-1")])  # type: ignore[method-assign]
    worker.provider.on_submit(LOST)

    row = await worker.run(await queue.accept_and_claim())

    assert (row.status, row.error_code) == (Status.ERROR, ErrorCode.AMBIGUOUS_SUBMISSION)
    assert worker.provider.vendor.canceled == []


async def test_an_order_that_another_job_records_at_that_moment_is_not_adopted(
    queue: Queue, queue_url: str
) -> None:
    owner = await queue.accept_and_claim()

    class Late(Database):
        """Somebody else's handle is recorded just after it was asked whose it is."""

        async def fetch_all(self, statement: Any, parameters: Any = None) -> list[Any]:
            rows = await super().fetch_all(statement, parameters)
            if "handle_id = ANY" in str(statement) and not await queue.orders(owner.id):
                await queue.order(owner, "h-1")
            return rows

    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    late = Late(queue_url)
    worker.shop = replace(worker.shop, database=late)
    worker.provider.find = lambda *_: _answer([Handle("h-1")])  # type: ignore[method-assign]
    worker.provider.on_submit(LOST)

    row = await worker.run(await queue.accept_and_claim())
    await late.aclose()

    assert (row.status, row.error_code) == (Status.ERROR, ErrorCode.AMBIGUOUS_SUBMISSION)
    assert worker.provider.vendor.canceled == []


async def test_a_create_that_the_first_worker_saw_refused_is_not_waited_for(queue: Queue) -> None:
    worker = a_worker(queue, RESUMABLE)
    first = await queue.accept_and_claim()
    ordinal = await queue.order(first)
    await queue.put_back(first)
    _, running = worker.begin(await queue.claim_one())
    await asyncio.sleep(0.2)

    await submissions.resolve(queue.database, first.id, ordinal, "rejected")
    await asyncio.wait_for(running, 20)
    waiting = await queue.row(first.id)
    last = await worker.claim_and_run()

    assert (waiting.status, waiting.error_code) == (Status.IN_QUEUE, ErrorCode.TRANSIENT)
    assert last.status == Status.COMPLETED
    assert len(worker.provider.vendor.creates) == 1


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_worker_that_lost_its_job_closes_no_order_of_the_next_owner(
    queue: Queue, is_known: bool
) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    gate = asyncio.Event()

    async def hang() -> list[Handle]:
        await gate.wait()
        return []

    worker.provider.find = lambda *_: hang()  # type: ignore[method-assign]
    first = await queue.accept_and_claim()
    ordinal = await queue.order(first)
    await queue.put_back(first)
    stale = await queue.claim_one()
    _, running = worker.begin(stale, max_paid_submissions=2)
    await asyncio.sleep(0.2)
    await queue.put_back(stale)
    owner = await queue.claim_one()
    if is_known:
        worker.provider.vendor.orders["h-1"] = worker.execution(owner)._orders._request(0, 1)
        await submissions.record(queue.database, owner.id, owner.fence, ordinal, Handle("h-1"))

    gate.set()
    await asyncio.wait_for(running, 20)

    assert [order.resolution for order in await queue.orders(owner.id)] == [None]
    assert (await queue.row(owner.id)).fence == owner.fence


async def test_an_order_that_a_job_like_this_one_took_for_its_own_is_left_to_it(queue: Queue) -> None:
    worker = a_worker(queue, RESUMABLE, grace=timedelta(0))
    other = await queue.accept_and_claim()
    ordinal = await queue.order(other)
    handle = Handle("h-1")

    async def be_adopted() -> Accepted:
        await submissions.record(queue.database, other.id, other.fence, ordinal, handle)
        return Accepted(handle)

    worker.provider.on_submit(be_adopted)
    row = await worker.run(await queue.accept_and_claim())

    assert (row.status, row.error_code) == (Status.ERROR, ErrorCode.AMBIGUOUS_SUBMISSION)
    assert worker.provider.vendor.canceled == []
    assert [order.handle_id for order in await queue.orders(other.id)] == ["h-1"]


async def test_an_earlier_order_of_the_same_job_does_not_stand_in_the_way(queue: Queue) -> None:
    worker = a_worker(queue, LOOKUP)
    vendor = worker.provider.vendor

    async def take_and_lose() -> Accepted:
        vendor.take(vendor.creates[-1])
        raise LOST

    worker.provider.on_poll(ProviderError(Kind.PROVIDER_BUG, "the model crashed"))
    first = await worker.run(await queue.accept_and_claim())
    worker.provider.on_submit(take_and_lose)
    last = await worker.claim_and_run()

    assert (first.status, first.failures) == (Status.IN_QUEUE, 1)
    assert last.status == Status.COMPLETED
    assert [order.resolution for order in await queue.orders(last.id)] == ["failed", "result"]
    assert len(vendor.creates) == 2


async def test_of_two_orders_that_fit_and_are_nobodys_none_is_adopted(queue: Queue) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(0))
    vendor = worker.provider.vendor

    async def take_twice_and_lose() -> Accepted:
        vendor.take(vendor.creates[-1])
        vendor.take(vendor.creates[-1])
        raise LOST

    worker.provider.on_submit(take_twice_and_lose)
    row = await worker.run(await queue.accept_and_claim())

    assert (row.status, row.error_code) == (Status.ERROR, ErrorCode.AMBIGUOUS_SUBMISSION)


async def test_a_lookup_that_fails_is_tried_again_until_the_grace_is_over(queue: Queue) -> None:
    worker = a_worker(queue, LOOKUP, grace=timedelta(seconds=0.6))
    looked = []

    async def fail(*_: object) -> None:
        looked.append(True)
        raise ProviderError(Kind.TRANSIENT, "busy")

    worker.provider.find = fail  # type: ignore[method-assign, assignment]
    worker.provider.on_submit(LOST)
    row = await worker.run(await queue.accept_and_claim())

    assert row.error_code == ErrorCode.AMBIGUOUS_SUBMISSION
    assert len(looked) > 1


async def _answer(handles: list[Handle]) -> list[Handle]:
    return handles


async def test_a_stop_while_the_order_is_placed_leaves_no_doubt_about_it(queue: Queue) -> None:
    """The intent, the create and the handle are one section, which a shutdown waits for."""
    worker = a_worker(queue, RESUMABLE)
    gate = asyncio.Event()
    worker.provider.on_submit(hold(gate))
    execution, running = worker.begin(await queue.accept_and_claim())
    await wait_until(lambda: len(worker.provider.vendor.creates) == 1)

    execution.stop(Stop.RELEASE)
    gate.set()
    await asyncio.wait_for(running, 20)

    again = await queue.claim_one()
    assert [order.handle is not None for order in again.open_orders] == [True]


async def test_a_create_that_never_answers_counts_as_lost(queue: Queue) -> None:
    worker = Worker(queue, FakeProvider(capabilities=RESUMABLE))
    limits = OrderLimits(create=timedelta(seconds=0.1), reconcile=timedelta(0))
    worker.shop = replace(worker.shop, order_limits=limits)
    worker.provider.on_submit(hold(asyncio.Event()))

    row = await worker.run(await queue.accept_and_claim())

    assert row.error_code == ErrorCode.AMBIGUOUS_SUBMISSION


async def test_giving_up_on_an_open_order_cancels_it_and_a_retry_asks_first(queue: Queue) -> None:
    """Nobody knows what became of it, so another order may be paid on top."""
    worker = a_worker(queue, RESUMABLE)
    worker.provider.on_poll(ProviderError(Kind.TRANSIENT, "busy"))
    job = await queue.accept_and_claim(max_attempts=1)

    row = await worker.run(job)

    assert row.error_code == ErrorCode.ATTEMPTS_EXHAUSTED
    assert worker.provider.vendor.canceled == list(worker.provider.vendor.orders)
    assert [order.resolution for order in await queue.orders(job.id)] == ["ambiguous"]


async def test_a_finished_result_is_stored_though_the_deadline_has_passed(queue: Queue) -> None:
    worker = a_worker(queue, RESUMABLE)
    worker.storage.down = True
    job = await queue.accept_and_claim()
    late = replace(job, view=replace(job.view, deadline_at=job.claimed_at + timedelta(seconds=0.5)))

    row = await worker.run(late)

    assert (row.status, row.resuming, row.error_code) == (
        Status.IN_QUEUE,
        True,
        ErrorCode.STORAGE_UNAVAILABLE,
    )


async def test_an_intent_whose_commit_was_not_seen_is_written_once_and_ordered_once(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = a_worker(queue, RESUMABLE)
    fetch_one, failed = queue.database.fetch_one, []

    async def lose_first_intent(statement: object, parameters: object = None) -> object:
        row = await fetch_one(statement, parameters)
        if statement is submissions._INTEND and not failed:
            failed.append(True)
            raise DatabaseUnavailable
        return row

    monkeypatch.setattr(queue.database, "fetch_one", lose_first_intent)
    row = await worker.run(await queue.accept_and_claim())

    assert (row.status, failed) == (Status.COMPLETED, [True])
    assert len(worker.provider.vendor.creates) == 1
    assert len(await queue.orders(row.id)) == 1
