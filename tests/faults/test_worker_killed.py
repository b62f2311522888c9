"""A worker is killed, frozen or stuck at every place of an attempt where that makes a difference.

Each case has a model, a queue and a worker of its own, so that all of them run at once. When every worker
is gone, one that nothing is wrong with serves all the queues, and finishes what the others left.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.cluster.cluster import END_SECONDS, PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants
from tests.cluster.parts import WorkerPart

Job = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One fault."""

    arm: str = ""
    """The failpoint of the case's own worker."""
    order: Mapping[str, Any] = field(default_factory=dict)
    """What the vendor does with the order."""
    moment: Callable[[Cluster, Job], object] | None = None
    """When something is done to the worker from outside."""
    act: Callable[[WorkerPart], None] = WorkerPart.kill
    ends_worker: bool = True


def is_accepted(_: Cluster, job: Job) -> bool:
    return bool(job["submissions"] and job["submissions"][0]["accepted_at"])


def has_arrived(cluster: Cluster, job: Job) -> bool:
    return len(cluster.paid(job["id"])) == 1


CASES = {
    "before-the-intent": Case("claim.after_commit=kill"),
    "after-the-intent": Case("order.after_intent=kill"),
    "within-the-create": Case(order={"reply_delay": 10}, moment=has_arrived),
    "after-the-create": Case("order.after_create=kill"),
    "after-the-create-and-forgotten": Case("order.after_create=kill", {"end": "lost"}),
    "after-the-record": Case("order.after_record=kill"),
    "while-polling": Case(order={"seconds": 5}, moment=is_accepted),
    "before-the-put": Case("output.before_put=kill"),
    "after-the-put": Case("output.after_put=kill"),
    "before-the-completion": Case("finish.before_commit=kill"),
    "after-the-completion": Case("finish.after_commit=kill"),
    "frozen": Case(
        "order.after_record=wait(5000)", moment=is_accepted, act=WorkerPart.freeze, ends_worker=False
    ),
    "stuck": Case("output.before_put=wait(60000)@1", ends_worker=False),
    "no-reply": Case(order={"cut": "after"}, ends_worker=False),
    "no-reply-and-forgotten": Case(order={"cut": "after", "end": "lost"}, ends_worker=False),
}
CONFIG = "".join(
    f'[models."{name}"]\nprovider = "replicate"\nref = "{PAID}"\nqueue = "{name}"\n'
    + ('attempt_timeout = "6s"\n' if name == "stuck" else "")
    for name in CASES
)


@dataclass(frozen=True, slots=True)
class Life:
    """What became of a case's job."""

    job: Job
    """As a client sees it at the end."""
    paid: int
    """Creates at the vendor."""
    events: list[str]
    said: str
    """What the case's own worker said."""
    waiter_was_told: str | None = None
    """The status that a client was told that had waited for the end."""

    @property
    def outcomes(self) -> list[str]:
        return [attempt["outcome"] for attempt in self.job["attempts"]]

    @property
    def orders(self) -> list[str]:
        return [order["resolution"] for order in self.job["submissions"]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """An api, and no worker yet. The invariants hold at the end."""
    with open_cluster(workers=0, config=CONFIG, reconcile_grace="6") as cluster:
        yield cluster
        check_invariants(cluster)


def wait_for_end(cluster: Cluster, job_id: str) -> Job:
    """What a client is told that waits for the end of a job."""
    with cluster.client(timeout=2 * END_SECONDS) as client:
        path = f"/v1/media/status/{job_id}"
        return dict(client.get(path, params={"wait": 50}).raise_for_status().json())


@pytest.fixture(scope="module")
def waiters() -> Iterator[Executor]:
    """A thread for the one client that waits."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def lives(cluster: Cluster, waiters: Executor) -> dict[str, Life]:
    """Every case, from its fault to its end."""
    own = start_own_workers(cluster)
    # Those that somebody must be quick for come first.
    names = sorted(CASES, key=lambda name: CASES[name].moment is None)
    jobs = {name: strike(cluster, name, own[name]) for name in names}
    told = waiters.submit(wait_for_end, cluster, jobs["after-the-completion"])
    for name, case in CASES.items():
        if case.ends_worker:
            assert own[name].wait_end() == -signal.SIGKILL, own[name].said
    left = [name for name, case in CASES.items() if case.ends_worker or name == "frozen"]
    cluster.add_worker("--queues", ",".join(left)).start()
    for job in jobs.values():
        cluster.wait_end(job)
    thaw(cluster, own["frozen"])
    lives = {name: look_back(cluster, job, own[name]) for name, job in jobs.items()}
    name = "after-the-completion"
    return lives | {name: replace(lives[name], waiter_was_told=told.result(END_SECONDS)["status"])}


def start_own_workers(cluster: Cluster) -> dict[str, WorkerPart]:
    own = {name: cluster.add_worker("--queues", name) for name in CASES}
    for name, worker in own.items():
        worker.launch(**({"FLEEK_FAILPOINTS": CASES[name].arm} if CASES[name].arm else {}))
    for worker in own.values():
        worker.wait_ready()
    return own


def strike(cluster: Cluster, name: str, worker: WorkerPart) -> str:
    """A new job, once what is done to its worker from outside is done."""
    case = CASES[name]
    job = cluster.submit(f"a lighthouse, {name}", model=name, input={"fake": case.order})
    if case.moment is not None:
        moment = case.moment
        cluster.wait_for(job, lambda seen: moment(cluster, seen))
        case.act(worker)
    return job


def thaw(cluster: Cluster, worker: WorkerPart) -> None:
    """Let a worker go on whose job is done, until it has understood that."""
    worker.thaw()
    cluster.wait_until(lambda: "lease_lost" in worker.said)


def look_back(cluster: Cluster, job_id: str, worker: WorkerPart) -> Life:
    events = cluster.query("SELECT kind FROM events WHERE job_id = $1::uuid ORDER BY sequence", job_id)
    paid = len(cluster.paid(job_id))
    return Life(cluster.job(job_id), paid, [event["kind"] for event in events], worker.said)


def test_a_worker_that_dies_before_its_intent_has_paid_nothing(lives: Mapping[str, Life]) -> None:
    life = lives["before-the-intent"]

    assert (life.job["status"], life.paid) == ("completed", 1)
    assert life.outcomes == ["lease_expired", "completed"]
    assert life.orders == ["result"]


def test_an_order_that_may_have_been_placed_is_never_placed_again(lives: Mapping[str, Life]) -> None:
    life = lives["after-the-intent"]

    assert (life.job["status"], life.paid) == ("error", 0)
    assert life.job["error"]["code"] == "ambiguous_submission"
    assert life.orders == ["ambiguous"]


@pytest.mark.parametrize("name", ["within-the-create", "after-the-create"])
def test_an_order_whose_handle_died_with_its_worker_is_found_and_adopted(
    lives: Mapping[str, Life], name: str
) -> None:
    life = lives[name]

    assert (life.job["status"], life.paid) == ("completed", 1)
    assert life.outcomes == ["lease_expired", "completed"]
    assert life.orders == ["result"]


@pytest.mark.parametrize("name", ["after-the-create-and-forgotten", "no-reply-and-forgotten"])
def test_an_order_that_the_vendor_does_not_list_is_given_up_and_paid_once(
    lives: Mapping[str, Life], name: str
) -> None:
    life = lives[name]

    assert (life.job["status"], life.paid) == ("error", 1)
    assert life.job["error"]["code"] == "ambiguous_submission"
    assert life.orders == ["ambiguous"]


def test_an_order_whose_reply_was_lost_is_found_by_the_same_attempt(lives: Mapping[str, Life]) -> None:
    life = lives["no-reply"]

    assert (life.job["status"], life.paid) == ("completed", 1)
    assert life.outcomes == ["completed"]


@pytest.mark.parametrize("name", ["after-the-record", "while-polling"])
def test_the_next_owner_polls_what_the_dead_one_ordered(lives: Mapping[str, Life], name: str) -> None:
    life = lives[name]

    assert (life.job["status"], life.paid) == ("completed", 1)
    assert life.outcomes == ["lease_expired", "completed"]
    assert life.events == ["accepted", "claimed", "submitted", "deferred", "resumed", "completed"]


@pytest.mark.parametrize("name", ["before-the-put", "after-the-put", "before-the-completion"])
def test_a_result_that_was_not_stored_to_the_end_is_stored_again_and_not_ordered(
    lives: Mapping[str, Life], name: str
) -> None:
    life = lives[name]

    assert (life.job["status"], life.paid) == ("completed", 1)
    assert life.outcomes == ["lease_expired", "completed"]
    assert len(life.job["media"]) == 1


def test_a_completion_that_nobody_was_told_of_counts_and_waiters_learn_of_it(
    lives: Mapping[str, Life],
) -> None:
    life = lives["after-the-completion"]

    assert life.outcomes == ["completed"]
    assert life.events.count("completed") == 1
    assert life.waiter_was_told == "completed"


def test_a_worker_that_was_frozen_past_its_lease_writes_nothing_when_it_goes_on(
    lives: Mapping[str, Life],
) -> None:
    life = lives["frozen"]

    assert (life.job["status"], life.paid) == ("completed", 1)
    assert life.outcomes == ["lease_expired", "completed"]
    assert life.job["attempts"][0]["worker"] != life.job["attempts"][1]["worker"]
    assert life.events == ["accepted", "claimed", "submitted", "deferred", "resumed", "completed"]
    assert "lease_lost" in life.said


def test_an_attempt_that_is_stuck_ends_by_its_own_deadline_though_its_lease_is_renewed(
    lives: Mapping[str, Life],
) -> None:
    life = lives["stuck"]

    assert (life.job["status"], life.paid) == ("completed", 1)
    assert life.outcomes == ["retry_scheduled", "completed"]
    assert life.job["attempts"][0]["error"]["code"] == "timeout"
