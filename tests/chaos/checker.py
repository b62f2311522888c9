"""What the journal says about a run, beside the facts: the invariants that only a client's memory can judge.

Those of the rows, the bucket, the ledger and the logs are `tests.cluster.invariants`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles

import httpx2

from fleek.core.job import Status
from tests.chaos.journal import Entry
from tests.chaos.report import Figures
from tests.cluster.invariants import Facts, Finding, Verdict, judge, verdict_of

_SUBMIT = "/v1/media/generate"
_ACCEPTED = frozenset({httpx2.codes.OK, httpx2.codes.ACCEPTED})
_LASTING = frozenset({Status.COMPLETED, Status.CANCELED})
"""What stays so once a client was told; an error may be retried."""


@dataclass(frozen=True, slots=True)
class Complaints:
    """What was seen to go wrong while it ran."""

    stuck: Sequence[str] = ()
    """Jobs that did not end."""
    given_up: Sequence[str] = ()
    """What clients got no answer to, or one that makes no sense."""
    unwilling: Sequence[str] = ()
    """Processes that did not end well when they were told to."""


def judge_run(facts: Facts, entries: Sequence[Entry], complaints: Complaints) -> list[Verdict]:
    """Every invariant."""
    known = replace(facts, accepted=accepted_jobs(entries))
    answers = [entry for entry in entries if "told" in entry]
    return [
        *judge(known),
        Verdict("every job ends", len(facts.jobs), complaints.stuck),
        verdict_of("a key makes one job", _one_job_a_key(facts, entries)),
        verdict_of("what a client was told stays true", _told_stays_true(facts, answers)),
        verdict_of("a stream tells every event once, in order", _streams_are_whole(entries)),
        verdict_of("no request is answered with 500", _no_server_errors(answers)),
        Verdict("every client gets its answer", _questions(entries), complaints.given_up),
        Verdict("every process ends when it is told to", len(facts.logs), complaints.unwilling),
    ]


def figures_of(facts: Facts, entries: Sequence[Entry]) -> Figures:
    """What people want to know about a run."""
    answers = [entry for entry in entries if "told" in entry]
    p50, p99 = _percentiles([1000 * entry["seconds"] for entry in answers if _is_prompt_submit(entry)])
    ends = Counter(job["error_code"] if job["status"] == "error" else job["status"] for job in facts.jobs)
    named = {media["key"] for media in facts.media}
    return Figures(
        accepted=len(accepted_jobs(entries)),
        jobs=dict(sorted(ends.items())),
        requests=len(answers),
        asked_again=sum(entry["told"] in {None, 503} for entry in answers),
        creates=sum(entry["id"] is not None for entry in facts.ledger),
        rescued=sum(event["data"].get("reason") == "lease_expired" for event in facts.events),
        orphans=sum(key not in named for key in facts.objects),
        submit_p50=round(p50, 1),
        submit_p99=round(p99, 1),
    )


def accepted_jobs(entries: Iterable[Entry]) -> dict[str, str]:
    """The id that each key of a submit was answered with."""
    return {entry["key"]: entry["job"] for entry in entries if _is_accept(entry)}


def _is_accept(entry: Entry) -> bool:
    is_submit = entry.get("key") is not None and entry["url"].endswith(_SUBMIT)
    return is_submit and entry.get("told") in _ACCEPTED


def _is_prompt_submit(entry: Entry) -> bool:
    return _is_accept(entry) and bool(entry["time_of_asking"] == 1)


def _questions(entries: Sequence[Entry]) -> int:
    return len({(entry["asked"], entry["url"], entry["key"]) for entry in entries if "asked" in entry})


def _one_job_a_key(facts: Facts, entries: Iterable[Entry]) -> Finding:
    """Among the answers, and in the database: each key came with a prompt of its own."""
    told: dict[str, set[str]] = defaultdict(set)
    prompts: dict[str, str] = {}
    for entry in entries:
        if "asked" in entry and entry["url"].endswith(_SUBMIT):
            prompts[entry["body"]["prompt"]] = entry["key"]
        elif _is_accept(entry):
            told[entry["key"]].add(entry["job"])
    made = Counter(prompts.get(job["prompt"]) for job in facts.jobs)
    for key in prompts.values():
        is_one = made[key] <= 1 and len(told[key]) <= 1
        yield None if is_one else f"key {key} made {made[key]} jobs and was answered with {sorted(told[key])}"
    if made[None]:
        yield f"{made[None]} jobs were submitted by nobody"


def _told_stays_true(facts: Facts, answers: Iterable[Entry]) -> Finding:
    ends = {str(job["id"]): job["status"] for job in facts.jobs}
    told = {
        (entry["job"], entry["status"])
        for entry in answers
        if entry.get("status") in _LASTING and entry["job"]
    }
    for job_id, status in sorted(told):
        end = ends.get(job_id)
        yield None if end == status else f"job {job_id} was told to be {status} and is {end}"


def _streams_are_whole(entries: Iterable[Entry]) -> Finding:
    seen: Mapping[str, list[int]] = defaultdict(list)
    for entry in entries:
        if "saw" in entry:
            seen[entry["job"]].append(entry["saw"])
    for job_id, sequences in seen.items():
        is_whole = sequences == list(range(1, len(sequences) + 1))
        yield None if is_whole else f"the stream of job {job_id} told the events {sequences}"


def _no_server_errors(answers: Iterable[Entry]) -> Finding:
    for entry in answers:
        told = entry["told"] or 0
        is_fine = told < httpx2.codes.INTERNAL_SERVER_ERROR or told == httpx2.codes.SERVICE_UNAVAILABLE
        yield None if is_fine else f"{entry['url']} was answered with {told}"


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    """The 50th and the 99th; 0 where there is nothing."""
    if not times:
        return 0.0, 0.0
    cuts = quantiles([*times, *times], n=100, method="inclusive")
    return cuts[49], cuts[98]
