"""A job's events as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.api.serving import Api, problem
from tests.api.states import complete, delete, eventually, give_back
from tests.factories import make_completed_job, make_job

from fleek.api.deps import Call
from fleek.api.events import Pace, stream
from fleek.core.errors import DatabaseUnavailable
from fleek.core.job import Status
from fleek.core.owner import LOCAL_OWNER
from fleek.core.urls import Urls
from fleek.db.session import Database
from fleek.jobs.repository import list_events
from fleek.jobs.waiting import Waiters
from fleek.queue.base import Announcement
from fleek.queue.pubsub import RedisPubSub


@dataclass
class Message:
    """One server-sent event, or a comment."""

    event: str | None = None
    data: Any = None
    id: str | None = None
    retry: str | None = None
    comment: str | None = None


async def messages(client: httpx2.AsyncClient, job_id: object, **headers: str) -> AsyncIterator[Message]:
    """What the stream sends, until it ends; parsed as the HTML standard says."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.stream("GET", f"/v1/media/jobs/{job_id}/events", headers=sent) as answer:
        assert answer.status_code == 200
        message = Message()
        async for line in answer.aiter_lines():
            if not line:
                yield message
                message = Message()
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            setattr(message, name or "comment", json.loads(value) if name == "data" else value)


async def collect(client: httpx2.AsyncClient, job_id: object, **headers: str) -> list[Message]:
    async with asyncio.timeout(20):
        return [message async for message in messages(client, job_id, **headers)]


def kinds(received: list[Message]) -> list[tuple[str | None, str | None]]:
    return [(message.event, message.id) for message in received if message.event]


async def test_the_history_of_a_finished_job_is_sent_whole_and_ends(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_completed_job(database)
    received = await collect(client, job.id)

    assert received[0].retry == "2000"
    assert kinds(received) == [("accepted", "1"), ("claimed", "2"), ("completed", "3")]
    assert received[-1].data["job_id"] == str(job.id)
    assert (received[-1].data["sequence"], received[-1].data["status"]) == (3, "completed")
    assert received[-1].data["at"].endswith("Z")


async def test_a_stream_is_not_kept_or_compressed_on_its_way(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_completed_job(database)
    answer = await client.get(f"/media/jobs/{job.id}/events", headers={"Accept-Encoding": "gzip"})

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(("after", "rest"), [("0", ["1", "2", "3"]), ("1", ["2", "3"]), ("2", ["3"])])
async def test_a_client_that_comes_back_gets_what_it_has_not_seen(
    client: httpx2.AsyncClient, database: Database, after: str, rest: list[str]
) -> None:
    job = await make_completed_job(database)
    received = await collect(client, job.id, Last_Event_ID=after)

    assert [identifier for _, identifier in kinds(received)] == rest


async def test_a_client_that_has_seen_the_end_is_told_to_stop_asking(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_completed_job(database)
    answer = await client.get(f"/v1/media/jobs/{job.id}/events", headers={"Last-Event-ID": "3"})

    assert (answer.status_code, answer.content) == (204, b"")


async def test_an_id_that_the_stream_never_sent_is_refused(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)
    answer = await client.get(f"/v1/media/jobs/{job.id}/events", headers={"Last-Event-ID": "2"})

    assert problem(answer.json()) == (400, "invalid_last_event_id")


async def test_a_job_that_was_retried_is_followed_beyond_its_first_end(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.ERROR)
    await client.post(f"/v1/media/jobs/{job.id}/retry")
    following = asyncio.create_task(collect(client, job.id))
    await asyncio.sleep(0.5)
    await client.post(f"/v1/media/jobs/{job.id}/cancel")

    assert [event for event, _ in kinds(await following)] == [
        "accepted", "claimed", "failed", "retried", "canceled",
    ]  # fmt: skip


async def test_what_happens_is_sent_when_it_was_announced_and_when_it_was_not(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    following = asyncio.create_task(collect(client, job.id))
    await asyncio.sleep(0.5)
    await give_back(database, job)
    await asyncio.sleep(2.5)
    await client.post(f"/v1/media/jobs/{job.id}/cancel")

    assert kinds(await following) == [
        ("accepted", "1"), ("claimed", "2"), ("deferred", "3"), ("canceled", "4"),
    ]  # fmt: skip


async def test_progress_has_no_id_and_never_falls(
    client: httpx2.AsyncClient, database: Database, api: Api
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    pubsub = RedisPubSub(api.settings.resolved_redis_url)
    await pubsub.start()
    received = []
    async with asyncio.timeout(20), aclosing(messages(client, job.id)) as streamed:
        async for message in streamed:
            received.append(message)
            if message.event == "claimed":
                pubsub.announce(Announcement(job.id, progress=0.25))
            elif message.data == {"progress": 0.25}:
                pubsub.announce(Announcement(job.id, progress=0.2))
                pubsub.announce(Announcement(job.id, progress=0.5))
            elif message.data == {"progress": 0.5}:
                await complete(database, job)
                pubsub.announce(Announcement(job.id))
    await pubsub.aclose()

    told = [message for message in received if message.event == "progress"]
    assert [message.data for message in told] == [{"progress": 0.25}, {"progress": 0.5}]
    assert {message.id for message in told} == {None}
    assert received[-1].event == "completed"


async def test_a_client_that_leaves_gives_its_registration_back(
    client: httpx2.AsyncClient, database: Database, api: Api
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    waiters: Waiters = api.app.state.context.waiters
    async with aclosing(messages(client, job.id)) as streamed:
        first = [await anext(streamed) for _ in range(3)]
        during = waiters.count(job.id)
    await eventually(lambda: waiters.count(job.id) == 0)

    assert first[1].event == "accepted"
    assert during == 1


async def test_a_stream_ends_when_its_job_is_deleted(client: httpx2.AsyncClient, database: Database) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    following = asyncio.create_task(collect(client, job.id))
    await asyncio.sleep(0.5)
    await delete(database, job)
    received = await following

    assert [event for event, _ in kinds(received)] == ["accepted", "claimed"]


@pytest.fixture
def call(api: Api, database: Database) -> Call:
    """A call without a request: the parts of a stream, on the test's own event loop."""
    jobs = _Jobs(database)
    context = SimpleNamespace(
        jobs=jobs, waiters=Waiters(database, RedisPubSub(api.settings.resolved_redis_url))
    )
    return Call(context, LOCAL_OWNER, Urls(api.url))  # type: ignore[arg-type]  all that a stream uses


async def test_silence_is_broken_by_comments_until_the_stream_is_old(call: Call, database: Database) -> None:
    job = await make_job(database)
    pace = Pace(ping_interval=0.2, max_age=0.5)
    received = [message async for message in stream(call, job.id, 1, pace)]

    assert received[0] == b"retry: 2000\n\n"
    assert set(received[1:]) == {b": ping\n\n"}


async def test_a_database_that_is_away_delays_a_stream_and_does_not_end_it(
    call: Call, database: Database
) -> None:
    job = await make_completed_job(database)
    call.context.jobs.failures = 3  # type: ignore[attr-defined]  a _Jobs
    received = [message async for message in stream(call, job.id, 2, Pace(database_pause=0.01))]

    assert [message.split(b"\n")[0] for message in received] == [b"retry: 2000", b"event: completed"]


class _Jobs:
    """The events of jobs, from a database that is away for a few times first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.failures = 0

    async def events(self, owner: str, job_id: UUID, after: int) -> Any:
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailable
        return await list_events(self._database, owner, job_id, after)


async def test_fifty_dropped_connections_lose_and_repeat_nothing(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)
    seen = await _seen_with_drops(client, job.id, drops=50)
    await client.post(f"/v1/media/jobs/{job.id}/cancel")
    rest = await collect(client, job.id, Last_Event_ID=str(seen[-1]))

    assert seen + [int(message.id) for message in rest if message.id] == [1, 2]


async def _seen_with_drops(client: httpx2.AsyncClient, job_id: UUID, drops: int) -> list[int]:
    """Read one message behind the first, hang up, and continue with the last id, again and again."""
    seen: list[int] = []
    for _ in range(drops):
        headers = {"Last_Event_ID": str(seen[-1])} if seen else {}
        async with aclosing(messages(client, job_id, **headers)) as streamed:
            await anext(streamed)
            if not seen:
                seen.append(int((await anext(streamed)).id or 0))
    return seen
