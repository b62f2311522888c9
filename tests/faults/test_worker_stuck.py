"""A worker lives and does nothing: its loop stands still, or an attempt hangs where no time-out reaches."""

from __future__ import annotations

import pytest
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

pytestmark = pytest.mark.slow

STANDSTILL = 25
"""Seconds: four times what it takes to lose a lease and a job."""
CONFIG = f"""
[models.short]
provider = "replicate"
ref = "{PAID}"
attempt_timeout = "3s"
"""


def end_with_another_worker(cluster: Cluster, job_id: str) -> dict[str, object]:
    """The job, ended by a second worker, and left alone by the first that wakes up after it."""
    cluster.add_worker().start()
    ended = cluster.wait_end(job_id, 120)
    cluster.wait_until(lambda: "lease_lost" in cluster.workers[0].said)
    check_invariants(cluster)
    assert cluster.job(job_id) == ended
    return ended


def test_a_worker_whose_event_loop_stands_still_loses_its_job_and_writes_nothing_after() -> None:
    with open_cluster(arm=f"order.after_record=block({STANDSTILL * 1000})") as cluster:
        job_id = cluster.submit("a lighthouse", model=PAID)
        cluster.wait_for(job_id, lambda job: job["submissions"] and job["submissions"][0]["accepted_at"])
        job = end_with_another_worker(cluster, job_id)
        paid = len(cluster.paid(job_id))

    assert (job["status"], paid) == ("completed", 1)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["lease_expired", "completed"]


def test_an_attempt_that_hangs_under_a_healthy_lease_is_taken_from_its_worker() -> None:
    with open_cluster(config=CONFIG, arm="claim.after_commit=wait(600000)") as cluster:
        job_id = cluster.submit("a lighthouse", model="short")
        cluster.wait_for(job_id, lambda job: job["attempts"])
        job = end_with_another_worker(cluster, job_id)
        paid = len(cluster.paid(job_id))

    assert (job["status"], paid) == ("completed", 1)
    # The stuck worker may claim it once more, and hang again, before the other one does.
    *lost, last = [attempt["outcome"] for attempt in job["attempts"]]
    assert (set(lost), last) == ({"lease_expired"}, "completed")
