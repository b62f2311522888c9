"""Many requests at once, and what came of each: an answer, or a connection that broke."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx2

from tests.cluster.cluster import FREE, Cluster

CLIENT_SECONDS = 20
"""What no request may take: a client that waited this long counts as hung."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw of one request."""

    seconds: float
    status: int | None
    """None: the connection broke before an answer came."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        """Of an accepted job."""
        return str(self.body["id"])


def ask(client: httpx2.Client, method: str, path: str, **request: Any) -> Answer:
    """One request, timed. A time-out is no answer that Fleek may give: it is raised."""
    began = time.monotonic()
    try:
        response = client.request(method, path, **request)
    except httpx2.TimeoutException:
        raise
    except httpx2.TransportError:
        return Answer(time.monotonic() - began, None)
    return Answer(time.monotonic() - began, response.status_code, response.headers, response.json())


def generate(client: httpx2.Client, prompt: str, *, key: str | None = None, **request: Any) -> Answer:
    """Submit one job; a small picture unless the request says more."""
    size = {"width": 64, "height": 64} if request.get("model", FREE) == FREE else {}
    headers = {} if key is None else {"Idempotency-Key": key}
    return ask(
        client, "POST", "/v1/media/generate", json={"prompt": prompt, **size, **request}, headers=headers
    )


def at_once(cluster: Cluster, calls: Sequence[Callable[[httpx2.Client], Answer]]) -> list[Answer]:
    """Every call in a thread of its own, over the apis in turn, begun at the same moment."""
    gate = threading.Barrier(len(calls))

    def run(number: int) -> Answer:
        with cluster.client(number % len(cluster.apis), CLIENT_SECONDS) as client:
            client.get("/livez")
            gate.wait()
            return calls[number](client)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, range(len(calls))))


class Load:
    """Clients that submit all the time, each in a thread, until the block ends."""

    def __init__(self, cluster: Cluster, name: str, *, clients: int = 4, pause: float = 0.05) -> None:
        self.answers: list[Answer] = []
        """In no order; complete once the block has ended."""
        self._cluster = cluster
        self._name = name
        self._pause = pause
        self._ended = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=[number]) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    @property
    def accepted(self) -> list[str]:
        """The ids of the jobs that were answered with 202."""
        return [answer.job_id for answer in self.answers if answer.status == httpx2.codes.ACCEPTED]

    def _run(self, number: int) -> None:
        try:
            with self._cluster.client(number % len(self._cluster.apis), CLIENT_SECONDS) as client:
                count = 0
                while not self._ended.wait(self._pause):
                    self.answers.append(generate(client, f"{self._name} {number}-{count}"))
                    count += 1
        except Exception as error:  # noqa: BLE001  told on the thread of the test
            self._failures.append(error)


def slowest(answers: Iterable[Answer], share: float = 0.99) -> float:
    """The seconds within which this share of the requests was answered."""
    times = sorted(answer.seconds for answer in answers)
    return times[min(int(len(times) * share), len(times) - 1)]


def wait_all(cluster: Cluster, job_ids: Iterable[str], seconds: float = 30) -> None:
    """Return once all of these jobs are completed; AssertionError with those that are not."""
    wanted = set(job_ids)
    deadline = time.monotonic() + seconds
    while missing := wanted - _completed(cluster):
        assert time.monotonic() < deadline, [cluster.job(job_id) for job_id in sorted(missing)[:3]]
        time.sleep(0.1)


def _completed(cluster: Cluster) -> set[str]:
    return {str(row["id"]) for row in cluster.query("SELECT id FROM jobs WHERE status = 'completed'")}
