"""The measurements. Each gives figures of Fleek and of a limit, taken in turns so that noise hits both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median, quantiles

from tests.prompts import read_prompts

from benchmarks import blank
from benchmarks.load import Load, request
from benchmarks.report import Figure, beside
from benchmarks.stage import Server, Stage

_CONNECTIONS = 16
_WARM_UP_SECONDS = 1.0
_KNOWN_JOBS = 1000
"""Jobs and rows whose status is asked for, in turn."""
_OVERHEAD_JOBS = 200
_OVERHEAD_PAUSE = 0.02
"""Seconds of rest between two jobs at low load."""
_THREADS = 4
"""Of the no-op worker: more only take each other's turns."""
_SMALL = {"width": 64, "height": 64, "input": {"delay_seconds": 0}}
_ACCEPTED, _OK = 202, 200


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often to measure."""

    seconds: float = 3.0
    rounds: int = 5
    jobs: int = 2000
    """Jobs of one round of a pipeline."""


def measure_generator(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """What the load generator can reach: every other rate has to stay well below."""
    with stage.echo() as echo:
        load = Load(echo.port, [request("GET", "/")], _OK, _CONNECTIONS, effort.seconds)
        rates = [stage.load(load).rate for _ in range(effort.rounds)]
    what = f"the load generator's own ceiling, {_CONNECTIONS} connections"
    yield Figure("generator", what, "/s", median(rates), rounds={"fleek": rates})


def measure_submit(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """Accepting jobs; no worker runs, so both databases only grow."""
    with stage.fleek_api() as fleek, stage.bare_api() as bare:
        loads = {
            "fleek": Load(fleek.port, _submits(), _ACCEPTED, _CONNECTIONS),
            "a bare route, one INSERT": Load(bare.port, _bare_submits(), _ACCEPTED, _CONNECTIONS),
        }
        measured = _interleave(stage, loads, effort)
    yield beside("submit", f"POST /v1/media/generate, {_CONNECTIONS} connections", "/s", measured, 0.55)


def measure_status(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """Asking for the status of known jobs."""
    with stage.fleek_api() as fleek, stage.bare_api() as bare:
        jobs, rows = _make_known(stage, fleek, _submits()), _make_known(stage, bare, _bare_submits())
        paths = [request("GET", f"/v1/media/status/{job}") for job in jobs]
        loads = {
            "fleek": Load(fleek.port, paths, _OK, _CONNECTIONS),
            "a bare route, one SELECT": Load(
                bare.port, [request("GET", f"/jobs/{row}") for row in rows], _OK, _CONNECTIONS
            ),
        }
        measured = _interleave(stage, loads, effort)
    yield beside("status", f"GET /v1/media/status/{{id}}, {_CONNECTIONS} connections", "/s", measured, 0.6)


def measure_overhead(stage: Stage, effort: Effort) -> Iterator[Figure]:  # noqa: ARG001  one kind of effort only
    """One small job at a time, from accept to completion: by the database's clock and by the client's."""
    with stage.fleek_api() as fleek, stage.fleek_worker():
        for model in ("demo", blank.NAME):
            requests = _submits(model, headers="Prefer: wait=30\r\n")
            stage.load(Load(fleek.port, requests, _OK, connections=1, count=20))
            load = Load(
                fleek.port, requests, _OK, 1, count=_OVERHEAD_JOBS, pause=_OVERHEAD_PAUSE, keep_bodies=True
            )
            answers = stage.load(load)
            inside = [_milliseconds_of(json.loads(body)) for body in answers.bodies]
            seen = [seconds * 1000 for seconds in answers.latencies]
            what = f"accepted -> completed, one job at a time, model {model}"
            yield Figure("overhead", f"{what}, p50", "ms", median(inside), target=10.0)
            yield Figure("overhead", f"{what}, p99", "ms", _p99(inside), target=50.0)
            yield Figure(
                "overhead",
                f"the same as a client sees it (Prefer: wait), model {model}, p50",
                "ms",
                median(seen),
            )
            yield Figure(
                "overhead",
                f"the same as a client sees it (Prefer: wait), model {model}, p99",
                "ms",
                _p99(seen),
            )


def measure_pipeline(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """From the start of one worker process until a full queue is empty; beside Celery with no-op tasks."""
    limit = f"Celery no-op tasks, -P threads -c {_THREADS}"
    measured: dict[str, dict[str, list[float]]] = {model: {"fleek": []} for model in ("demo", blank.NAME)}
    celery = []
    with stage.fleek_api() as api:
        for _ in range(effort.rounds):
            for model, series in measured.items():
                series["fleek"].append(_drain(stage, api, model, effort.jobs))
            celery.append(stage.run_celery(effort.jobs, _THREADS))
    for model, series in measured.items():
        what = f"{effort.jobs} queued jobs, 64 x 64, one worker process, model {model}"
        yield beside("pipeline", what, "/s", series | {limit: celery}, 0.7)


ROWS: Mapping[str, Callable[[Stage, Effort], Iterator[Figure]]] = {
    "generator": measure_generator,
    "submit": measure_submit,
    "status": measure_status,
    "overhead": measure_overhead,
    "pipeline": measure_pipeline,
}


def _interleave(stage: Stage, loads: Mapping[str, Load], effort: Effort) -> dict[str, list[float]]:
    """Rates of each load, one after the other and over again; the first turn only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for load in loads.values():
        stage.load(_lasting(load, _WARM_UP_SECONDS))
    for _ in range(effort.rounds):
        for name, load in loads.items():
            rates[name].append(stage.load(_lasting(load, effort.seconds)).rate)
    return rates


def _lasting(load: Load, seconds: float) -> Load:
    return Load(load.port, load.requests, load.expected, load.connections, seconds)


def _submits(model: str = "demo", headers: str = "") -> list[str]:
    """Real prompts as requests for small pictures."""
    bodies = [{"prompt": prompt.text, "model": model} | _SMALL for prompt in read_prompts()]
    return [request("POST", "/v1/media/generate", json.dumps(body), headers) for body in bodies]


def _bare_submits() -> list[str]:
    return [request("POST", "/jobs", json.dumps({"prompt": prompt.text})) for prompt in read_prompts()]


def _make_known(stage: Stage, server: Server, requests: Sequence[str]) -> list[str]:
    load = Load(server.port, requests, _ACCEPTED, _CONNECTIONS, count=_KNOWN_JOBS, keep_bodies=True)
    return [json.loads(body)["id"] for body in stage.load(load).bodies]


def _drain(stage: Stage, api: Server, model: str, jobs: int) -> float:
    """Jobs a second from the first completion to the last, by the database's clock."""
    stage.postgres.query("TRUNCATE jobs, job_requests, media, events, attempts, submissions CASCADE")
    stage.load(Load(api.port, _submits(model), _ACCEPTED, _CONNECTIONS, count=jobs))
    with stage.fleek_worker() as worker:
        stage.until(lambda: _count_unfinished(stage) == 0, worker, "all jobs are finished", seconds=120)
    answer = stage.postgres.query(
        "SELECT count(*) FILTER (WHERE status = 'completed'), "
        "extract(epoch FROM max(finished_at) - min(finished_at)) FROM jobs"
    )
    completed, seconds = answer.split("|")
    if int(completed) != jobs:
        message = f"{completed} of {jobs} jobs completed"
        raise RuntimeError(message)
    return (jobs - 1) / float(seconds)


def _count_unfinished(stage: Stage) -> int:
    """Asked rarely: psql is a process, which takes its share of the cores."""
    return int(stage.postgres.query("SELECT count(*) FROM jobs WHERE finished_at IS NULL"))


def _milliseconds_of(job: Mapping[str, str]) -> float:
    created, finished = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
    return (finished - created).total_seconds() * 1000


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100)[98]
