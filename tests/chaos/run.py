"""One run: clients work, the nemesis strikes, everything heals and drains, and the facts are judged."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from tests.chaos import journal
from tests.chaos.clients import Clients, judge_journal
from tests.chaos.faults import KINDS, Fault, plan_faults
from tests.chaos.report import Report
from tests.chaos.workload import plan_errands
from tests.cluster.cluster import Cluster, open_cluster
from tests.cluster.invariants import Facts, Verdict, collect, judge

APIS, WORKERS, SLOTS = 2, 3, 16
_TICK = 0.05
_PATIENCE = 240.0
"""Seconds without any job coming to its end, after which the rest counts as lost."""
_SETTINGS = {"reconcile_grace": "15", "shutdown_grace": "4"}
_UNENDED = "SELECT count(*) AS left FROM jobs WHERE finished_at IS NULL"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a run; everything random follows from it."""

    seed: int
    seconds: float
    jobs: int
    kinds: Sequence[str] = tuple(KINDS)


Tell = Callable[[str], None]
"""Shows people how far it is."""


def run(plan: Plan, folder: Path, tell: Tell) -> Report:
    """The report of a run. Its journal, logs, ledger and rows are left in `folder`."""
    began = time.monotonic()
    tell("starting PostgreSQL, Valkey, a store, a vendor, apis and workers")
    with open_cluster(
        apis=APIS, workers=WORKERS, slots=SLOTS, seed=plan.seed, durable=True, **_SETTINGS
    ) as cluster:
        notes = journal.Journal(folder / "journal.jsonl")
        errands = plan_errands(plan.seed, plan.jobs, plan.seconds * 0.95, APIS)
        clients = Clients(cluster, errands, notes, plan.seed)
        try:
            _strike(cluster, clients, plan_of(plan), plan.seconds, tell)
            _repair(cluster)
            stuck = _drain(cluster, clients, tell)
        finally:
            clients.stop()
            clients.join()
            notes.close()
        tell("judging")
        _stop_processes(cluster)
        facts = collect(cluster, clients.accepted)
        keep_evidence(cluster, facts, folder)
    return _report(plan, facts, clients, stuck, folder, time.monotonic() - began)


def plan_of(plan: Plan) -> list[Fault]:
    """The faults of a plan."""
    return plan_faults(plan.seed, plan.seconds, apis=APIS, workers=WORKERS, kinds=plan.kinds)


def _strike(cluster: Cluster, clients: Clients, faults: Sequence[Fault], seconds: float, tell: Tell) -> None:
    """Begin and end each fault in its time. On this thread: servers die with the one that starts them."""
    steps = [(fault.at, fault, True) for fault in faults]
    steps += [(fault.at + fault.seconds, fault, False) for fault in faults]
    steps.sort(key=lambda step: (step[0], step[2]))
    clients.start()
    began = time.monotonic()
    for at, fault, begins in steps:
        _wait_for(began + at, lambda: tell(f"{time.monotonic() - began:.0f} s, {len(clients.accepted)} jobs"))
        kind = KINDS[fault.kind]
        if begins:
            tell(f"{fault.at:.0f} s: {fault.kind} {fault.target} {fault.arm}".rstrip())
        (kind.begin if begins else kind.end)(cluster, fault)
    _wait_for(began + seconds, lambda: None)


def _wait_for(moment: float, meanwhile: Callable[[], None]) -> None:
    meanwhile()
    while (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, _TICK))


def _repair(cluster: Cluster) -> None:
    """Every part runs, unarmed and unhindered."""
    cluster.heal()
    cluster.vendor.forget_rules()
    for part in (*cluster.apis, *cluster.workers):
        part.thaw()
        if part.exit_code is not None or "failpoints_armed" in part.said:
            part.kill()
            part.launch()
    for part in (*cluster.apis, *cluster.workers):
        part.wait_ready()


def _drain(cluster: Cluster, clients: Clients, tell: Tell) -> list[str]:
    """Wait for the last job; the ids of those that do not move any more."""
    left, moved = -1, time.monotonic()
    while True:
        [row] = cluster.query(_UNENDED)
        if clients.are_done and row["left"] == 0:
            return []
        if row["left"] != left:
            left, moved = row["left"], time.monotonic()
            tell(f"everything is healed; {left} jobs left")
        if time.monotonic() - moved > _PATIENCE:
            found = cluster.query("SELECT id, status, reason FROM jobs WHERE finished_at IS NULL")
            return [f"job {job['id']} is still {job['status']} ({job['reason']})" for job in found]
        time.sleep(0.5)


def _stop_processes(cluster: Cluster) -> None:
    for part in (*cluster.workers, *cluster.apis):
        part.end()


def keep_evidence(cluster: Cluster, facts: Facts, folder: Path) -> None:
    """What somebody would look at who wonders about a run."""
    for name in ("jobs", "events", "submissions", "media"):
        found = getattr(facts, name)
        lines = [json.dumps(dict(row), default=str) for row in found]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    ledger = [json.dumps(entry) for entry in facts.ledger]
    (folder / "ledger.jsonl").write_text("".join(f"{line}\n" for line in ledger))
    for part in (*cluster.apis, *cluster.workers):
        with suppress(FileNotFoundError):
            (folder / part.log.name).write_bytes(part.log.read_bytes())


def _report(
    plan: Plan, facts: Facts, clients: Clients, stuck: Sequence[str], folder: Path, seconds: float
) -> Report:
    entries = list(journal.read(folder / "journal.jsonl"))
    replies = [entry for entry in entries if "told" in entry]
    twice, surprises = judge_journal(entries)
    verdicts = [
        *judge(facts),
        Verdict("every job ends", len(facts.jobs), stuck),
        Verdict("a key makes one job", len(clients.accepted), twice),
        Verdict(
            "no client is left without an answer",
            len(replies),
            [*surprises, *clients.failures],
        ),
    ]
    times = [1000 * one for one in clients.latencies] or [0.0]
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    ends = Counter(job["error_code"] if job["status"] == "error" else job["status"] for job in facts.jobs)
    return Report(
        seed=plan.seed,
        minutes=round(plan.seconds / 60, 2),
        seconds=round(seconds, 1),
        faults=dict(Counter(fault.kind for fault in plan_of(plan))),
        jobs=dict(ends),
        accepted=len(clients.accepted),
        requests=len(replies),
        unanswered=sum(entry["told"] in {None, 503} for entry in replies),
        creates=sum(entry["id"] is not None for entry in facts.ledger),
        rescued=sum(event["data"].get("reason") == "lease_expired" for event in facts.events),
        submit_p50=round(cuts[49], 1),
        submit_p99=round(cuts[98], 1),
        verdicts=verdicts,
    )
