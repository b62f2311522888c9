"""What must hold of a Fleek whatever was done to it, as functions of what is known at the end.

`Facts` are plain rows, so that a test can doctor them and see that each invariant can be broken.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fleek.core.events import EventKind, fold
from tests.cluster.cluster import FREE, PASSWORD, Cluster

Row = Mapping[str, Any]
_VENDOR_SEEDS = 2**31
"""Replicate's models take seeds of 31 bits; ours have 32."""
_YOUNG = timedelta(days=1)
_CRASHES = (
    "_crashed",
    "request_failed",
    "worker_loop_failed",
    "waiters_sweep_failed",
    "announcement_listener_failed",
    "Traceback (most recent call last)",
)
"""What a process says when something happened that nobody thought of."""

JOBS = """
SELECT jobs.*, prompt, CAST(parameters ->> 'seed' AS bigint) AS seed,
    lease_expires_at < clock_timestamp() AS is_lease_expired
FROM jobs JOIN job_requests ON job_requests.job_id = jobs.id
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known at the end of a run."""

    jobs: Sequence[Row]
    """Rows of `jobs` with `prompt`, `seed` and `is_lease_expired`."""
    events: Sequence[Row]
    """By job and sequence."""
    submissions: Sequence[Row]
    media: Sequence[Row]
    ledger: Sequence[Row]
    """What the vendor was asked for, in order."""
    objects: Mapping[str, datetime]
    """When each object of the bucket was written, by its key."""
    digests: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Size and SHA-256 of each object, by its key."""
    logs: Mapping[str, str] = field(default_factory=dict)
    """What each process has said, by its name."""
    secrets: Sequence[str] = ()
    accepted: Mapping[str, str] = field(default_factory=dict)
    """The id that each idempotency key was answered with, as clients know it."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant: how much was looked at, and what breaks it."""

    name: str
    checked: int
    broken: Sequence[str]


def collect(cluster: Cluster, accepted: Mapping[str, str] | None = None) -> Facts:
    """The facts of a cluster in which nothing moves any more."""
    return Facts(
        jobs=cluster.query(JOBS),
        events=cluster.query("SELECT * FROM events ORDER BY job_id, sequence"),
        submissions=cluster.query("SELECT * FROM submissions ORDER BY job_id, ordinal"),
        media=cluster.query("SELECT * FROM media"),
        ledger=cluster.vendor.ledger,
        objects=cluster.objects(),
        digests=cluster.digests(),
        logs={part.name: part.log.read_text() for part in (*cluster.apis, *cluster.workers)},
        secrets=(
            cluster.vendor.token,
            cluster.environment["FLEEK_SECRET_KEY"],
            cluster.environment["AWS_SECRET_ACCESS_KEY"],
            PASSWORD,
        ),
        accepted=accepted or {},
    )


def check_invariants(cluster: Cluster) -> None:
    """AssertionError with everything that is broken."""
    broken = {verdict.name: verdict.broken for verdict in judge(collect(cluster)) if verdict.broken}

    assert not broken, broken


def judge(facts: Facts) -> list[Verdict]:
    """Every invariant."""
    return [verdict_of(name, rule(facts)) for name, rule in INVARIANTS.items()]


Finding = Iterator[str | None]
"""One item for each thing that was looked at: what is wrong with it, or None."""


def verdict_of(name: str, findings: Finding) -> Verdict:
    """What the findings come to."""
    found = list(findings)
    return Verdict(name, len(found), [one for one in found if one is not None])


def _accepted_jobs_exist(facts: Facts) -> Finding:
    known = {str(job["id"]) for job in facts.jobs}
    for key, job_id in facts.accepted.items():
        yield None if job_id in known else f"job {job_id} (key {key}) was accepted and is not there"


def _one_completion(facts: Facts) -> Finding:
    for job_id, events in _by_job(facts.events).items():
        times = sum(event["kind"] == EventKind.COMPLETED for event in events)
        yield None if times <= 1 else f"job {job_id} was completed {times} times"


def _history_leads_to_state(facts: Facts) -> Finding:
    histories = _by_job(facts.events)
    for job in facts.jobs:
        events = histories.get(job["id"], [])
        sequences = [event["sequence"] for event in events]
        is_whole = sequences == list(range(1, job["event_sequence"] + 1))
        state = fold(EventKind(event["kind"]) for event in events)
        fits = is_whole and state == job["status"]
        yield None if fits else f"job {job['id']} is {job['status']}, its events {sequences} say {state}"


def _running_has_lease(facts: Facts) -> Finding:
    for job in facts.jobs:
        is_left = job["status"] == "processing" and job["is_lease_expired"]
        yield f"job {job['id']} runs without a lease" if is_left else None


def _completed_is_stored(facts: Facts) -> Finding:
    stored = defaultdict(list)
    for media in facts.media:
        stored[media["job_id"]].append(media)
    for job in facts.jobs:
        if job["status"] == "completed":
            missing = [media["index"] for media in stored[job["id"]] if media["key"] not in facts.objects]
            is_whole = len(stored[job["id"]]) == job["n"] and not missing
            yield None if is_whole else f"job {job['id']} is completed and misses results {missing}"


def _stored_is_what_was_made(facts: Facts) -> Finding:
    """Size and SHA-256 of each object are those of its row."""
    for media in facts.media:
        if media["key"] in facts.digests:
            is_same = facts.digests[media["key"]] == (media["size_bytes"], media["sha256"])
            yield None if is_same else f"object {media['key']} is not what its row says"


def _objects_are_named(facts: Facts) -> Finding:
    named = {media["key"] for media in facts.media}
    for key, written in facts.objects.items():
        is_fine = key in named or facts.now - written < _YOUNG
        yield None if is_fine else f"object {key} is named by no row, and not young"


def _creates_are_recorded(facts: Facts) -> Finding:
    """Creates that cost money are at most as many as the submissions of that job and index."""
    creates = _creates(facts)
    orders = defaultdict(int)
    for order in facts.submissions:
        orders[order["job_id"], order["first_index"]] += 1
    for (job_id, index), entries in creates.items():
        paid, recorded = len(entries), orders[job_id, index]
        yield None if paid <= recorded else f"job {job_id}, output {index}: paid {paid}, recorded {recorded}"


def _orders_do_not_overlap(facts: Facts) -> Finding:
    """An order is placed only when the one before it, of the same job and index, was resolved."""
    orders = defaultdict(list)
    for order in facts.submissions:
        orders[order["job_id"], order["first_index"]].append(order)
    for (job_id, index), placed in orders.items():
        placed.sort(key=lambda order: order["ordinal"])
        pairs = itertools.pairwise(placed)
        apart = all(a["resolved_at"] is not None and a["resolved_at"] <= b["intent_at"] for a, b in pairs)
        yield None if apart else f"job {job_id}, output {index}: two orders were open at once"


def _paid_once(facts: Facts) -> Finding:
    """More than one paid create needs a recorded reason for each but one: failed, canceled or ambiguous."""
    reasons = defaultdict(int)
    for order in facts.submissions:
        if order["resolution"] in {"failed", "canceled", "ambiguous"}:
            reasons[order["job_id"], order["first_index"]] += 1
    for (job_id, index), entries in _creates(facts).items():
        allowed = 1 + reasons[job_id, index]
        is_fine = len(entries) <= allowed
        yield None if is_fine else f"job {job_id}, output {index}: paid {len(entries)} times silently"


def _ended_has_no_open_order(facts: Facts) -> Finding:
    ended = {job["id"] for job in facts.jobs if job["finished_at"] is not None}
    for order in facts.submissions:
        if order["job_id"] in ended:
            is_open = order["resolved_at"] is None
            yield f"job {order['job_id']} has ended, order {order['ordinal']} is open" if is_open else None


def _nobody_was_surprised(facts: Facts) -> Finding:
    for name, said in facts.logs.items():
        found = [line for line in said.splitlines() if any(word in line for word in _CRASHES)]
        yield f"{name}: {found[0][:500]} ({len(found)} lines)" if found else None


def _secrets_are_kept(facts: Facts) -> Finding:
    for name, said in facts.logs.items():
        yield f"{name} wrote a secret" if any(secret in said for secret in facts.secrets) else None


INVARIANTS: Mapping[str, Callable[[Facts], Finding]] = {
    "no accepted job is missing": _accepted_jobs_exist,
    "completed at most once": _one_completion,
    "the state is what the events say": _history_leads_to_state,
    "what runs has a lease": _running_has_lease,
    "what is completed is stored": _completed_is_stored,
    "what is stored is what its row says": _stored_is_what_was_made,
    "every object is named by a row, or young": _objects_are_named,
    "every paid create is recorded": _creates_are_recorded,
    "no two orders are open at once": _orders_do_not_overlap,
    "nothing is paid twice silently": _paid_once,
    "what has ended has no open order": _ended_has_no_open_order,
    "nothing unexpected was logged": _nobody_was_surprised,
    "no secret was logged": _secrets_are_kept,
}


def _by_job(rows: Iterable[Row]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["job_id"]].append(row)
    return found


def _creates(facts: Facts) -> dict[tuple[Any, int], list[Row]]:
    """Creates that cost money, by the job and the index that they were for; prompts tell jobs apart."""
    jobs = {job["prompt"]: job for job in facts.jobs if job["model"] != FREE}
    found: dict[tuple[Any, int], list[Row]] = defaultdict(list)
    for entry in facts.ledger:
        if entry["id"] is None:
            continue
        job = jobs.get(entry["input"]["prompt"])
        # A create for no job at all is one too: it is recorded nowhere.
        index = 0 if job is None else (entry["input"]["seed"] - job["seed"]) % _VENDOR_SEEDS
        found[None if job is None else job["id"], index].append(entry)
    return found
