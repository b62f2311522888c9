"""Clients of event streams that come and go, or only sit there: rows 42 and 43 of the fault matrix."""

from __future__ import annotations

import json
import random
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from tests.cluster.cluster import FREE, PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants
from tests.cluster.load import Answer, generate, slowest
from tests.cluster.parts import Part

DROPS = 50
FILES = 4096
IDLE_MODEL = '[models.idle]\nprovider = "demo"\nqueue = "nobody"\n'
"""Jobs that no worker takes, so that their streams have nothing to say."""
BYTES_PER_STREAM = 150_000
"""Three times what one stream takes of an api's memory."""
ANSWER_SECONDS = 1.5
POOL = 20
"""Connections that an api of this cluster may have: its pool and the overflow."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    # Each stream is a file of this process, and one of the api, which inherits this limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if 0 < hard < FILES else FILES, hard))
    with open_cluster(apis=1, workers=1, config=IDLE_MODEL) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    yield shared
    check_invariants(shared)


def open_stream(cluster: Cluster, job_id: str, last: int = 0) -> socket.socket:
    """The raw connection of a stream, which begins behind the event `last`."""
    host, port = cluster.apis[0].url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    path, headers = f"/v1/media/jobs/{job_id}/events", f"Host: {host}\r\nLast-Event-ID: {last}"
    connection.sendall(f"GET {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode())
    return connection


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    """What arrives until it holds `wanted`, or nothing comes for long."""
    connection.settimeout(20)
    received = b""
    while wanted not in received and (chunk := connection.recv(4096)):
        received += chunk
    return received


def read_some(connection: socket.socket, limit: int) -> bytes:
    """What arrives until there are `limit` bytes, or the stream pauses or ends."""
    connection.settimeout(0.15)
    received = b""
    while len(received) < limit:
        try:
            chunk = connection.recv(limit - len(received))
        except TimeoutError:
            break
        if not chunk:
            break
        received += chunk
    return received


def events_in(received: bytes) -> list[tuple[int, str]]:
    """Id and kind of each event that arrived to its end."""
    whole, _, _ = received.rpartition(b"\n\n")
    found = []
    for block in whole.decode().split("\n\n"):
        fields = dict(re.findall(r"^(id|data): (.*)$", block, re.MULTILINE))
        if "id" in fields:
            found.append((int(fields["id"]), str(json.loads(fields["data"])["kind"])))
    return found


@pytest.mark.slow
def test_a_client_that_drops_fifty_times_sees_every_event_once_and_in_order(cluster: Cluster) -> None:
    chance = random.Random(4)  # noqa: S311  where the connection breaks, no secret
    cluster.vendor.on("create", times=2, status=503)
    job = cluster.submit("followed by a bad connection", model=PAID, n=3, input={"fake": {"seconds": 1}})
    seen: list[tuple[int, str]] = []
    drops = 0
    deadline = time.monotonic() + 60
    while drops < DROPS or not (seen and seen[-1][1] == "completed"):
        assert time.monotonic() < deadline, seen
        with open_stream(cluster, job, seen[-1][0] if seen else 0) as connection:
            # Mostly in the middle of the headers, or of an event.
            seen += events_in(read_some(connection, chance.randrange(100, 900)))
        drops += 1

    happened = cluster.query("SELECT sequence, kind FROM events WHERE job_id = $1::uuid ORDER BY 1", job)
    assert seen == [(row["sequence"], row["kind"]) for row in happened]
    assert len(seen) >= 10


def resident_bytes(part: Part) -> int:
    status = Path(f"/proc/{part.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024


def connections_of_api(cluster: Cluster) -> int:
    return len(cluster.query("SELECT FROM pg_stat_activity WHERE application_name = 'fleek api'"))


def beside(client: httpx2.Client, prompt: str) -> Answer:
    """A job that workers do take."""
    return generate(client, f"beside {prompt}", model=FREE)


@pytest.mark.slow
@pytest.mark.parametrize("streams", [300, 1000])
def test_idle_streams_hold_little_memory_and_no_connection_of_the_database(
    cluster: Cluster, streams: int
) -> None:
    api = cluster.apis[0]
    jobs = [cluster.submit(f"idle {streams}-{number}", model="idle") for number in range(20)]
    before = resident_bytes(api)
    idle: list[socket.socket] = []
    try:
        idle.extend(open_stream(cluster, jobs[number % len(jobs)]) for number in range(streams))
        # Some are read; the others never are.
        heads = [read_until(connection, b"event: accepted") for connection in idle[:: streams // 20]]
        with cluster.client() as client:
            answers = [beside(client, f"{streams} streams {number}") for number in range(20)]
        grown = resident_bytes(api) - before
        connections = connections_of_api(cluster)
    finally:
        for connection in idle:
            connection.close()

    assert all(b"event: accepted" in head for head in heads)
    assert {answer.status for answer in answers} == {202}
    assert slowest(answers, 0.9) < ANSWER_SECONDS
    assert connections <= POOL
    assert grown < 30_000_000 + streams * BYTES_PER_STREAM
    for answer in answers:
        assert cluster.wait_end(answer.job_id)["status"] == "completed"
