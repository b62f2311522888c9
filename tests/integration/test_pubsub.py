"""Announcements over a real Valkey: hints that arrive when all is well, and harm nobody when it is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from tests.middle import middle_of
from tests.queueing import away, wait_until

from fleek.core.ids import new_id
from fleek.local.valkey import ValkeyServer
from fleek.queue.base import Announcement, PubSub
from fleek.queue.pubsub import RedisPubSub
from fleek.testing import RecordingPubSub

CHANNEL = "fleek:announcements"
AWAY = "unix:///no/such/folder/valkey.sock"


class Process:
    """One process's end of the channel, and what it heard."""

    def __init__(self, url: str, **options: float) -> None:
        self.pubsub = RedisPubSub(url, **options)
        self.heard: list[Announcement] = []
        self.connects = 0
        self.pubsub.listen(self.heard.append, self._count)

    def _count(self) -> None:
        self.connects += 1

    async def connected(self, times: int = 1) -> None:
        await wait_until(lambda: self.connects >= times)


@pytest.fixture
async def start() -> AsyncIterator[Callable[[str], Any]]:
    """A function that starts one process's end."""
    started: list[Process] = []

    async def start_one(url: str) -> Process:
        process = Process(url)
        started.append(process)
        await process.pubsub.start()
        return process

    yield start_one
    for process in started:
        await process.pubsub.aclose()


Start = Callable[[str], Any]


async def test_a_hint_reaches_every_process_that_listens(redis_url: str, start: Start) -> None:
    one, other = await start(redis_url), await start(redis_url)
    await one.connected()
    await other.connected()
    sent = [
        Announcement(new_id()),
        Announcement(new_id(), progress=0.5),
        Announcement(new_id(), progress=1),
        Announcement(new_id(), cancel=True),
    ]
    for announcement in sent:
        one.pubsub.announce(announcement)

    await wait_until(lambda: len(one.heard) == len(other.heard) == 4)

    assert one.heard == other.heard == sent


async def test_a_burst_arrives_whole_and_in_order(redis_url: str, start: Start) -> None:
    process = await start(redis_url)
    await process.connected()
    sent = [Announcement(new_id(), progress=number / 1000) for number in range(1000)]
    for announcement in sent:
        process.pubsub.announce(announcement)

    await wait_until(lambda: len(process.heard) == 1000)

    assert process.heard == sent


async def test_an_end_that_only_sends_subscribes_to_nothing(redis_url: str) -> None:
    async with Redis.from_url(redis_url, decode_responses=True) as redis:
        before = await subscribers(redis)
        sender = RedisPubSub(redis_url)
        await sender.start()
        sender.announce(Announcement(new_id()))
        await sender.ping()

        # The server is shared with other tests, whose subscribers may leave meanwhile.
        assert await subscribers(redis) <= before
        await sender.aclose()


async def subscribers(redis: Redis) -> set[str]:
    """The ids of the connections that subscribe to anything."""
    return {client["id"] for client in await redis.client_list() if client["sub"] != "0"}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[1]",
        b'"text"',
        b"{}",
        b'{"job_id": "no uuid"}',
        b'{"job_id": 5}',
        b'{"job_id": null}',
        b'{"job_id": ["x"]}',
        *(
            json.dumps({"job_id": "01920000-0000-7000-8000-000000000001"} | odd).encode()
            for odd in (
                {"progress": "half"},
                {"progress": [1]},
                {"progress": True},
                {"progress": float("nan")},
                {"progress": float("inf")},
                {"cancel": 1},
                {"cancel": None},
            )
        ),
    ],
)
async def test_what_somebody_else_says_on_the_channel_is_ignored(
    redis_url: str, start: Start, payload: bytes
) -> None:
    process = await start(redis_url)
    await process.connected()
    redis = Redis.from_url(redis_url)
    await redis.publish(CHANNEL, payload)
    await redis.aclose()
    sent = Announcement(new_id(), progress=1.0)
    process.pubsub.announce(sent)

    await wait_until(lambda: process.heard)

    assert process.heard == [sent]


async def test_a_listener_that_fails_does_not_silence_the_others(redis_url: str) -> None:
    heard: list[Announcement] = []

    def fail(_: Announcement) -> None:
        raise ZeroDivisionError

    process = Process(redis_url)
    process.pubsub.listen(fail, lambda: None)
    process.pubsub.listen(heard.append, lambda: None)
    await process.pubsub.start()
    await process.connected()
    for _ in range(2):
        process.pubsub.announce(Announcement(new_id()))

    await wait_until(lambda: len(heard) == 2)

    assert process.heard == heard
    await process.pubsub.aclose()


async def test_a_channel_on_which_nothing_is_said_for_a_while_stays_connected(
    redis_url: str, start: Start
) -> None:
    process = await start(redis_url)
    await process.connected()
    await asyncio.sleep(2.5)
    process.pubsub.announce(Announcement(new_id()))

    await wait_until(lambda: process.heard)

    assert process.connects == 1


async def test_after_a_restart_of_the_broker_listeners_are_told_to_look_and_hear_again(
    redis_url: str, start: Start, valkey: ValkeyServer
) -> None:
    process = await start(redis_url)
    await process.connected()
    async with away(valkey):
        process.pubsub.announce(Announcement(new_id()))
    await process.connected(times=2)
    sent = Announcement(new_id())

    async def heard() -> bool:
        process.pubsub.announce(sent)
        await asyncio.sleep(0.1)
        return sent in process.heard

    await wait_until(heard)


class TestBrokerAway:
    async def test_announcing_neither_blocks_nor_raises_nor_gathers_without_bound(self) -> None:
        pubsub = RedisPubSub(AWAY)
        await pubsub.start()
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(20_000):
            pubsub.announce(Announcement(new_id()))
        seconds = loop.time() - started
        gathered = pubsub._outbox.qsize()
        await asyncio.wait_for(pubsub.aclose(), timeout=4)

        assert seconds < 2
        assert gathered == 10_000

    async def test_a_ping_on_a_connection_that_was_cut_while_it_lay_idle_is_answered(
        self, redis_url: str, valkey: ValkeyServer
    ) -> None:
        async with middle_of(valkey.socket) as (_, port), Redis.from_url(redis_url) as redis:
            pubsub = RedisPubSub(f"redis://127.0.0.1:{port}/0")
            await pubsub.ping()
            cut = await redis.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.2)
            await pubsub.ping()
            await pubsub.aclose()

        assert cut >= 1

    async def test_a_ping_says_so(self, redis_url: str) -> None:
        away, there = RedisPubSub(AWAY), RedisPubSub(redis_url)

        with pytest.raises(OSError, match="No such file"):
            await away.ping()
        await there.ping()
        await away.aclose()
        await there.aclose()

    async def test_a_broker_that_never_answers_is_given_up_in_time(self) -> None:
        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
        pubsub = RedisPubSub(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pubsub.ping(), timeout=4)
        await asyncio.wait_for(pubsub.aclose(), timeout=4)
        server.close()
        await server.wait_closed()

    async def test_what_is_pending_is_sent_at_the_end(self, redis_url: str, start: Start) -> None:
        listener = await start(redis_url)
        await listener.connected()
        sender = RedisPubSub(redis_url)
        await sender.start()
        sender.announce(sent := Announcement(new_id()))
        await sender.aclose()

        await wait_until(lambda: listener.heard)

        assert listener.heard == [sent]


async def test_a_connection_that_falls_silent_is_replaced_and_listeners_are_told_to_look(
    valkey: ValkeyServer,
) -> None:
    async with middle_of(valkey.socket) as (middle, port):
        process = Process(f"redis://127.0.0.1:{port}", silence=0.3)
        await process.pubsub.start()
        await process.connected()
        await asyncio.sleep(1)
        before = process.connects
        middle.fall_silent()
        await process.connected(times=2)
        await process.pubsub.aclose()

    assert before == 1


class TestRecording:
    async def test_the_fake_for_tests_notes_and_delivers(self) -> None:
        pubsub: PubSub = (recording := RecordingPubSub())
        heard: list[Announcement] = []
        connects: list[None] = []
        pubsub.listen(heard.append, lambda: connects.append(None))
        await pubsub.start()
        pubsub.announce(sent := Announcement(new_id()))
        recording.reconnect()
        await pubsub.aclose()

        assert recording.announced == heard == [sent]
        assert len(connects) == 2
        assert recording.closed


@pytest.mark.parametrize("turns", range(12))
async def test_it_ends_at_once_however_far_it_has_come_with_connecting(redis_url: str, turns: int) -> None:
    for _ in range(5):
        process = Process(redis_url)
        await process.pubsub.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await process.pubsub.aclose()

        assert all(task.done() for task in process.pubsub._tasks)
