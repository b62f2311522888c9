"""The broker is killed, emptied, frozen, full or read-only: rows 17 to 20 of the fault matrix.

Jobs are accepted as before, and run about a second later than with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from tests.cluster.cluster import Cluster, open_cluster
from tests.cluster.invariants import check_invariants
from tests.cluster.load import Answer, Load, generate, slowest, wait_all

ACCEPT_SECONDS = 1.5
"""Three times what a request may take at most, but for one of a hundred."""
RUN_SECONDS = 5.0
"""A job begins within about a second of its request, plus what a busy machine adds."""
MORE_THREADS = 5


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with open_cluster(apis=1, workers=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    yield shared
    shared.heal()
    check_invariants(shared)


def submit_for(cluster: Cluster, seconds: float, name: str) -> list[Answer]:
    """Requests one after the other, ten a second."""
    answers = []
    until = time.monotonic() + seconds
    with cluster.client() as client:
        while time.monotonic() < until:
            answers.append(generate(client, f"{name} {len(answers)}"))
            time.sleep(0.1)
    return answers


def longest_wait(cluster: Cluster, answers: list[Answer]) -> float:
    """Seconds from a job's acceptance to its start, by the database's clock."""
    rows = cluster.query(
        "SELECT extract(epoch FROM max(started_at - created_at))::float8 AS longest FROM jobs"
        " WHERE id = ANY($1::uuid[])",
        [answer.job_id for answer in answers],
    )
    return float(rows[0]["longest"])


def assert_unharmed(cluster: Cluster, answers: list[Answer]) -> None:
    """Every request was accepted in time, and every job ran soon."""
    assert {answer.status for answer in answers} == {202}
    assert slowest(answers) < ACCEPT_SECONDS
    wait_all(cluster, [answer.job_id for answer in answers])
    assert longest_wait(cluster, answers) < RUN_SECONDS


def thread_count(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Threads:")).split()[1])


def broker_state(cluster: Cluster) -> str:
    with cluster.client() as client:
        return str(client.get("/readyz?verbose").json()["checks"]["broker"]["status"])


@pytest.mark.parametrize("seconds", [1.5, pytest.param(30, marks=pytest.mark.slow)])
def test_without_a_broker_jobs_are_accepted_at_once_and_run_soon(cluster: Cluster, seconds: float) -> None:
    cluster.valkey.stop(())
    answers = submit_for(cluster, seconds, f"killed for {seconds}")
    assert_unharmed(cluster, answers)
    assert broker_state(cluster) == "unavailable"

    cluster.start_valkey()
    cluster.wait_until(lambda: broker_state(cluster) == "ok", 20)


def test_a_broker_that_is_emptied_all_the_time_loses_no_job(cluster: Cluster) -> None:
    with Load(cluster, "flushed") as load:
        for _ in range(10):
            time.sleep(0.1)
            cluster.flush_valkey()

    assert len(load.accepted) == len(load.answers) > 10
    wait_all(cluster, load.accepted)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4, 30])
def test_a_frozen_broker_delays_no_request_and_piles_up_no_threads(cluster: Cluster, seconds: float) -> None:
    api, workers = cluster.apis[0], cluster.workers
    assert_unharmed(cluster, submit_for(cluster, 0.5, f"before {seconds} frozen"))
    threads_before = [thread_count(part.pid) for part in (api, *workers)]

    cluster.proxies.valkey.fall_silent()
    answers = submit_for(cluster, seconds, f"frozen for {seconds}")

    assert_unharmed(cluster, answers)
    threads = [thread_count(part.pid) for part in (api, *workers)]
    assert all(now <= before + MORE_THREADS for now, before in zip(threads, threads_before, strict=True))


@pytest.mark.parametrize(
    ("setting", "wrong", "right"),
    [
        pytest.param("maxmemory", "1", "0", marks=pytest.mark.slow, id="full"),
        pytest.param("min-replicas-to-write", "1", "0", id="read-only"),
    ],
)
def test_a_broker_that_refuses_writes_harms_no_job(
    cluster: Cluster, setting: str, wrong: str, right: str
) -> None:
    with redis.Redis(unix_socket_path=str(cluster.valkey.socket)) as client:
        client.config_set(setting, wrong)
        try:
            answers = submit_for(cluster, 1.5, setting)
            assert_unharmed(cluster, answers)
        finally:
            client.config_set(setting, right)
