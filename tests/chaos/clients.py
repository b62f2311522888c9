"""The clients: each submits its errands, asks again until it knows, and follows, cancels or retries some."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import httpx2

from tests.chaos.journal import Journal
from tests.chaos.talk import GivenUpError, Talk
from tests.chaos.workload import Errand

_THREADS = 16
_TIMEOUT = 15.0
_WATCH_SECONDS = 4.0
_RETRY_AFTER = 8.0
"""Seconds after it was accepted, a client looks whether its job has failed."""


class Clients:
    """All clients of a run, each in a thread of its own."""

    def __init__(self, urls: Sequence[str], errands: Sequence[Errand], journal: Journal, seed: int) -> None:
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.accepted = 0
        """Jobs; what exactly was answered is in the journal."""
        self.failures: list[str] = []
        """What should not have happened to a client."""
        crowd = [_Client(self, urls, errands[number::_THREADS], journal) for number in range(_THREADS)]
        self._threads = [
            threading.Thread(target=client.run, args=[f"client {seed} {number}", self._ended], daemon=True)
            for number, client in enumerate(crowd)
        ]

    def start(self) -> None:
        """Begin; the time of the errands counts from here."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask for nothing more; what is being waited for is given up."""
        self._ended.set()

    @property
    def are_done(self) -> bool:
        """Whether every errand was run."""
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        """Wait for the last answer; every question has its bound."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def note_accepted(self) -> None:
        """One more job."""
        with self._lock:
            self.accepted += 1

    def note_failure(self, error: GivenUpError) -> None:
        """Something that no client should see."""
        with self._lock:
            self.failures.append(str(error))


class _Client:
    """One thread, with an agenda: what to do, and when."""

    def __init__(
        self, crowd: Clients, urls: Sequence[str], errands: Sequence[Errand], journal: Journal
    ) -> None:
        self._crowd = crowd
        self._urls = urls
        self._errands = errands
        self._journal = journal
        self._began = 0.0
        self._order = itertools.count()
        self._agenda: list[tuple[float, int, Callable[[Talk], None]]] = []

    def run(self, seed: str, ended: threading.Event) -> None:
        """Work the agenda off."""
        self._began = time.monotonic()
        for errand in self._errands:
            self._plan(errand.at, partial(self._submit, errand))
        with httpx2.Client(timeout=_TIMEOUT) as client:
            chance = random.Random(seed)  # noqa: S311  chance, no secret
            talk = Talk(client, self._urls, self._journal, chance, ended)
            while self._agenda:
                at, _, act = heapq.heappop(self._agenda)
                if ended.wait(max(0.0, self._began + at - time.monotonic())):
                    return
                try:
                    act(talk)
                except GivenUpError as error:
                    self._crowd.note_failure(error)

    def _plan(self, at: float, act: Callable[[Talk], None]) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), act))

    def _plan_after(self, seconds: float, act: Callable[[Talk], None]) -> None:
        self._plan(time.monotonic() - self._began + seconds, act)

    def _submit(self, errand: Errand, talk: Talk) -> None:
        answer = talk.ask("POST", "/v1/media/generate", errand.body, key=errand.key, api=errand.api)
        if answer.status_code not in {httpx2.codes.OK, httpx2.codes.ACCEPTED}:
            message = f"{errand.key}: submit was answered with {answer.status_code}: {answer.text[:200]}"
            raise GivenUpError(message)
        self._crowd.note_accepted()
        job_id = str(answer.json()["id"])
        self._plan_after(0.1, partial(_follow, errand, job_id))
        if errand.cancel_after is not None:
            self._plan_after(errand.cancel_after, partial(_cancel, errand, job_id))
        if errand.retries:
            self._plan_after(_RETRY_AFTER, partial(_retry_if_failed, errand, job_id))


def _follow(errand: Errand, job_id: str, talk: Talk) -> None:
    """As clients do, for a moment; what they see is in the journal."""
    if errand.looks == "stream":
        talk.watch(job_id, _WATCH_SECONDS, api=errand.api)
        return
    wait = "?wait=2" if errand.looks == "long poll" else ""
    talk.ask("GET", f"/v1/media/status/{job_id}{wait}", api=errand.api)


def _cancel(errand: Errand, job_id: str, talk: Talk) -> None:
    talk.ask("POST", f"/v1/media/jobs/{job_id}/cancel", {}, api=errand.api)


def _retry_if_failed(errand: Errand, job_id: str, talk: Talk) -> None:
    """Once more; where a second order may be paid for, the client says that it may."""
    found = talk.ask("GET", f"/v1/media/jobs/{job_id}", api=errand.api).json()
    if found.get("status") == "error":
        is_ambiguous = (found.get("error") or {}).get("code") == "ambiguous_submission"
        body = {"max_paid_submissions": 2} if is_ambiguous else {}
        talk.ask("POST", f"/v1/media/jobs/{job_id}/retry", body, key=f"{errand.key}-again", api=errand.api)
