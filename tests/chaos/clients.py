"""The clients: each submits its errands, asks again until it knows, and follows some of its jobs.

They behave as a careful client should: one key a job, patience with 503, and no end to asking before the
answer is known. What they cannot know, they ask again with the same key.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from tests.chaos.journal import Journal
from tests.chaos.workload import Errand
from tests.cluster.cluster import Cluster

_THREADS = 12
_TIMEOUT = 15.0
_ASK_FOR = 180.0
"""Seconds for which one question is asked again."""
_FINAL = frozenset({200, 202, 204, 404, 409, 410, 422})
"""Answers that asking again would not change."""
_RETRYABLE_409 = "idempotency_in_flight"


class Clients:
    """All clients of a run."""

    def __init__(self, cluster: Cluster, errands: Sequence[Errand], journal: Journal, seed: int) -> None:
        self._urls = [api.url for api in cluster.apis]
        self._errands = errands
        self._journal = journal
        self._seed = seed
        self._began = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.accepted: dict[str, str] = {}
        """Job ids by key."""
        self.failures: list[str] = []
        """What should not have happened to a client."""
        self.latencies: list[float] = []
        """Seconds of the submits that were answered with 202 at the first time of asking."""

    def start(self) -> None:
        """Begin; the time of the errands counts from here."""
        self._began = time.monotonic()
        for number in range(_THREADS):
            mine = self._errands[number::_THREADS]
            thread = threading.Thread(target=self._work, args=[number, mine], name=f"client-{number}")
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Submit nothing more."""
        self._stop.set()

    @property
    def are_done(self) -> bool:
        """Whether every errand was run."""
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for the last answer; every question has its bound."""
        for thread in self._threads:
            thread.join()

    def _work(self, number: int, errands: Sequence[Errand]) -> None:
        with httpx2.Client(timeout=_TIMEOUT) as client:
            chance = random.Random(f"client {self._seed} {number}")  # noqa: S311  chance, no secret
            talk = _Talk(client, self._urls, self._journal, chance)
            for errand in errands:
                if self._stop.wait(max(0.0, self._began + errand.at - time.monotonic())):
                    return
                try:
                    self._run(talk, errand)
                except GivenUpError as error:
                    with self._lock:
                        self.failures.append(str(error))

    def _run(self, talk: _Talk, errand: Errand) -> None:
        began = time.monotonic()
        answer, asked = talk.ask("POST", "/v1/media/generate", errand.body, key=errand.key, api=errand.api)
        if answer.status_code not in {200, 202}:
            message = f"{errand.key}: submit was answered with {answer.status_code}: {answer.text[:200]}"
            raise GivenUpError(message)
        job_id = str(answer.json()["id"])
        with self._lock:
            self.accepted[errand.key] = job_id
            if asked == 1:
                self.latencies.append(time.monotonic() - began)
        if errand.cancel_after is not None and not self._stop.wait(min(errand.cancel_after, 2)):
            talk.ask("POST", f"/v1/media/jobs/{job_id}/cancel", {}, api=errand.api)
        _follow(talk, errand, job_id)
        if errand.retries:
            self._retry_if_failed(talk, errand, job_id)

    def _retry_if_failed(self, talk: _Talk, errand: Errand, job_id: str) -> None:
        found, _ = talk.ask("GET", f"/v1/media/status/{job_id}", api=errand.api)
        if found.status_code == httpx2.codes.OK and found.json()["status"] == "error":
            path = f"/v1/media/jobs/{job_id}/retry"
            talk.ask("POST", path, {}, key=f"{errand.key}-again", api=errand.api)


class GivenUpError(Exception):
    """Nobody answered for too long, or with something that no client expects."""


class _Talk:
    """One client's conversation with the apis."""

    def __init__(
        self, client: httpx2.Client, urls: Sequence[str], journal: Journal, chance: random.Random
    ) -> None:
        self.client = client
        self._urls = urls
        self._journal = journal
        self._chance = chance

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, api: int = 0
    ) -> tuple[httpx2.Response, int]:
        """The final answer, and how often it was asked for: at one api, then at the next."""
        until, asked = time.monotonic() + _ASK_FOR, 0
        while time.monotonic() < until:
            url = self._urls[(api + asked) % len(self._urls)] + path
            asked += 1
            answer = self._once(method, url, body, key)
            if answer is not None and _is_final(answer):
                return answer, asked
            wait = 0.2 if answer is None else float(answer.headers.get("retry-after", 1))
            time.sleep(min(wait, 2) * self._chance.uniform(1, 1.5))
        message = f"{method} {path}: no answer within {_ASK_FOR:.0f} s"
        raise GivenUpError(message)

    def _once(self, method: str, url: str, body: Any, key: str | None) -> httpx2.Response | None:
        """One request; None where no answer came."""
        headers: Mapping[str, str] = {} if key is None else {"Idempotency-Key": key}
        self._journal.write(ask=method, url=url, key=key, body=body)
        began = time.monotonic()
        try:
            answer = self.client.request(method, url, json=body, headers=headers)
        except httpx2.TransportError as error:
            self._journal.write(told=None, url=url, key=key, error=type(error).__name__)
            return None
        self._journal.write(
            told=answer.status_code,
            url=url,
            key=key,
            seconds=round(time.monotonic() - began, 4),
            replayed=answer.headers.get("idempotency-replayed"),
            job=_id_of(answer),
        )
        return answer


def _follow(talk: _Talk, errand: Errand, job_id: str) -> None:
    """As clients do, for a moment; what they see is in the journal."""
    if errand.waits:
        talk.ask("GET", f"/v1/media/status/{job_id}?wait=2", api=errand.api)
    else:
        talk.ask("GET", f"/v1/media/status/{job_id}", api=errand.api)


def _is_final(answer: httpx2.Response) -> bool:
    if answer.status_code == httpx2.codes.CONFLICT:
        return bool(answer.json().get("code") != _RETRYABLE_409)
    return answer.status_code in _FINAL


def _id_of(answer: httpx2.Response) -> str | None:
    try:
        return str(answer.json()["id"])
    except (ValueError, KeyError, TypeError):
        return None


def judge_journal(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Keys that were answered with several jobs, and answers that no client should get."""
    jobs: dict[str, set[str]] = defaultdict(set)
    surprises = []
    for entry in entries:
        if entry.get("told") in {200, 202} and entry.get("key") and entry.get("job"):
            jobs[entry["key"]].add(entry["job"])
        if (entry.get("told") or 0) >= httpx2.codes.INTERNAL_SERVER_ERROR and entry["told"] != 503:
            surprises.append(f"{entry['url']} was answered with {entry['told']}")
    twice = [f"key {key} made the jobs {sorted(found)}" for key, found in jobs.items() if len(found) > 1]
    return twice, surprises
