"""Workers die of one job again and again: it is given up, unless there is an order that others can follow."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

pytestmark = pytest.mark.slow

CRASHES = 3
AT_CLAIM = "claim.after_commit=kill"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """An api, and a worker that is not started. The invariants hold at the end."""
    with open_cluster(workers=0) as cluster:
        cluster.add_worker()
        yield cluster
        check_invariants(cluster)


def crash(cluster: Cluster, arm: str) -> None:
    """Let the worker run until it dies at the failpoint."""
    worker = cluster.workers[0]
    worker.launch(FLEEK_FAILPOINTS=arm)
    assert worker.wait_end() == -signal.SIGKILL, worker.said


def test_a_job_that_three_workers_died_of_is_given_up(cluster: Cluster) -> None:
    job_id = cluster.submit("a lighthouse that kills")
    for _ in range(CRASHES):
        crash(cluster, AT_CLAIM)
    cluster.workers[0].start()

    job = cluster.wait_end(job_id)

    assert (job["status"], job["error"]["code"]) == ("error", "crash_loop")
    outcomes = [attempt["outcome"] for attempt in job["attempts"]]
    assert outcomes == ["lease_expired", "lease_expired", "crash_loop"]
    assert job["failures"] == 0


def test_a_job_whose_order_is_open_is_followed_on_however_many_workers_die(cluster: Cluster) -> None:
    job_id = cluster.submit("a lighthouse that was ordered", model=PAID)
    crash(cluster, "order.after_record=kill")
    for _ in range(CRASHES):
        crash(cluster, AT_CLAIM)
    cluster.workers[0].start()

    job = cluster.wait_end(job_id)

    assert (job["status"], len(cluster.paid(job_id))) == ("completed", 1)
    outcomes = [attempt["outcome"] for attempt in job["attempts"]]
    assert outcomes == [*["lease_expired"] * (CRASHES + 1), "completed"]
