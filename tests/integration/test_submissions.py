"""Orders: the intent before the create, the handle after it, and a handle that is never lost again."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.queueing import Queue

from fleek.core.errors import LeaseLost
from fleek.core.events import EventKind
from fleek.core.job import Status
from fleek.core.media import MAX_SEED, OutputFormat
from fleek.jobs import submissions
from fleek.jobs.claim import OpenOrder
from fleek.providers.base import GenerationRequest, Handle

LEASE = timedelta(seconds=30)
REQUEST = GenerationRequest("fake", "vendor/fake:1", "a lighthouse", seed=MAX_SEED, first_index=2, count=3)


async def test_an_intent_is_committed_before_anything_is_ordered(queue: Queue) -> None:
    job = await queue.accept_and_claim(n=5)

    placed = await submissions.intend(queue.database, job.id, job.fence, REQUEST, "fake", LEASE)

    [order] = await queue.orders(job.id)
    assert placed == OpenOrder(1, 2, 3, None, order.intent_at)
    assert (order.ordinal, order.first_index, order.count) == (1, 2, 3)
    assert (order.provider, order.model_ref, order.seed) == ("fake", "vendor/fake:1", MAX_SEED)
    assert (order.handle, order.handle_id, order.accepted_at, order.resolved_at) == (None, None, None, None)
    assert order.intent_at is not None


async def test_orders_of_a_job_are_numbered(queue: Queue) -> None:
    job = await queue.accept_and_claim(n=3)

    assert [await queue.order(job, first_index=index) for index in range(3)] == [1, 2, 3]


async def test_an_intent_that_is_repeated_is_the_same_order(queue: Queue) -> None:
    """A commit whose answer was lost is tried again, and must not leave an order that nobody placed."""
    job = await queue.accept_and_claim()

    assert [await queue.order(job), await queue.order(job)] == [1, 1]

    await submissions.resolve(queue.database, job.id, 1, "rejected")
    assert await queue.order(job) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "another"},
        {"seed": 1},
        {"count": 1},
        {"width": 64},
        {"height": 64},
        {"negative_prompt": "fog"},
        {"output_format": OutputFormat.WEBP},
        {"input": {"steps": 4}},
        {"ref": "vendor/fake:2"},
    ],
)
async def test_the_hash_tells_what_was_ordered(queue: Queue, change: dict[str, Any]) -> None:
    fields = {name: getattr(REQUEST, name) for name in REQUEST.__slots__}
    job = await queue.accept_and_claim(n=8)
    for index, request in enumerate((REQUEST, REQUEST, GenerationRequest(**fields | change))):
        moved = GenerationRequest(
            **{n: getattr(request, n) for n in REQUEST.__slots__} | {"first_index": index}
        )
        await submissions.intend(queue.database, job.id, job.fence, moved, "fake", LEASE)

    first, same, other = [order.request_hash for order in await queue.orders(job.id)]
    assert first == same != other


async def test_the_handle_is_recorded_with_an_event(queue: Queue) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job)
    handle = Handle("h-1", {"urls": {"get": "https://example.com/é"}, "n": 1, "none": None})

    await submissions.record(queue.database, job.id, job.fence, ordinal, handle)

    [order] = await queue.orders(job.id)
    [event] = await queue.query("SELECT * FROM events WHERE kind = 'submitted'")
    assert (order.handle_id, order.handle) == ("h-1", handle.data)
    assert order.accepted_at is not None
    assert event.data == {"provider": "fake", "ordinal": 1}
    assert (await queue.row(job.id)).status == Status.PROCESSING


@pytest.mark.parametrize("moved_on", ["in the queue", "under another lease"])
async def test_the_handle_is_recorded_after_a_lost_lease_without_touching_the_job(
    queue: Queue, moved_on: str
) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job)
    await queue.put_back(job)
    if moved_on == "under another lease":
        await queue.claim_one()
    before = await queue.row(job.id)

    await submissions.record(queue.database, job.id, job.fence, ordinal, Handle("h-1"))

    [order] = await queue.orders(job.id)
    assert order.handle_id == "h-1"
    assert await queue.row(job.id) == before
    assert EventKind.SUBMITTED not in await queue.history(job.id)


async def test_the_next_claim_resumes_an_order_whose_handle_came_late(queue: Queue) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job)
    await queue.put_back(job)
    await submissions.record(queue.database, job.id, job.fence, ordinal, Handle("h-1", {"a": 1}))

    again = await queue.claim_one()

    [order] = await queue.orders(job.id)
    assert again.open_orders == (OpenOrder(1, 0, 1, Handle("h-1", {"a": 1}), order.intent_at),)


async def test_a_handle_is_written_once(queue: Queue) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job, "h-1")
    history = await queue.history(job.id)

    await submissions.record(queue.database, job.id, job.fence, ordinal, Handle("h-2"))

    [order] = await queue.orders(job.id)
    assert order.handle_id == "h-1"
    assert await queue.history(job.id) == history


async def test_a_handle_is_recorded_even_when_the_job_has_ended(queue: Queue) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job)
    await queue.cancel(job.id)
    await queue.expire_lease(job.id)
    await queue.change("UPDATE submissions SET resolved_at = clock_timestamp(), resolution = 'ambiguous'")
    assert await queue.rescue(job) is Status.CANCELED

    await submissions.record(queue.database, job.id, job.fence, ordinal, Handle("h-1"))

    [order] = await queue.orders(job.id)
    assert (order.handle_id, order.resolution) == ("h-1", "ambiguous")


@pytest.mark.parametrize("data", [{"text": "a \0 byte"}, {"x": float("nan")}, {"object": object()}])
async def test_a_handle_with_what_json_cannot_hold_is_kept_as_well_as_can_be(
    queue: Queue, data: dict[str, Any]
) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job)

    await submissions.record(queue.database, job.id, job.fence, ordinal, Handle("h-1", data))

    assert (await queue.orders(job.id))[0].handle_id == "h-1"


async def test_an_order_ends_once(queue: Queue) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job, "h-1")

    await submissions.resolve(queue.database, job.id, ordinal, "failed")
    await submissions.resolve(queue.database, job.id, ordinal, "rejected")

    [order] = await queue.orders(job.id)
    assert order.resolution == "failed"


async def test_a_worker_without_the_lease_places_no_order(queue: Queue) -> None:
    job = await queue.accept_and_claim()
    await queue.finish(job, costs={1: Decimal(1)})

    with pytest.raises(LeaseLost):
        await queue.order(job)
    assert await queue.orders(job.id) == []


async def test_an_order_that_a_lost_worker_gives_up_stays_open_for_its_new_owner(queue: Queue) -> None:
    late = await queue.accept_and_claim()
    ordinal = await queue.order(late)
    await queue.put_back(late)
    owner = await queue.claim_one()

    assert not await submissions.give_up(queue.database, late.id, late.fence, ordinal)
    assert [order.resolution for order in await queue.orders(late.id)] == [None]
    assert await submissions.give_up(queue.database, owner.id, owner.fence, ordinal)
    assert [order.resolution for order in await queue.orders(late.id)] == ["ambiguous"]


async def test_an_order_whose_handle_came_at_the_last_moment_is_not_given_up(queue: Queue) -> None:
    job = await queue.accept_and_claim()
    ordinal = await queue.order(job, "handle-1")

    assert not await submissions.give_up(queue.database, job.id, job.fence, ordinal)
    known = await submissions.get_reply(queue.database, job.id, ordinal)
    assert known.handle is not None
    assert known.handle.id == "handle-1"


async def test_the_reply_to_an_order_of_a_deleted_job_is_nobodys(queue: Queue) -> None:
    job = await queue.accept_and_claim()

    with pytest.raises(LeaseLost):
        await submissions.get_reply(queue.database, job.id, 1)
