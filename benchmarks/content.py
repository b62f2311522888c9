"""How fast clients find the way to their results, and what remembering signed URLs is worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

from benchmarks import blank
from benchmarks.load import Load, request
from benchmarks.report import Figure
from benchmarks.rows import (
    ACCEPTED,
    CONNECTIONS,
    OK,
    Effort,
    Turn,
    bare_submits,
    compare,
    make_known,
    measure,
    submits,
)
from benchmarks.stage import Server, Stage

_REDIRECT = 307
_PER_JOB = 8
_WARM_UP = 0.1
"""The share of results that are asked for before the clock starts; they are in no measurement."""
_LATENCY = 0.01
"""Seconds after which the bucket answers."""
_VARIANT = "?variant=w512.webp"


def measure_content(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """The redirect to stored bytes, of results that are asked for again and again."""
    figure = Figure("content", f"GET /v1/media/content/{{id}}, {CONNECTIONS} connections", "/s")
    results = _make_results(stage, effort.jobs)
    with stage.fleek_api() as fleek, stage.bare_api() as bare:
        rows = make_known(stage, bare, bare_submits())
        yield compare(
            stage,
            effort,
            figure,
            (fleek, Load(fleek.port, _asks(results), _REDIRECT, CONNECTIONS)),
            (bare, Load(bare.port, [request("GET", f"/jobs/{row}") for row in rows], OK, CONNECTIONS)),
            limit_name="a bare route, one SELECT",
            target=0.6,
        )


def measure_cache(stage: Stage, effort: Effort) -> Iterator[Figure]:
    """Redis beside PostgreSQL, and signed URLs by where they are known from."""
    yield _compare_reads(stage, effort)
    results = _make_results(stage, effort.jobs)
    with stage.bucket(_LATENCY) as bucket:
        for query, name in (("", "originals"), (_VARIANT, "variants")):
            asks = _asks(results, query)
            rounds = [_measure_reuse(stage, asks, bucket.port) for _ in range(effort.rounds)]
            yield from _figures(name, rounds)


@dataclass(frozen=True, slots=True)
class _Reuse:
    """One round: redirects of a process that signs each anew, and of processes that share what they sign."""

    off: Turn
    miss: Turn
    """Nobody has signed them before."""
    shared: Turn
    """Another process has."""
    known: Turn
    """This process has."""


def _compare_reads(stage: Stage, effort: Effort) -> Figure:
    figure = Figure("cache", f"a bare route, one GET of Redis, {CONNECTIONS} connections", "/s")
    with stage.bare_api() as bare:
        rows = make_known(stage, bare, bare_submits())
        cached, selected = ([request("GET", f"/{of}/{row}") for row in rows] for of in ("cached", "jobs"))
        return compare(
            stage,
            effort,
            figure,
            (bare, Load(bare.port, cached, OK, CONNECTIONS)),
            (bare, Load(bare.port, selected, OK, CONNECTIONS)),
            limit_name="the same, one SELECT of PostgreSQL",
            target=None,
        )


def _measure_reuse(stage: Stage, asks: Sequence[str], bucket: int) -> _Reuse:
    """In fresh processes, and in an empty Redis: every request is for another result."""
    stage.forget_broker()
    with (
        _api(stage, bucket, asks, "off") as off,
        _api(stage, bucket, asks, "shared") as first,
        _api(stage, bucket, asks, "shared") as second,
    ):
        return _Reuse(*(_ask_all(stage, server, asks) for server in (off, first, second, second)))


@contextmanager
def _api(stage: Stage, bucket: int, asks: Sequence[str], reuse: str) -> Iterator[Server]:
    """A process whose results are in the bucket, and which has its connections open."""
    settings = {
        "FLEEK_STORAGE_URL": "s3://results",
        "FLEEK_STORAGE_ENDPOINT": f"http://127.0.0.1:{bucket}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "FLEEK_CONTENT_URL_REUSE": reuse,
    }
    with stage.fleek_api(settings) as server:
        first = asks[: _warm_up(asks)]
        stage.load(Load(server.port, first, _REDIRECT, CONNECTIONS, count=2 * len(first)))
        yield server


def _ask_all(stage: Stage, server: Server, asks: Sequence[str]) -> Turn:
    measured = asks[_warm_up(asks) :]
    return measure(stage, server, Load(server.port, measured, _REDIRECT, CONNECTIONS, count=len(measured)))


def _figures(name: str, rounds: Sequence[_Reuse]) -> Iterator[Figure]:
    off = [one.off for one in rounds]
    for what, turns in (
        ("signed and remembered", [one.miss for one in rounds]),
        ("known to Redis", [one.shared for one in rounds]),
        ("known to the process", [one.known for one in rounds]),
    ):
        figure = Figure(
            "cache", f"redirects to {name} in a bucket {1000 * _LATENCY:g} ms away, URLs {what}", "/s"
        )
        yield replace(
            figure,
            fleek=median(turn.rate for turn in turns),
            limit_name="URLs signed each time (FLEEK_CONTENT_URL_REUSE=off)",
            limit=median(turn.rate for turn in off),
            cpu=median(turn.cpu for turn in turns),
            limit_cpu=median(turn.cpu for turn in off),
            rounds={"fleek": [turn.rate for turn in turns], "limit": [turn.rate for turn in off]},
        )


def _warm_up(asks: Sequence[str]) -> int:
    return int(len(asks) * _WARM_UP)


def _make_results(stage: Stage, count: int) -> list[str]:
    """The ids of stored results, `count` of them or a few more."""
    stage.forget()
    requests = submits(blank.NAME, body={"n": _PER_JOB})
    with stage.fleek_api() as api, stage.fleek_worker() as worker:
        load = Load(api.port, requests, ACCEPTED, CONNECTIONS, count=-(-count // _PER_JOB), keep_bodies=True)
        jobs = [json.loads(body) for body in stage.load(load).bodies]
        stage.until(lambda: _all_completed(stage), worker, "all jobs are completed", seconds=300, every=0.2)
    return [media_id for job in jobs for media_id in job["media_ids"]]


def _all_completed(stage: Stage) -> bool:
    return stage.postgres.query("SELECT EXISTS (SELECT FROM jobs WHERE status <> 'completed')") == "f"


def _asks(results: Sequence[str], query: str = "") -> list[str]:
    return [request("GET", f"/v1/media/content/{media_id}{query}") for media_id in results]
