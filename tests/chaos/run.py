"""One run: clients work, the nemesis strikes, everything heals and drains, and the facts are judged."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import journal
from tests.chaos.checker import Complaints, figures_of, judge_run
from tests.chaos.clients import Clients
from tests.chaos.faults import KINDS, Fault, plan_faults
from tests.chaos.progress import Progress
from tests.chaos.report import Report
from tests.chaos.workload import plan_errands
from tests.cluster.cluster import Cluster, open_cluster
from tests.cluster.invariants import Facts, collect
from tests.cluster.parts import STOP_SECONDS

APIS, WORKERS, SLOTS = 2, 3, 16
_TICK = 0.05
_START_SECONDS = 120
"""A bound against hangs: how long a process may take to start on a busy machine."""
_SUBMITTING_SHARE = 0.95
"""Of the time."""
_PATIENCE = 240.0
"""Seconds without any job coming to its end, after which the rest counts as lost."""
_SETTINGS = {"reconcile_grace": "15", "shutdown_grace": "4"}
_GOOD_ENDS = frozenset({0, -signal.SIGTERM})
"""Exit codes of a process that ended because it was told to: uvicorn, once it is done, ends by the signal."""
_UNENDED = "SELECT id, status, reason FROM jobs WHERE finished_at IS NULL"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a run; everything random follows from it."""

    seed: int
    seconds: float
    jobs: int
    kinds: Sequence[str] = tuple(KINDS)

    def faults(self) -> list[Fault]:
        """By their time."""
        return plan_faults(self.seed, self.seconds, apis=APIS, workers=WORKERS, kinds=self.kinds)


def run(plan: Plan, folder: Path, progress: Progress) -> Report:
    """The report of a run. Its journal, logs, ledger and rows are left in `folder`."""
    began = time.monotonic()
    notes = journal.Journal(folder / "journal.jsonl")
    errands = plan_errands(plan.seed, plan.jobs, plan.seconds * _SUBMITTING_SHARE, APIS)
    with open_cluster(
        apis=APIS, workers=WORKERS, slots=SLOTS, seed=plan.seed, durable=True, **_SETTINGS
    ) as cluster:
        clients = Clients([api.url for api in cluster.apis], errands, notes, plan.seed)
        progress.count(cluster, lambda: clients.accepted)
        try:
            facts, complaints = _work(plan, cluster, clients, progress)
            _keep_rows(facts, folder)
        finally:
            progress.stop_counting()
            clients.stop()
            _keep_logs(cluster, folder)
    clients.join()
    notes.close()
    entries = list(journal.read(folder / "journal.jsonl"))
    return Report(
        seed=plan.seed,
        minutes=round(plan.seconds / 60, 2),
        seconds=round(time.monotonic() - began, 1),
        faults=dict(Counter(fault.kind for fault in plan.faults())),
        figures=figures_of(facts, entries),
        verdicts=judge_run(facts, entries, complaints),
    )


def _work(plan: Plan, cluster: Cluster, clients: Clients, progress: Progress) -> tuple[Facts, Complaints]:
    """Everything that happens, and what is to be seen afterwards."""
    clients.start()
    _strike(cluster, plan, progress)
    progress.tell("everything is healed and works on what is left")
    _repair(cluster)
    stuck = _drain(cluster, clients)
    progress.tell("judging")
    unwilling = _stop_processes(cluster)
    return collect(cluster), Complaints(stuck, list(clients.failures), unwilling)


def _strike(cluster: Cluster, plan: Plan, progress: Progress) -> None:
    """Begin and end each fault in its time. On this thread: servers die with the one that starts them."""
    faults = plan.faults()
    steps = [(fault.at, fault, True) for fault in faults]
    steps += [(fault.at + fault.seconds, fault, False) for fault in faults]
    steps.sort(key=lambda step: (step[0], step[2]))
    began = time.monotonic()
    for at, fault, begins in steps:
        _wait_for(began + at)
        kind = KINDS[fault.kind]
        if begins:
            progress.tell(f"{fault.kind} {fault.target} {fault.arm}".rstrip())
        (kind.begin if begins else kind.end)(cluster, fault)
    _wait_for(began + plan.seconds)


def _wait_for(moment: float) -> None:
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
        part.wait_ready(_START_SECONDS)


def _drain(cluster: Cluster, clients: Clients) -> list[str]:
    """Wait for the last job; what can be said of those that do not move any more."""
    count, moved = -1, time.monotonic()
    while True:
        left = cluster.query(_UNENDED)
        if clients.are_done and not left:
            return []
        if len(left) != count:
            count, moved = len(left), time.monotonic()
        if time.monotonic() - moved > _PATIENCE:
            return [f"job {job['id']} is still {job['status']} ({job['reason']})" for job in left]
        time.sleep(0.5)


def _stop_processes(cluster: Cluster) -> list[str]:
    """Tell all of them to end; which did not, or not well."""
    parts = [*cluster.workers, *cluster.apis]
    for part in parts:
        part.send(signal.SIGTERM)
    unwilling = []
    for part in parts:
        try:
            code = part.wait_end()
        except subprocess.TimeoutExpired:
            unwilling.append(f"{part.name} did not end within {STOP_SECONDS} s")
        else:
            unwilling += [f"{part.name} ended with {code}"] if code not in _GOOD_ENDS else []
    return unwilling


def _keep_rows(facts: Facts, folder: Path) -> None:
    """What somebody would look at who wonders about a run."""
    for name in ("jobs", "events", "submissions", "media", "ledger"):
        lines = [json.dumps(dict(row), default=str) for row in getattr(facts, name)]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _keep_logs(cluster: Cluster, folder: Path) -> None:
    logs = [part.log for part in (*cluster.apis, *cluster.workers, cluster.vendor)]
    for log in (*logs, cluster.postgres.log, cluster.valkey.log):
        with suppress(OSError):
            shutil.copyfile(log, folder / log.name)
