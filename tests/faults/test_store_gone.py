"""The object store is away, slow, cut off or refuses: rows 27 to 29 of the fault matrix.

What was generated, and perhaps paid, is stored later; nothing is generated again for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.cluster import BUCKET, FREE, PAID, PREFIX, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

FEW_PUTS = 15
"""Of one job that is refused for some seconds; without a pause between tries there would be hundreds."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with open_cluster(apis=1, workers=1) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    yield shared
    shared.heal()
    shared.wait_until(lambda: not shared.query("SELECT id FROM jobs WHERE finished_at IS NULL"), 40)
    check_invariants(shared)


def reasons(cluster: Cluster, job_id: str) -> list[str]:
    """Of every change of a job, in order."""
    sql = "SELECT data->>'reason' AS reason FROM events WHERE job_id = $1::uuid ORDER BY sequence"
    return [str(row["reason"]) for row in cluster.query(sql, job_id)]


def is_deferred(cluster: Cluster, job_id: str) -> bool:
    return "deferred" in reasons(cluster, job_id)


def stored_keys(cluster: Cluster, job_id: str) -> list[str]:
    return [key for key in cluster.objects() if key.startswith(f"media/{job_id}/")]


def assert_stored(cluster: Cluster, job: dict[str, Any]) -> None:
    """Completed, with an object whose bytes are those that the row tells of."""
    [row] = cluster.query("SELECT key, sha256, size_bytes FROM media WHERE job_id = $1::uuid", job["id"])
    body = cluster.store.get_object(Bucket=BUCKET, Key=f"{PREFIX}/{row['key']}")["Body"].read()

    assert job["status"] == "completed"
    assert (hashlib.sha256(body).hexdigest(), len(body)) == (row["sha256"], row["size_bytes"])


def assert_stored_once(cluster: Cluster, job: dict[str, Any]) -> None:
    """The same, and nothing else was left behind."""
    assert_stored(cluster, job)
    assert len(stored_keys(cluster, job["id"])) == 1


def test_a_paid_result_waits_for_the_store_and_is_not_bought_again(cluster: Cluster) -> None:
    cluster.proxies.store.refuse()
    job = cluster.submit("paid while the store was away", model=PAID)
    cluster.wait_until(lambda: is_deferred(cluster, job))
    waiting = cluster.job(job)
    cluster.heal()
    ended = cluster.wait_end(job)

    assert (waiting["error"] or {}).get("code") == "storage_unavailable"
    assert_stored_once(cluster, ended)
    assert (ended["failures"], len(ended["submissions"]), len(cluster.paid(job))) == (0, 1, 1)


def test_a_result_that_only_the_worker_has_waits_for_the_store(cluster: Cluster) -> None:
    cluster.proxies.store.refuse()
    job = cluster.submit("made while the store was away")
    cluster.wait_until(lambda: "store_failed" in cluster.workers[0].said)
    cluster.heal()
    ended = cluster.wait_end(job)

    assert_stored_once(cluster, ended)
    assert (len(ended["attempts"]), ended["failures"]) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("status", [403, 500])
@pytest.mark.parametrize("model", [PAID, FREE])
def test_a_store_that_refuses_is_not_asked_in_a_loop(cluster: Cluster, status: int, model: str) -> None:
    store = cluster.proxies.store
    store.answered.clear()
    store.answer_with(status)
    job = cluster.submit(f"refused with {status} by {model}", model=model)
    cluster.wait_until(lambda: store.answered)
    time.sleep(3)
    puts = [line for line in store.answered if line.startswith(b"PUT ") and job.encode() in line]
    cluster.heal()
    ended = cluster.wait_end(job)

    assert 1 <= len(puts) <= FEW_PUTS
    assert_stored_once(cluster, ended)
    assert (ended["failures"], len(cluster.paid(job))) == (0, int(model == PAID))


@pytest.mark.slow
def test_a_slow_store_only_takes_its_time(cluster: Cluster) -> None:
    cluster.proxies.store.slow_down(0.4)
    job = cluster.submit("slowly stored", model=PAID)
    ended = cluster.wait_end(job)

    assert_stored_once(cluster, ended)
    assert (len(ended["attempts"]), len(cluster.paid(job))) == (1, 1)


@pytest.mark.slow
def test_a_store_that_says_nothing_is_given_up_and_asked_later(cluster: Cluster) -> None:
    cluster.proxies.store.fall_silent()
    job = cluster.submit("silently stored", model=PAID)
    cluster.wait_until(lambda: is_deferred(cluster, job))
    cluster.heal()
    ended = cluster.wait_end(job)

    # What hung has arrived meanwhile: an object that no row names, which may be deleted once it is old.
    assert_stored(cluster, ended)
    assert len(cluster.paid(job)) == 1


@pytest.mark.slow
def test_a_store_whose_connections_break_all_the_time_gets_every_result(cluster: Cluster) -> None:
    jobs = [cluster.submit(f"broken off {number}", model=PAID) for number in range(6)]
    for _ in range(15):
        cluster.proxies.store.cut()
        time.sleep(0.1)

    for job in jobs:
        ended = cluster.wait_end(job)
        assert_stored(cluster, ended)
        assert len(cluster.paid(job)) == 1


@pytest.mark.parametrize("model", [PAID, FREE])
def test_a_put_whose_reply_was_lost_is_repeated_without_a_trace(cluster: Cluster, model: str) -> None:
    job = cluster.submit(f"put unseen by {model}", model=model, **delayed(model))
    cluster.proxies.store.lose_reply_to(f"media/{job}/".encode())
    ended = cluster.wait_end(job)

    assert cluster.proxies.store.has_lost_reply
    assert_stored_once(cluster, ended)
    assert (ended["failures"], len(cluster.paid(job))) == (0, int(model == PAID))


def delayed(model: str) -> dict[str, Any]:
    """A job that leaves time to set up what happens to its put."""
    return {"input": {"fake": {"seconds": 0.5}}} if model == PAID else {"input": {"delay_seconds": 0.5}}
