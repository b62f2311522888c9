"""Real workers that are told to end while orders are under way at a provider that charges for them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import redis
from tests.queueing import PARAMETERS, Queue, wait_until
from tests.replicate_server import ReplicateServer
from tests.workers import CELERY, FLEEK, Start

from fleek.jobs.changes import NewJob
from fleek.queue.base import DEFAULT_QUEUE, broker_queue

PAID = "black-forest-labs/flux-schnell"
TERM, INT, QUIT = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT


def names_of(signals: Sequence[signal.Signals]) -> str:
    """As in SIGTERM-SIGQUIT."""
    return "-".join(number.name for number in signals)


@pytest.fixture
async def vendor() -> AsyncIterator[ReplicateServer]:
    """What the orders are placed with; its ledger says what was paid for."""
    async with ReplicateServer() as server:
        yield server


def at(vendor: ReplicateServer, **settings: str) -> dict[str, str]:
    """Settings of a worker that orders there."""
    return {
        "providers__replicate__base_url": vendor.url,
        "providers__replicate__token": vendor.token,
        "providers__replicate__allow_any": "true",
        "providers__replicate__allow_hosts": "127.0.0.1",
        **settings,
    }


async def accept(queue: Queue, **script: Any) -> NewJob:
    return await queue.accept(model=PAID, parameters=PARAMETERS, input={"fake": script})


async def have_handles(queue: Queue, jobs: Sequence[NewJob]) -> bool:
    [row] = await queue.query("SELECT count(*) AS orders FROM submissions WHERE handle IS NOT NULL")
    return bool(row.orders == len(jobs))


async def are_completed(queue: Queue, jobs: Sequence[NewJob]) -> bool:
    return {(await queue.row(job.id)).status for job in jobs} == {"completed"}


@pytest.mark.parametrize("command", [FLEEK, CELERY], ids=["fleek", "celery"])
async def test_orders_that_are_under_way_at_a_stop_are_followed_on_by_the_next_worker(
    queue: Queue, start: Start, vendor: ReplicateServer, redis_url: str, command: tuple[str, ...]
) -> None:
    jobs = [await accept(queue, end="never") for _ in range(6)]
    worker = await start(command, **at(vendor, shutdown_grace="0.3")).started()
    await wait_until(lambda: have_handles(queue, jobs))
    worker.send(TERM)
    code = await worker.ended()
    rows = [await queue.row(job.id) for job in jobs]
    outcomes = {(await queue.attempts(job.id))[0].outcome for job in jobs}
    with redis.Redis.from_url(redis_url) as broker:
        wake_ups = broker.llen(broker_queue(DEFAULT_QUEUE))
    for prediction in vendor.predictions.values():
        prediction.script = prediction.script.overridden_by({"end": "succeeded"})
    start(command, **at(vendor))
    await wait_until(lambda: are_completed(queue, jobs), within=30)

    assert code == 0
    assert {(row.status, row.reason, row.resuming) for row in rows} == {("in_queue", "interrupted", True)}
    assert {(row.failures, row.deferrals, row.crashes) for row in rows} == {(0, 0, 0)}
    assert outcomes == {"interrupted"}
    assert wake_ups > 0
    assert len(vendor.accepted) == len(jobs)


@pytest.mark.parametrize(
    "signals",
    [
        (QUIT,),
        (TERM, QUIT),
        pytest.param((INT,), marks=pytest.mark.slow),
        pytest.param((TERM, TERM), marks=pytest.mark.slow),
    ],
    ids=names_of,
)
async def test_an_order_that_is_being_placed_is_written_down_before_the_worker_ends(
    queue: Queue, start: Start, vendor: ReplicateServer, signals: Sequence[signal.Signals]
) -> None:
    vendor.on("create", reply_delay=2)
    job = await accept(queue, end="never")
    worker = await start(**at(vendor, shutdown_grace="0.3")).started()
    await wait_until(lambda: vendor.accepted)
    for number in signals:
        worker.send(number)
        await asyncio.sleep(0.2)
    await worker.ended(within=30)

    row = await queue.row(job.id)
    [order] = await queue.orders(job.id)
    assert (row.status, row.reason, row.resuming) == ("in_queue", "interrupted", True)
    assert order.handle_id == vendor.accepted[0]["id"]
    assert "worker_stopped" in worker.log.read_text()


@pytest.mark.slow
async def test_a_worker_that_is_killed_while_it_places_an_order_leaves_it_to_be_found(
    queue: Queue, start: Start, vendor: ReplicateServer
) -> None:
    vendor.on("create", reply_delay=2)
    job = await accept(queue)
    quick = at(vendor, lease="1", renew_interval="0.3", rescue_interval="0.2", rescue_confirm_after="2")
    worker = start(**quick)
    await wait_until(lambda: vendor.accepted)
    worker.send(TERM)
    await asyncio.sleep(0.2)
    worker.process.kill()
    [intent] = await queue.orders(job.id)
    start(**quick)
    await wait_until(lambda: are_completed(queue, [job]), within=40)

    [order] = await queue.orders(job.id)
    assert intent.handle_id is None
    assert order.handle_id == vendor.accepted[0]["id"]
    assert len(vendor.accepted) == 1


@pytest.mark.parametrize("signals", [(QUIT,), (INT, INT)], ids=names_of)
async def test_a_signal_that_does_not_wait_ends_the_grace_time_of_one_that_does(
    queue: Queue, start: Start, vendor: ReplicateServer, signals: Sequence[signal.Signals]
) -> None:
    job = await accept(queue, end="never")
    worker = await start(**at(vendor, shutdown_grace="3600")).started()
    await wait_until(lambda: have_handles(queue, [job]))
    worker.send(TERM)
    await asyncio.sleep(2)
    still_ran = worker.process.poll() is None
    for number in signals:
        worker.send(number)
        await asyncio.sleep(0.2)
    await worker.ended(within=30)

    row = await queue.row(job.id)
    assert still_ran
    assert (row.status, row.reason, row.resuming) == ("in_queue", "interrupted", True)
    assert "worker_stopped" in worker.log.read_text()
