"""What one job costs each part, in processor time and memory: what `benchmarks.capacity` computes with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median

from benchmarks import blank
from benchmarks.load import Load, request
from benchmarks.report import Figure
from benchmarks.rows import ACCEPTED, CONNECTIONS, OK, Effort, submits
from benchmarks.stage import Stage, StageError
from fleek.local.process import Process

STATUS_READS = 5
"""How often a client asks for the status of a job; it fetches the result once."""
_WARM_UP_JOBS = 100
_REDIRECT = 307
_IN_FLIGHT = 1000
_FLIGHT_SECONDS = 8
_MEGABYTE = 1_000_000
_PARTS = ("api", "worker", "PostgreSQL", "Valkey")


def measure_costs(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """Processor time of a job by part, memory of the processes, and what a job leaves in the database."""
    rounds: dict[str, list[float]] = {part: [] for part in _PARTS}
    rows = []
    with stage.fleek_api() as api, stage.fleek_worker() as worker:
        processes = {
            "api": api.process,
            "worker": worker,
            "PostgreSQL": _running(stage.postgres.process),
            "Valkey": _running(stage.valkey.process),
        }
        _run_jobs(stage, api.port, worker, _WARM_UP_JOBS)
        for _ in range(effort.rounds):
            before, size = _cpu_of(processes), _database_bytes(stage)
            _run_jobs(stage, api.port, worker, effort.jobs)
            for part, seconds in _cpu_of(processes).items():
                rounds[part].append(1000 * (seconds - before[part]) / effort.jobs)
            rows.append((_database_bytes(stage) - size) / effort.jobs / 1000)
        memory = {name: _resident(processes[name]) for name in ("api", "worker")}
    for part, values in rounds.items():
        what = f"processor time of {part} for one job: submit, run, {STATUS_READS} status reads, 1 fetch"
        yield Figure("costs", what, "ms", median(values), rounds={"fleek": values})
    yield Figure("costs", "what one job leaves in the database", "kB", median(rows), rounds={"fleek": rows})
    for name, megabytes in memory.items():
        yield Figure("costs", f"memory of one {name} process after that", "MB", megabytes)
    yield _in_flight(stage)


def _in_flight(stage: Stage) -> Figure:
    """Memory of a worker process while many jobs wait for their provider at once."""
    stage.forget()
    slow = {"input": {"delay_seconds": _FLIGHT_SECONDS}}
    requests = submits("demo", body=slow)
    with stage.fleek_api() as api, stage.fleek_worker("--slots", str(_IN_FLIGHT)) as worker:
        stage.load(Load(api.port, requests, ACCEPTED, CONNECTIONS, count=_IN_FLIGHT))
        running = "SELECT count(*) FROM jobs WHERE status = 'processing'"
        stage.until(
            lambda: int(stage.postgres.query(running)) >= _IN_FLIGHT * 0.95, worker, "all jobs run", every=0.1
        )
        megabytes = _resident(worker)
    return Figure("costs", f"memory of a worker process with {_IN_FLIGHT} jobs in flight", "MB", megabytes)


def _run_jobs(stage: Stage, port: int, worker: Process, count: int) -> None:
    """Submit, wait for the end, then look at every job as clients do."""
    load = Load(port, submits(blank.NAME), ACCEPTED, CONNECTIONS, count=count, keep_bodies=True)
    jobs = [json.loads(body) for body in stage.load(load).bodies]
    waiting = "SELECT EXISTS (SELECT FROM jobs WHERE finished_at IS NULL)"
    stage.until(
        lambda: stage.postgres.query(waiting) == "f", worker, "all jobs are finished", seconds=300, every=0.5
    )
    asks = [request("GET", f"/v1/media/status/{job['id']}") for job in jobs]
    stage.load(Load(port, asks, OK, CONNECTIONS, count=STATUS_READS * count))
    fetches = [request("GET", f"/v1/media/content/{job['media_ids'][0]}") for job in jobs]
    stage.load(Load(port, fetches, _REDIRECT, CONNECTIONS, count=count))


def _database_bytes(stage: Stage) -> int:
    return int(stage.postgres.query("SELECT pg_database_size(current_database())"))


def _running(process: Process | None) -> Process:
    if process is None:
        message = "a server of the benchmark does not run"
        raise StageError(message)
    return process


def _cpu_of(processes: Mapping[str, Process]) -> dict[str, float]:
    """Seconds of processor time of each part, its children's included, the ended ones' too."""
    return {name: sum(map(_cpu_seconds, _tree(process.pid))) for name, process in processes.items()}


def _tree(pid: int) -> list[int]:
    """A process and its living descendants."""
    found = [pid]
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            found += _tree(int(child))
    return found


def _cpu_seconds(pid: int) -> float:
    """Fields 14 to 17 of proc_pid_stat(5): its own time, and that of children which have ended."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text()
        return sum(map(int, text.rpartition(")")[2].split()[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _resident(process: Process) -> float:
    """Megabytes of memory of a process."""
    return _statm(process.pid)[1] * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE


def _statm(pid: int) -> list[int]:
    return [int(part) for part in Path(f"/proc/{pid}/statm").read_text().split()]
