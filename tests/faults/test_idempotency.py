"""Many requests with one key at once, over two api processes: row 45 of the fault matrix."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest
from tests.cluster.cluster import Cluster, open_cluster
from tests.cluster.invariants import check_invariants
from tests.cluster.load import Answer, at_once, generate

PARALLEL = 200


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with open_cluster(apis=2, workers=1) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    yield shared
    shared.wait_until(lambda: not shared.query("SELECT id FROM jobs WHERE finished_at IS NULL"), 40)
    check_invariants(shared)


def ask_at_once(cluster: Cluster, key: str, *prompts: str) -> list[Answer]:
    """The same key from everywhere, with these prompts in turn."""
    return at_once(
        cluster,
        [
            lambda client, prompt=prompt: generate(client, prompt, key=key)
            for prompt in itertools.islice(itertools.cycle(prompts), PARALLEL)
        ],
    )


def jobs_of(cluster: Cluster, key: str) -> list[str]:
    """Every job that carries one of the prompts of a key."""
    rows = cluster.query("SELECT job_id FROM job_requests WHERE prompt LIKE $1", f"{key} %")
    return [str(row["job_id"]) for row in rows]


def repeat(cluster: Cluster, key: str, prompt: str, api: int) -> Answer:
    with cluster.client(api) as client:
        return generate(client, prompt, key=key)


def assert_replayed(answer: Answer, job_id: str) -> None:
    assert (answer.status, answer.job_id) == (202, job_id)
    assert answer.headers["Idempotency-Replayed"] == "true"


def test_parallel_requests_with_one_key_make_one_job(cluster: Cluster) -> None:
    answers = ask_at_once(cluster, "same", "same body")
    [job] = jobs_of(cluster, "same")
    accepted = [answer for answer in answers if answer.status == httpx2.codes.ACCEPTED]
    conflicts = [answer for answer in answers if answer.status == httpx2.codes.CONFLICT]

    assert len(accepted) + len(conflicts) == PARALLEL, Counter(answer.status for answer in answers)
    assert {answer.job_id for answer in accepted} == {job}
    assert sum("Idempotency-Replayed" not in answer.headers for answer in accepted) == 1
    assert all("Retry-After" in answer.headers for answer in conflicts)
    for api in (0, 1):
        assert_replayed(repeat(cluster, "same", "same body", api), job)


@pytest.mark.slow
def test_parallel_requests_with_one_key_and_two_bodies_make_one_job(cluster: Cluster) -> None:
    answers = ask_at_once(cluster, "torn", "torn this way", "torn that way")
    [job] = jobs_of(cluster, "torn")
    found = Counter(answer.status for answer in answers)
    [winner] = {str(answer.body["prompt"]) for answer in answers if answer.status == 202}
    [loser] = {"torn this way", "torn that way"} - {winner}

    assert set(found) <= {202, 409, 422}, found
    assert found[422] > 0
    assert {answer.job_id for answer in answers if answer.status == 202} == {job}
    assert {a.body["code"] for a in answers if a.status == 422} == {"idempotency_mismatch"}
    assert_replayed(repeat(cluster, "torn", winner, 0), job)
    assert repeat(cluster, "torn", loser, 1).status == 422


@pytest.mark.slow
def test_a_cut_in_the_middle_of_parallel_requests_leaves_one_job(cluster: Cluster) -> None:
    def call(client: httpx2.Client, number: int) -> Answer:
        if number % 50 == 0:
            cluster.proxies.postgres.cut()
        return generate(client, "cut off", key="cut")

    answers = at_once(
        cluster, [lambda client, number=number: call(client, number) for number in range(PARALLEL)]
    )
    cluster.wait_until(lambda: repeat(cluster, "cut", "cut off", 0).status == 202)
    [job] = jobs_of(cluster, "cut")

    assert {answer.status for answer in answers} <= {202, 409, 503}
    assert {answer.job_id for answer in answers if answer.status == 202} <= {job}
    assert all("Retry-After" in answer.headers for answer in answers if answer.status != 202)
    for api in (0, 1):
        assert_replayed(repeat(cluster, "cut", "cut off", api), job)
