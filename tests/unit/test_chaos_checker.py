"""The judge of `script/chaos` finds what is broken: each invariant is given facts that break it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.chaos.checker import Complaints, figures_of, judge_run
from tests.chaos.report import BROKEN, HOLDS, Report
from tests.cluster.cluster import FREE, PAID
from tests.cluster.invariants import Facts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GENERATE = "http://127.0.0.1:1/v1/media/generate"
STATUS = "http://127.0.0.1:1/v1/media/status/paid"
SECRET = "secret-of-the-vendor"
ANSWER = {"told": 200, "seconds": 0.01, "time_of_asking": 1, "key": None, "job": None, "status": None}
READ = {**ANSWER, "url": STATUS, "job": "paid", "status": "completed"}


@dataclass(frozen=True)
class Run:
    """What is known after a run."""

    facts: Facts
    entries: Sequence[Mapping[str, Any]]
    complaints: Complaints = field(default_factory=Complaints)


def job(job_id: str, **values: Any) -> dict[str, Any]:
    row = {
        "id": job_id,
        "prompt": f"prompt of {job_id}",
        "model": PAID,
        "seed": 7,
        "n": 1,
        "status": "completed",
        "error_code": None,
        "event_sequence": 3,
        "finished_at": NOW,
        "is_lease_expired": None,
    }
    return row | values


def history(job_id: str, *kinds: str) -> list[dict[str, Any]]:
    return [
        {"job_id": job_id, "sequence": number, "kind": kind, "data": {}}
        for number, kind in enumerate(kinds, start=1)
    ]


def order(job_id: str, ordinal: int = 1, resolution: str | None = "result", **values: Any) -> dict[str, Any]:
    begun = NOW + timedelta(seconds=10 * ordinal)
    row = {
        "job_id": job_id,
        "ordinal": ordinal,
        "first_index": 0,
        "intent_at": begun,
        "resolved_at": begun + timedelta(seconds=5) if resolution else None,
        "resolution": resolution,
    }
    return row | values


def create(job_id: str, number: int = 1) -> dict[str, Any]:
    return {"id": f"{job_id}-{number}", "input": {"prompt": f"prompt of {job_id}", "seed": 7}}


def stored(job_id: str) -> dict[str, Any]:
    return {"job_id": job_id, "index": 0, "key": f"key/{job_id}", "size_bytes": 9, "sha256": "aa"}


def accepted(job_id: str) -> list[dict[str, Any]]:
    key, body = f"key-{job_id}", {"prompt": f"prompt of {job_id}"}
    return [
        {"asked": "POST", "url": GENERATE, "key": key, "body": body},
        {**ANSWER, "told": 202, "url": GENERATE, "key": key, "job": job_id, "status": "in_queue"},
    ]


def good_run() -> Run:
    """One job was paid for, one cost nothing, and one's order was lost: all as it should be."""
    done = ("accepted", "claimed", "completed")
    facts = Facts(
        jobs=[
            job("paid"),
            job("free", model=FREE),
            job("lost", status="error", error_code="ambiguous_submission"),
        ],
        events=[
            *history("paid", *done),
            *history("free", *done),
            *history("lost", "accepted", "claimed", "failed"),
        ],
        submissions=[order("paid"), order("lost", resolution="ambiguous")],
        media=[stored("paid"), stored("free")],
        ledger=[create("paid"), create("lost"), {**create("paid"), "id": None}],
        objects={"key/paid": NOW, "key/free": NOW, "key/orphan": NOW},
        digests={"key/paid": (9, "aa"), "key/free": (9, "aa")},
        logs={"worker-1": '{"event": "worker_started"}'},
        secrets=[SECRET],
        now=NOW + timedelta(hours=1),
    )
    entries = [
        *accepted("paid"),
        *accepted("free"),
        *accepted("lost"),
        READ,
        {"saw": 1, "job": "paid", "kind": "accepted"},
        {"saw": 2, "job": "paid", "kind": "claimed"},
        {"told": None, "url": STATUS, "key": None, "error": "ConnectError"},
        {**ANSWER, "told": 503, "url": STATUS},
    ]
    return Run(facts, entries)


def with_facts(**changes: Callable[[Any], Any]) -> Callable[[Run], Run]:
    """The same run, with some of its facts changed."""

    def doctor(run: Run) -> Run:
        changed = {name: change(getattr(run.facts, name)) for name, change in changes.items()}
        return replace(run, facts=replace(run.facts, **changed))

    return doctor


def with_entry(**entry: Any) -> Callable[[Run], Run]:
    return lambda run: replace(run, entries=[*run.entries, entry])


def with_complaint(**complaint: Sequence[str]) -> Callable[[Run], Run]:
    return lambda run: replace(run, complaints=Complaints(**complaint))


def changing(number: int, **values: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """The same rows, one of them changed."""
    return lambda rows: [row | values if position == number else row for position, row in enumerate(rows)]


def adding(*more: Any) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda rows: [*rows, *more]


def without(number: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda rows: [row for position, row in enumerate(rows) if position != number]


def report_of(run: Run) -> Report:
    """As the program makes it."""
    entries = [dict(entry) for entry in run.entries]
    verdicts = judge_run(run.facts, entries, run.complaints)
    return Report(1, 1, 60, {"kill_worker": 3}, figures_of(run.facts, entries), verdicts)


def broken(report: Report) -> list[str]:
    return [verdict.name for verdict in report.verdicts if verdict.broken]


COMPLETED_TWICE = history("paid", "accepted", "claimed", "completed", "retried", "claimed", "completed")
RUNNING = {"status": "processing", "finished_at": None, "event_sequence": 2, "is_lease_expired": True}
OVERLAPPING = order("paid", 2, intent_at=NOW + timedelta(seconds=12))
TWIN = job("twin", prompt="prompt of free", model=FREE, status="in_queue", finished_at=None, event_sequence=1)
DOCTORED: list[tuple[str, Callable[[Run], Run]]] = [
    ("no accepted job is missing", with_entry(**accepted("gone")[1])),
    (
        "completed at most once",
        with_facts(
            events=lambda events: [*COMPLETED_TWICE, *events[3:]],
            jobs=changing(0, event_sequence=len(COMPLETED_TWICE)),
        ),
    ),
    ("the state is what the events say", with_facts(events=without(1))),
    ("the state is what the events say", with_facts(jobs=changing(2, status="canceled"))),
    ("what runs has a lease", with_facts(jobs=changing(1, **RUNNING), events=without(5))),
    ("what is completed is stored", with_facts(media=without(1))),
    ("what is completed is stored", with_facts(objects=lambda found: {"key/free": found["key/free"]})),
    ("what is stored is what its row says", with_facts(media=changing(0, sha256="bb"))),
    ("what is stored is what its row says", with_facts(media=changing(0, size_bytes=8))),
    (
        "every object is named by a row, or young",
        with_facts(objects=lambda found: {**found, "key/old": NOW - timedelta(days=2)}),
    ),
    ("every paid create is recorded", with_facts(ledger=adding(create("lost", 2)))),
    ("every paid create is recorded", with_facts(ledger=adding(create("nobody")))),
    ("no two orders are open at once", with_facts(submissions=adding(OVERLAPPING))),
    (
        "nothing is paid twice silently",
        with_facts(ledger=adding(create("paid", 2)), submissions=adding(order("paid", 2, "rejected"))),
    ),
    ("what has ended has no open order", with_facts(submissions=changing(0, resolved_at=None))),
    ("nothing unexpected was logged", with_facts(logs=lambda _: {"api-1": "attempt_crashed"})),
    (
        "nothing unexpected was logged",
        with_facts(logs=lambda _: {"api-1": "Traceback (most recent call last)"}),
    ),
    ("no secret was logged", with_facts(logs=lambda _: {"api-1": f"Authorization: Bearer {SECRET}"})),
    ("every job ends", with_complaint(stuck=["job 1 is still in_queue"])),
    ("a key makes one job", with_entry(**{**accepted("paid")[1], "job": "free"})),
    ("a key makes one job", with_facts(jobs=adding(TWIN), events=adding(*history("twin", "accepted")))),
    ("what a client was told stays true", with_entry(**{**READ, "job": "lost"})),
    ("a stream tells every event once, in order", with_entry(saw=2, job="paid", kind="claimed")),
    ("a stream tells every event once, in order", with_entry(saw=4, job="paid", kind="completed")),
    ("no request is answered with 500", with_entry(**{**READ, "told": 500, "status": None})),
    ("every client gets its answer", with_complaint(given_up=["no answer to key-1"])),
    ("every process ends when it is told to", with_complaint(unwilling=["worker-1 ended with -6"])),
]


@pytest.mark.parametrize(("name", "doctor"), DOCTORED, ids=[name for name, _ in DOCTORED])
def test_a_broken_invariant_is_named_alone_and_the_run_fails(name: str, doctor: Callable[[Run], Run]) -> None:
    report = report_of(doctor(good_run()))

    assert broken(report) == [name]
    assert (report.exit_code, report.as_document()["holds"]) == (BROKEN, False)


def test_a_run_in_which_everything_holds_passes() -> None:
    report = report_of(good_run())

    assert (broken(report), report.exit_code) == ([], HOLDS)


def test_every_invariant_has_been_seen_broken() -> None:
    names = {verdict.name for verdict in report_of(good_run()).verdicts}

    assert names == {name for name, _ in DOCTORED}


def test_every_invariant_looks_at_something() -> None:
    counts = {verdict.name: verdict.checked for verdict in report_of(good_run()).verdicts}

    assert all(counts.values()), counts


def test_an_order_that_failed_allows_another_one() -> None:
    """So does one that is ambiguous, where the client says so: neither is silent."""
    again = with_facts(
        submissions=lambda _: [order("paid", 1, "failed"), order("paid", 2), order("lost", 1, "ambiguous")],
        ledger=adding(create("paid", 2)),
    )

    assert broken(report_of(again(good_run()))) == []


def test_the_figures_tell_how_jobs_ended_and_what_is_left_in_the_bucket() -> None:
    figures = report_of(good_run()).figures

    assert figures.jobs == {"ambiguous_submission": 1, "completed": 2}
    assert (figures.accepted, figures.creates, figures.orphans, figures.asked_again) == (3, 2, 1, 2)
