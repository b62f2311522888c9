"""An api is killed while it accepts a job, and a wake-up never leaves or is lost on its way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import redis
from tests.cluster.cluster import Cluster, open_cluster
from tests.cluster.invariants import check_invariants

from fleek.queue.base import WAKE_TASK, broker_queue
from fleek.queue.celery_app import create_celery_app

_SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def whole() -> Iterator[Cluster]:
    """Two apis and two workers. The invariants hold at the end."""
    with open_cluster(apis=2, workers=2) as cluster:
        yield cluster
        check_invariants(cluster)


@pytest.fixture
def cluster(whole: Cluster) -> Cluster:
    """Every part of it runs, and nothing is armed."""
    for part in (*whole.apis, *whole.workers):
        if part.exit_code is not None:
            part.start()
    return whole


def submit_to_armed_api(cluster: Cluster, point: str) -> dict[str, Any]:
    """A request whose api dies at the failpoint; the request's body. Its prompt was its key too."""
    api = cluster.apis[1]
    api.kill()
    api.start(FLEEK_FAILPOINTS=f"{point}=kill")
    body = {"prompt": f"lighthouse-{point}-{time.monotonic_ns()}", **_SMALL}
    with pytest.raises(httpx2.TransportError):
        cluster.post("/v1/media/generate", body, key=body["prompt"], api=1)
    assert api.wait_end() == -signal.SIGKILL
    return body


def jobs_of(cluster: Cluster, body: dict[str, Any]) -> list[str]:
    rows = cluster.query("SELECT job_id FROM job_requests WHERE prompt = $1", body["prompt"])
    return [str(row["job_id"]) for row in rows]


def test_a_job_whose_api_died_before_its_commit_is_not_there_and_its_key_makes_one(cluster: Cluster) -> None:
    body = submit_to_armed_api(cluster, "accept.before_commit")
    before = jobs_of(cluster, body)

    again = cluster.post("/v1/media/generate", body, key=body["prompt"])

    assert before == []
    assert (again.status_code, "idempotency-replayed" in again.headers) == (202, False)
    assert jobs_of(cluster, body) == [again.json()["id"]]
    assert cluster.wait_end(again.json()["id"])["status"] == "completed"


def test_a_job_whose_api_died_after_its_commit_is_what_its_key_leads_to(cluster: Cluster) -> None:
    body = submit_to_armed_api(cluster, "accept.after_commit")
    before = jobs_of(cluster, body)

    again = cluster.post("/v1/media/generate", body, key=body["prompt"])

    assert again.headers["idempotency-replayed"] == "true"
    assert jobs_of(cluster, body) == before == [again.json()["id"]]


def test_a_job_whose_api_died_before_the_wake_up_is_begun_within_seconds(cluster: Cluster) -> None:
    [job_id] = jobs_of(cluster, submit_to_armed_api(cluster, "accept.after_commit"))

    job = cluster.wait_end(job_id)
    [row] = cluster.query("SELECT started_at - created_at AS waited FROM jobs WHERE id = $1::uuid", job_id)

    assert job["status"] == "completed"
    assert row["waited"].total_seconds() < 6


def test_a_wake_up_that_died_with_its_worker_is_not_missed(cluster: Cluster) -> None:
    job = lose_a_wake_up(cluster)

    cluster.workers[0].start()

    assert cluster.wait_end(job)["status"] == "completed"


def lose_a_wake_up(cluster: Cluster) -> str:
    """A job whose wake-up is nowhere any more: the broker gave it to a frozen worker, now killed."""
    worker, other = cluster.workers
    other.kill()
    with redis.Redis(unix_socket_path=str(cluster.valkey.socket)) as client:
        for _ in range(20):
            sent = wake_ups_sent(client)
            worker.freeze()
            job = cluster.submit(f"a lighthouse, lost {sent}")
            cluster.wait_until(lambda sent=sent: wake_ups_sent(client) > sent)
            if client.llen(broker_queue("default")) == 0:
                worker.kill()
                return job
            # Its connection had just ended a turn of waiting: the message lies in the broker.
            worker.thaw()
            cluster.wait_end(job)
    pytest.fail("no wake-up was taken by a frozen worker")


def wake_ups_sent(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"])


def test_wake_ups_that_come_many_times_start_nothing_twice(cluster: Cluster) -> None:
    jobs = [cluster.submit(f"a lighthouse, number {number}") for number in range(15)]
    with create_celery_app(f"unix://{cluster.valkey.socket}") as app:
        for _ in range(100):
            app.send_task(WAKE_TASK, args=["default"], queue=broker_queue("default"))

    attempts = [len(cluster.wait_end(job)["attempts"]) for job in jobs]

    assert attempts == [1] * len(jobs)


@pytest.mark.slow
def test_jobs_of_one_of_two_workers_that_dies_are_finished_by_the_other(cluster: Cluster) -> None:
    slow = {"delay_seconds": 4}
    jobs = [cluster.submit(f"one of many, number {number}", input=slow) for number in range(20)]
    cluster.wait_until(lambda: len(running_on(cluster)) == 2)
    cluster.workers[0].kill()

    ended = [cluster.wait_end(job) for job in jobs]

    assert {job["status"] for job in ended} == {"completed"}
    assert {job["failures"] for job in ended} == {0}


def running_on(cluster: Cluster) -> set[str]:
    rows = cluster.query("SELECT DISTINCT worker FROM jobs WHERE status = 'processing'")
    return {row["worker"] for row in rows}
