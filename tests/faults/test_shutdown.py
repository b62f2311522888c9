"""A worker that is told to end with fifty jobs under way: all finish or go on elsewhere; nothing counts."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from tests.cluster.cluster import FREE, PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

JOBS = 50
"""Half of them paid."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One api and two workers, the second of which is not started."""
    with open_cluster(workers=2, slots=64, start=False, shutdown_grace="2") as cluster:
        for part in (cluster.apis[0], cluster.workers[0]):
            part.start()
        yield cluster


def submit_many(cluster: Cluster) -> list[str]:
    """Jobs of which some end within the grace time, and some long after it."""
    made = []
    for number in range(JOBS // 2):
        seconds = 1 + number % 5 * 2
        script = {"fake": {"seconds": seconds}}
        made.append(cluster.submit(f"paid {number}", model=PAID, input=script))
        made.append(cluster.submit(f"free {number}", model=FREE, input={"delay_seconds": seconds}))
    return made


def all_run(cluster: Cluster) -> bool:
    """Whether every job was claimed, and every paid one ordered."""
    [row] = cluster.query("SELECT count(*) AS orders FROM submissions WHERE handle IS NOT NULL")
    [claimed] = cluster.query("SELECT count(*) AS jobs FROM attempts")
    return bool(row["orders"] == JOBS // 2 and claimed["jobs"] >= JOBS)


def check_nothing_counted(cluster: Cluster, made: Sequence[str]) -> None:
    rows = cluster.query("SELECT id, status, failures, deferrals, crashes FROM jobs")

    assert {str(row["id"]) for row in rows} == set(made)
    assert {(row["failures"], row["deferrals"], row["crashes"]) for row in rows} == {(0, 0, 0)}
    assert {row["status"] for row in rows} <= {"in_queue", "completed"}


def check_continued(cluster: Cluster, made: Sequence[str]) -> None:
    """A second worker ends all of them, and pays for none again."""
    cluster.workers[1].start()
    ended = [cluster.wait_end(job_id) for job_id in made]

    assert Counter(job["status"] for job in ended) == {"completed": JOBS}
    assert len([entry for entry in cluster.vendor.ledger if entry["id"]]) == JOBS // 2
    check_invariants(cluster)


def test_all_jobs_finish_or_are_given_back_and_their_orders_are_followed_on(cluster: Cluster) -> None:
    made = submit_many(cluster)
    cluster.wait_until(lambda: all_run(cluster))

    code = cluster.workers[0].end()

    outcomes = Counter(row["outcome"] for row in cluster.query("SELECT outcome FROM attempts"))
    assert code == 0
    assert set(outcomes) == {"completed", "interrupted"}
    check_nothing_counted(cluster, made)
    check_continued(cluster, made)


@pytest.mark.slow
@pytest.mark.parametrize(
    "second",
    [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL],
    ids=lambda number: signal.Signals(number).name,
)
def test_a_second_signal_at_any_moment_is_safe(cluster: Cluster, second: signal.Signals) -> None:
    cluster.vendor.on("create", times=None, reply_delay=1)
    made = submit_many(cluster)
    cluster.wait_until(lambda: len(cluster.vendor.ledger) > JOBS // 4)

    cluster.workers[0].send(signal.SIGTERM)
    time.sleep(0.3)
    cluster.workers[0].send(second)
    cluster.workers[0].wait_end()

    cluster.vendor.forget_rules()
    check_continued(cluster, made)
