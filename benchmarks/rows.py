"""The measurements. Each gives figures of Fleek and of a limit, taken in turns so that noise hits both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import median, quantiles
from typing import Any

from tests.prompts import read_prompts

from benchmarks import blank
from benchmarks.load import Load, request
from benchmarks.report import Figure, beside
from benchmarks.stage import Server, Stage, StageError

CONNECTIONS = 16
_WARM_UP_SECONDS = 1.0
_KNOWN_JOBS = 1000
"""Jobs and rows whose status is asked for, in turn."""
_WARM_UP_JOBS = 20
_REST = 0.02
"""Seconds between two jobs at low load."""
_MODELS = ("demo", blank.NAME)
"""What a user has at once, and a provider that costs nothing: the difference is the drawing."""
_THREADS = 4
"""Of the no-op worker: more only take each other's turns."""
_SMALL = {"width": 64, "height": 64, "input": {"delay_seconds": 0}}
ACCEPTED = 202
OK = 200


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement of one side: answers a second, and milliseconds of CPU an answer."""

    rate: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often to measure."""

    seconds: float = 3.0
    rounds: int = 5
    jobs: int = 2000
    """Jobs of one round of a pipeline; the overhead is that of a tenth."""


def measure_generator(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """What the load generator can reach: every other rate has to stay well below."""
    with stage.echo() as echo:
        load = Load(echo.port, [request("GET", "/")], OK, CONNECTIONS, effort.seconds)
        rates = [stage.load(load).rate for _ in range(effort.rounds)]
    what = f"the load generator's own ceiling, {CONNECTIONS} connections"
    yield Figure("generator", what, "/s", median(rates), rounds={"fleek": rates})


def measure_submit(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """Accepting jobs; no worker runs, so both databases only grow."""
    figure = Figure("submit", f"POST /v1/media/generate, {CONNECTIONS} connections", "/s")
    with stage.fleek_api() as fleek, stage.bare_api() as bare:
        yield compare(
            stage,
            effort,
            figure,
            (fleek, Load(fleek.port, submits(), ACCEPTED, CONNECTIONS)),
            (bare, Load(bare.port, bare_submits(), ACCEPTED, CONNECTIONS)),
            limit_name="a bare route, one INSERT",
            target=0.55,
        )


def measure_status(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """Asking for the status of known jobs."""
    figure = Figure("status", f"GET /v1/media/status/{{id}}, {CONNECTIONS} connections", "/s")
    with stage.fleek_api() as fleek, stage.bare_api() as bare:
        jobs, rows = make_known(stage, fleek, submits()), make_known(stage, bare, bare_submits())
        asks = [request("GET", f"/v1/media/status/{job}") for job in jobs]
        bare_asks = [request("GET", f"/jobs/{row}") for row in rows]
        yield compare(
            stage,
            effort,
            figure,
            (fleek, Load(fleek.port, asks, OK, CONNECTIONS)),
            (bare, Load(bare.port, bare_asks, OK, CONNECTIONS)),
            limit_name="a bare route, one SELECT",
            target=0.6,
        )


def measure_overhead(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """One small job at a time, from accept to completion: by the database's clock and by the client's."""
    stage.forget()
    with stage.fleek_api() as fleek, stage.fleek_worker():
        for model in _MODELS:
            requests = submits(model, headers="Prefer: wait=30\r\n")
            stage.load(Load(fleek.port, requests, OK, connections=1, count=_WARM_UP_JOBS))
            load = Load(fleek.port, requests, OK, connections=1, count=effort.jobs // 10, pause=_REST)
            answers = stage.load(replace(load, keep_bodies=True))
            inside = [_milliseconds_of(json.loads(body)) for body in answers.bodies]
            seen = [seconds * 1000 for seconds in answers.latencies]
            yield from _percentiles(f"accepted -> completed, one at a time, model {model}", inside, (10, 50))
            yield from _percentiles(f"the same, as a client sees it, model {model}", seen)


def measure_pipeline(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """From the start of one worker process until a full queue is empty; beside Celery with no-op tasks."""
    rates: dict[str, list[float]] = {model: [] for model in _MODELS}
    celery = []
    with stage.fleek_api() as api:
        for _ in range(effort.rounds):
            for model in _MODELS:
                rates[model].append(_drain(stage, api, model, effort.jobs))
            celery.append(stage.run_celery(effort.jobs, _THREADS))
    for model in _MODELS:
        what = f"{effort.jobs} queued jobs, 64 x 64, one worker process, model {model}"
        limit_name = f"Celery no-op tasks, -P threads -c {_THREADS}"
        yield beside(Figure("pipeline", what, "/s"), rates[model], limit_name, celery, 0.7)


ROWS: Mapping[str, Callable[[Stage, Effort], Iterator[Figure]]] = {
    "generator": measure_generator,
    "submit": measure_submit,
    "status": measure_status,
    "overhead": measure_overhead,
    "pipeline": measure_pipeline,
}


def compare(  # noqa: PLR0913  two sides, and what to say of them
    stage: Stage,
    effort: Effort,
    figure: Figure,
    fleek: tuple[Server, Load],
    limit: tuple[Server, Load],
    *,
    limit_name: str,
    target: float | None,
) -> Figure:
    """Rates of both sides, one after the other and over again; the first turn only warms up."""
    for _, load in (fleek, limit):
        stage.load(replace(load, seconds=min(effort.seconds, _WARM_UP_SECONDS)))
    turns = [[measure(stage, *side, effort.seconds) for side in (fleek, limit)] for _ in range(effort.rounds)]
    ours, theirs = zip(*turns, strict=True)
    compared = beside(figure, [one.rate for one in ours], limit_name, [one.rate for one in theirs], target)
    cpu, limit_cpu = (median(one.cpu for one in side) for side in (ours, theirs))
    return replace(compared, cpu=cpu, limit_cpu=limit_cpu)


def measure(stage: Stage, server: Server, load: Load, seconds: float | None = None) -> Turn:
    """One turn: `seconds` long, or as many requests as the load counts."""
    before = server.cpu_seconds()
    answers = stage.load(replace(load, seconds=seconds))
    used = server.cpu_seconds() - before
    return Turn(answers.rate, cpu=1000 * used / len(answers.latencies))


def _percentiles(
    what: str, values: Sequence[float], targets: Sequence[float | None] = (None, None)
) -> list[Figure]:
    named = {"p50": median(values), "p99": quantiles(values, n=100)[98]}
    return [
        Figure("overhead", f"{what}, {name}", "ms", value, target=target)
        for (name, value), target in zip(named.items(), targets, strict=True)
    ]


def submits(model: str = "demo", headers: str = "", body: Mapping[str, Any] | None = None) -> list[str]:
    """Real prompts as requests for small pictures."""
    rest = {"model": model, **_SMALL, **(body or {})}
    bodies = [{"prompt": prompt.text} | rest for prompt in read_prompts()]
    return [request("POST", "/v1/media/generate", json.dumps(body), headers) for body in bodies]


def bare_submits() -> list[str]:
    """The same prompts for the bare route."""
    return [request("POST", "/jobs", json.dumps({"prompt": prompt.text})) for prompt in read_prompts()]


def make_known(stage: Stage, server: Server, requests: Sequence[str]) -> list[str]:
    """The ids of what the requests make."""
    load = Load(server.port, requests, ACCEPTED, CONNECTIONS, count=_KNOWN_JOBS, keep_bodies=True)
    return [json.loads(body)["id"] for body in stage.load(load).bodies]


def _drain(stage: Stage, api: Server, model: str, jobs: int) -> float:
    """Jobs a second from the first completion to the last, by the database's clock."""
    stage.forget()
    stage.load(Load(api.port, submits(model), ACCEPTED, CONNECTIONS, count=jobs))
    with stage.fleek_worker() as worker:
        # Asked rarely: psql is a process, which takes its share of the cores.
        stage.until(lambda: _is_empty(stage), worker, "all jobs are finished", seconds=300, every=0.5)
    answer = stage.postgres.query(
        "SELECT count(*) FILTER (WHERE status = 'completed'), "
        "extract(epoch FROM max(finished_at) - min(finished_at)) FROM jobs"
    )
    completed, seconds = answer.split("|")
    if int(completed) != jobs:
        message = f"{completed} of {jobs} jobs completed"
        raise StageError(message)
    return (jobs - 1) / float(seconds)


def _is_empty(stage: Stage) -> bool:
    return stage.postgres.query("SELECT EXISTS (SELECT FROM jobs WHERE finished_at IS NULL)") == "f"


def _milliseconds_of(job: Mapping[str, str]) -> float:
    created, finished = (datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at"))
    return (finished - created).total_seconds() * 1000
