"""The round trip through Celery, over a real broker and with a real worker process."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from tests.api.serving import running_api
from tests.middle import middle_of
from tests.queueing import wait_until
from tests.workers import CELERY, FLEEK, Start

from fleek import __version__
from fleek.local.valkey import ValkeyServer
from fleek.queue.base import Presence
from fleek.queue.celery_app import create_celery_app, publish_ping
from fleek.queue.round_trip import Responder, RoundTrip, RoundTrips

HERE = Presence("worker-1", ("default",), "1.0", ready=True)
AWAY = "unix:///no/such/folder/valkey.sock"


class Post:
    """Hands pings straight to a worker's side, as Celery would, and counts them."""

    def __init__(self, responder: Responder | None) -> None:
        self.sent: list[tuple[str, str]] = []
        self._responder = responder
        self._loop = asyncio.get_running_loop()

    def __call__(self, queue: str, reply_to: str) -> None:
        """Deliver one."""
        self.sent.append((queue, reply_to))
        if self._responder is not None:
            self._loop.call_soon_threadsafe(self._responder.answer, reply_to, queue)


@asynccontextmanager
async def asking(
    url: str, queues: Sequence[str] = ("default",), *, is_answered: bool = True, within: float = 0.4
) -> AsyncIterator[tuple[RoundTrips, Post]]:
    responder = Responder(url, lambda: HERE)
    post = Post(responder if is_answered else None)
    trips = RoundTrips(url, post, queues, within=within if not is_answered else 20)
    yield trips, post
    await trips.aclose()
    await responder.aclose()


async def test_who_answers_is_named_for_each_queue(redis_url: str) -> None:
    async with asking(redis_url, ("default", "gpu")) as (trips, post):
        first, second = await trips.ask()

    assert (first.queue, first.presence, first.waiting) == ("default", HERE, 0)
    assert (second.queue, second.presence) == ("gpu", HERE)
    assert first.latency is not None
    assert 0 <= first.latency < 20
    assert len(post.sent) == 2


async def test_connections_that_were_cut_while_they_lay_idle_are_no_broker_that_is_away(
    redis_url: str, valkey: ValkeyServer
) -> None:
    async with (
        middle_of(valkey.socket) as (_, port),
        Redis.from_url(redis_url) as redis,
        asking(f"redis://127.0.0.1:{port}/0") as (trips, _),
    ):
        await trips.ask()
        await redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.2)
        [found] = await trips.ask()

    assert found.presence == HERE


async def test_nobody_answers_in_time(redis_url: str) -> None:
    async with asking(redis_url, is_answered=False) as (trips, _):
        began = asyncio.get_running_loop().time()
        found = await trips.ask()
        seconds = asyncio.get_running_loop().time() - began

    assert found == (RoundTrip("default", 0, None, None),)
    assert 0.4 <= seconds < 5


async def test_whoever_asks_meanwhile_gets_the_same_answer(redis_url: str) -> None:
    async with asking(redis_url, is_answered=False) as (trips, post):
        found = await asyncio.gather(*(trips.ask() for _ in range(50)))

    assert len(set(found)) == 1
    assert len(post.sent) == 1


async def test_whoever_leaves_takes_the_answer_from_nobody(redis_url: str) -> None:
    async with asking(redis_url, is_answered=False) as (trips, post):
        left, stayed = asyncio.create_task(trips.ask()), asyncio.create_task(trips.ask())
        await asyncio.sleep(0.05)
        left.cancel()
        found = await stayed

    assert found[0].presence is None
    assert len(post.sent) == 1


async def test_a_queue_in_which_messages_pile_up_gets_no_more_of_them(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis, asking(redis_url, ("default", "gpu")) as (trips, post):
        await redis.rpush("fleek.default", *["wake"] * 101)
        crowded, served = await trips.ask()

    assert (crowded.waiting, crowded.presence) == (101, None)
    assert served.presence == HERE
    assert [queue for queue, _ in post.sent] == ["gpu"]


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'{"queue": "other", "worker": "w", "queues": [], "version": "1", "ready": true}',
        b'{"queue": "default", "worker": "w", "queues": 7, "version": "1", "ready": true}',
    ],
)
async def test_what_is_no_answer_of_a_worker_is_none(redis_url: str, answer: bytes) -> None:
    async with Redis.from_url(redis_url) as redis:
        loop = asyncio.get_running_loop()

        def forge(_queue: str, reply_to: str) -> None:
            key = f"fleek:ping:{reply_to}"
            asyncio.run_coroutine_threadsafe(redis.rpush(key, answer), loop).result(20)

        trips = RoundTrips(redis_url, forge, ["default"], within=0.4)
        found = await trips.ask()
        await trips.aclose()

    assert found[0].presence is None


async def test_an_answer_that_nobody_fetches_does_not_stay(redis_url: str) -> None:
    responder, reply_to = Responder(redis_url, lambda: HERE), secrets.token_hex(16)
    responder.answer(reply_to, "default")
    async with Redis.from_url(redis_url) as redis:

        async def is_there() -> bool:
            return bool(await redis.exists(f"fleek:ping:{reply_to}"))

        await wait_until(is_there)
        seconds = await redis.ttl(f"fleek:ping:{reply_to}")
    await responder.aclose()

    assert 0 < seconds <= 30


@pytest.mark.parametrize("reply_to", ["", "jobs", "x" * 32, "A" * 32, "0" * 33, "../" + "0" * 29])
async def test_a_worker_writes_to_no_other_key(redis_url: str, reply_to: str) -> None:
    responder = Responder(redis_url, lambda: HERE)
    responder.answer(reply_to, "default")
    await asyncio.sleep(0.1)
    async with Redis.from_url(redis_url) as redis:
        keys = await redis.keys("*")
    await responder.aclose()

    assert keys == []


async def test_a_flood_of_pings_makes_a_worker_answer_a_few_at_a_time() -> None:
    responder = Responder(AWAY, lambda: HERE)
    for _ in range(100):
        responder.answer(secrets.token_hex(16), "default")
    answering = len(responder._answering)
    await responder.aclose()

    assert answering == 16


async def test_a_broker_that_is_away_is_an_error_of_the_system() -> None:
    app = create_celery_app("redis://127.0.0.1:1")
    trips = RoundTrips(AWAY, partial(publish_ping, app), ["default"])
    with pytest.raises(OSError, match=r"."):
        await trips.ask()
    await trips.aclose()
    with pytest.raises(OSError, match="the broker takes no message"):
        await asyncio.to_thread(publish_ping, app, "default", "0" * 32)
    app.close()


async def test_a_broker_that_says_nothing_is_given_up_and_holds_no_loop(valkey: ValkeyServer) -> None:
    async with middle_of(valkey.socket) as (middle, port):
        app = create_celery_app(f"redis://127.0.0.1:{port}")
        trips = RoundTrips(f"redis://127.0.0.1:{port}", partial(publish_ping, app), ["default"], within=0.2)
        await trips.ask()
        middle.fall_silent()
        with pytest.raises(OSError, match=r".|^$"):
            async with asyncio.timeout(20):
                await trips.ask()
        await trips.aclose()
    await asyncio.to_thread(app.close)


@pytest.mark.parametrize("command", [FLEEK, CELERY], ids=["fleek", "celery"])
async def test_a_worker_process_answers_and_everything_is_well(
    start: Start, command: tuple[str, ...], queue_url: str, redis_url: str, tmp_path: Path
) -> None:
    worker = await start(command).started()
    with running_api(tmp_path / "api", database_url=queue_url, redis_url=redis_url) as api:

        def is_well() -> bool:
            (queue,) = api.ask("GET", "/tools/celery_status").json()["queues"]
            return queue["worker"] is not None and bool(queue["worker"]["ready"])

        await wait_until(lambda: asyncio.to_thread(is_well), within=20)
        celery = await asyncio.to_thread(lambda: api.ask("GET", "/tools/celery_status").json())
        status = await asyncio.to_thread(lambda: api.ask("GET", "/tools/status"))

    (queue,) = celery["queues"]
    assert queue["queue"] == "default"
    assert queue["worker"]["name"].startswith(socket.gethostname())
    assert queue["worker"] | {"name": ""} == {
        "name": "",
        "version": __version__,
        "queues": ["default"],
        "ready": True,
    }
    assert 0 < queue["latency_ms"] < 2500
    assert (status.status, status.json()["status"]) == (200, "ok")
    assert {part["status"] for part in status.json()["checks"].values()} == {"ok"}
    assert "Traceback" not in worker.log.read_text()


async def test_a_question_that_a_worker_does_not_know_ends_nothing(start: Start, redis_url: str) -> None:
    worker = await start().started()
    with create_celery_app(redis_url) as app:
        for arguments in ([], ["x"], ["0" * 32, "default"]):
            app.send_task("fleek.ping", args=arguments, queue="fleek.default")
        app.send_task("fleek.of_next_year", args=[1], queue="fleek.default")
        trips = RoundTrips(redis_url, partial(publish_ping, app), ["default"], within=20)
        found = await trips.ask()
        await trips.aclose()

    assert found[0].presence is not None
    assert worker.process.poll() is None
