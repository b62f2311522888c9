"""How one client talks with the apis: it asks until it knows, and writes down all of it.

It behaves as a careful client should: the same key for the same question, patience with 503, the other api
where one does not answer, and Last-Event-ID where a stream broke.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from fleek.core.events import TERMINAL_EVENTS
from tests.chaos.journal import Journal

_TIMEOUT = 15.0
_ASK_FOR = 180.0
"""Seconds for which one question is asked again."""
_LONGEST_PAUSE = 2.0
_SILENCE = 3.0
"""Seconds without a byte after which a stream is opened again elsewhere."""
_FINAL = frozenset({200, 202, 204, 404, 409, 410, 422})
"""Answers that asking again would not change."""
_RETRYABLE_409 = "idempotency_in_flight"


class GivenUpError(Exception):
    """Nobody answered for too long, or with something that no client expects."""


class Talk:
    """One client's conversation."""

    def __init__(
        self,
        client: httpx2.Client,
        urls: Sequence[str],
        journal: Journal,
        chance: random.Random,
        ended: threading.Event,
    ) -> None:
        self._client = client
        self._urls = urls
        self._journal = journal
        self._chance = chance
        self._ended = ended

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, api: int = 0
    ) -> httpx2.Response:
        """The final answer; raises GivenUpError."""
        until, asked = time.monotonic() + _ASK_FOR, 0
        while time.monotonic() < until:
            url = self._urls[(api + asked) % len(self._urls)] + path
            asked += 1
            answer = self._once(method, url, body, key, asked)
            if answer is not None and _is_final(answer):
                return answer
            wait = 0.2 if answer is None else float(answer.headers.get("retry-after", 1))
            if self._ended.wait(min(wait, _LONGEST_PAUSE) * self._chance.uniform(1, 1.5)):
                break
        message = f"{method} {path}: no answer after asking {asked} times"
        raise GivenUpError(message)

    def watch(self, job_id: str, seconds: float, api: int = 0) -> None:
        """Follow the events of a job for so long at most; what comes is in the journal."""
        until, asked = time.monotonic() + seconds, 0
        stream = _Stream(job_id, until)
        while not stream.is_over and time.monotonic() < until and not self._ended.is_set():
            url = f"{self._urls[(api + asked) % len(self._urls)]}/v1/media/jobs/{job_id}/events"
            asked += 1
            try:
                self._read(stream, url)
            except httpx2.TransportError:
                self._ended.wait(0.2)

    def _read(self, stream: _Stream, url: str) -> None:
        """One connection of a stream, as long as it goes."""
        headers = {"Last-Event-ID": str(stream.seen)} if stream.seen else {}
        patience = httpx2.Timeout(_TIMEOUT, read=_SILENCE)
        with self._client.stream("GET", url, headers=headers, timeout=patience) as answer:
            if answer.status_code != httpx2.codes.OK:
                self._journal.write(told=answer.status_code, url=url)
                self._ended.wait(1)
                return
            for line in answer.iter_lines():
                if stream.take(line):
                    self._journal.write(saw=stream.seen, job=stream.job_id, kind=stream.kind)
                if stream.is_over:
                    return

    def _once(self, method: str, url: str, body: Any, key: str | None, asked: int) -> httpx2.Response | None:
        """One request; None where no answer came."""
        headers: Mapping[str, str] = {} if key is None else {"Idempotency-Key": key}
        self._journal.write(asked=method, url=url, key=key, body=body)
        began = time.monotonic()
        try:
            answer = self._client.request(method, url, json=body, headers=headers)
        except httpx2.TransportError as error:
            self._journal.write(told=None, url=url, key=key, error=type(error).__name__)
            return None
        found = _object_of(answer)
        self._journal.write(
            told=answer.status_code,
            method=method,
            url=url,
            key=key,
            seconds=round(time.monotonic() - began, 4),
            time_of_asking=asked,
            job=found.get("id"),
            status=found.get("status") if answer.is_success else None,
        )
        return answer


class _Stream:
    """What a client knows of a stream, over all of its connections."""

    def __init__(self, job_id: str, until: float) -> None:
        self.job_id = job_id
        self.seen = 0
        """The id of the last event."""
        self.kind = ""
        self.is_over = False
        self._until = until

    def take(self, line: str) -> bool:
        """Read one line; whether it makes an event complete, as far as a client of ours looks."""
        name, _, value = line.partition(": ")
        if name == "event":
            self.kind = value
        elif name == "id":
            self.seen = int(value)
        elif not line:
            self.is_over = self.kind in TERMINAL_EVENTS or time.monotonic() > self._until
        return name == "id"


def _is_final(answer: httpx2.Response) -> bool:
    if answer.status_code == httpx2.codes.CONFLICT:
        return bool(_object_of(answer).get("code") != _RETRYABLE_409)
    return answer.status_code in _FINAL


def _object_of(answer: httpx2.Response) -> Mapping[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
