"""Wall clocks that are wrong by an hour, or are set while all runs: rows 30 and 31 of the fault matrix.

Only the database's clock decides about leases and due times; when that one is set, leases shift at most by
as much, and the fence holds all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from tests.cluster.clock import CAN_SHIFT, Clock
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)
MINUTES = timedelta(minutes=5)
"""Far longer than a lease, and shorter than an attempt may take."""
STEP = timedelta(seconds=8)


@pytest.fixture(autouse=True)
def needs_clocks() -> None:
    if not CAN_SHIFT:
        pytest.skip("needs Linux and a C compiler")


def lease_left(cluster: Cluster, job_id: str) -> float:
    """Seconds that the job's lease still holds, by the database's clock."""
    sql = (
        "SELECT extract(epoch FROM lease_expires_at - clock_timestamp())::float8 AS left FROM jobs"
        " WHERE id = $1::uuid"
    )
    return float(cluster.query(sql, job_id)[0]["left"] or 0)


def wait_for_order(cluster: Cluster, job_id: str) -> None:
    cluster.wait_for(job_id, lambda job: job["submissions"] and job["submissions"][0]["accepted_at"])


def slow_job(cluster: Cluster, prompt: str, seconds: float) -> str:
    """The id of a paid job that is running at the provider."""
    job = cluster.submit(prompt, model=PAID, input={"fake": {"seconds": seconds}})
    wait_for_order(cluster, job)
    return job


def assert_undisturbed(cluster: Cluster, job: dict[str, Any]) -> None:
    """One attempt, one order, one payment."""
    assert job["status"] == "completed"
    assert (len(job["attempts"]), job["failures"], len(cluster.paid(job["id"]))) == (1, 0, 1)


def time_in(said: str) -> str:
    """The last time stamp that a process wrote."""
    return said.rpartition('"timestamp": "')[2][:13]


def test_workers_whose_clocks_are_wrong_or_jump_do_the_same_work() -> None:
    with open_cluster(apis=1, workers=2, start=False) as cluster:
        clocks = [Clock(cluster.folder / f"clock-{sign}", sign * HOUR) for sign in (1, -1)]
        cluster.apis[0].start()
        for worker, clock in zip(cluster.workers, clocks, strict=True):
            worker.start(**clock.environment)
        # The clocks are wrong indeed.
        assert time_in(cluster.workers[0].said) > time_in(cluster.workers[1].said)
        jobs = [cluster.submit(f"wrong clock {number}", model=PAID) for number in range(12)]
        ended = [cluster.wait_end(job) for job in jobs]
        running = [slow_job(cluster, f"jumping clock {number}", 3) for number in range(4)]
        left = [lease_left(cluster, job) for job in running]
        for clock, shift in zip(clocks, (-HOUR, HOUR), strict=True):
            clock.set(shift)
        jumped = [cluster.wait_end(job) for job in running]

        for job in (*ended, *jumped):
            assert_undisturbed(cluster, job)
        assert all(0 < seconds <= 3 for seconds in left)
        check_invariants(cluster)


@contextmanager
def cluster_with_clock() -> Iterator[tuple[Cluster, Clock]]:
    """A cluster whose PostgreSQL has a clock that can be set."""
    with open_cluster(apis=1, workers=2, start=False) as cluster:
        clock = Clock(cluster.folder / "clock")
        cluster.postgres.stop()
        cluster.postgres.programs = clock.wrap(
            cluster.postgres.programs, "postgres", cluster.folder / "programs-with-clock"
        )
        cluster.start_postgres()
        for part in (*cluster.apis, *cluster.workers):
            part.start()
        yield cluster, clock


def test_a_database_clock_that_is_set_takes_no_job_from_its_worker() -> None:
    with cluster_with_clock() as (cluster, clock):
        for shift, prompt in ((MINUTES, "ahead"), (-MINUTES, "back")):
            job = slow_job(cluster, f"the clock goes {prompt}", 4)
            clock.set(shift)
            assert_undisturbed(cluster, cluster.wait_end(job))
            # What is accepted by the new time runs by the new time.
            assert_undisturbed(cluster, cluster.wait_end(cluster.submit(f"after {prompt}", model=PAID)))
        check_invariants(cluster)


def test_a_database_clock_that_passes_an_attempts_deadline_leads_to_no_second_payment() -> None:
    """By the new time the worker is wedged: its job goes to another one, which resumes the order."""
    with cluster_with_clock() as (cluster, clock):
        job = slow_job(cluster, "the clock passes the deadline", 4)
        clock.set(HOUR)
        ended = cluster.wait_end(job)

        assert (ended["status"], len(ended["submissions"]), len(cluster.paid(job))) == ("completed", 1, 1)
        check_invariants(cluster)


def test_a_dead_workers_lease_lasts_longer_by_as_much_as_the_clock_was_set_back() -> None:
    with cluster_with_clock() as (cluster, clock):
        job = slow_job(cluster, "a dead worker's lease", 3)
        worker = cluster.job(job)["attempts"][0]["worker"]
        victim = next(part for part in cluster.workers if f"-{part.pid}-" in worker)
        victim.kill()
        clock.set(-STEP)
        left, began = lease_left(cluster, job), time.monotonic()
        ended = cluster.wait_end(job)

        assert 0 < left <= 3 + STEP.total_seconds()
        assert time.monotonic() - began >= left
        assert [attempt["outcome"] for attempt in ended["attempts"]] == ["lease_expired", "completed"]
        assert len(cluster.paid(job)) == 1
        check_invariants(cluster)
