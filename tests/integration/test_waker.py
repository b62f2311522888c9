"""Wake-ups over a real Valkey: coalesced, never in the way, and nothing more than a queue's name."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from fleek.local.valkey import ValkeyServer
from fleek.queue.base import WAKE_TASK, Waker, broker_queue
from fleek.queue.celery_app import CeleryWaker, broker_url, create_celery_app, register_wake_task
from fleek.testing import RecordingWaker

AWAY = "unix:///no/such/folder/valkey.sock"


@pytest.fixture
def broker(redis_url: str) -> Iterator[Redis]:
    """A look into the broker."""
    redis = Redis.from_url(redis_url)
    yield redis
    redis.close()


@pytest.fixture
def open_waker() -> Iterator[Callable[[str], CeleryWaker]]:
    """A function that opens a waker."""
    opened: list[tuple[CeleryWaker, Celery]] = []

    def open_one(url: str) -> CeleryWaker:
        app = create_celery_app(url)
        opened.append((CeleryWaker(app), app))
        return opened[-1][0]

    yield open_one
    for waker, app in opened:
        waker.close()
        app.close()


Open = Callable[[str], CeleryWaker]


def messages(broker: Redis, queue: str = "default") -> list[dict[str, Any]]:
    """The messages that lie in a queue, as Celery wrote them."""
    raw: Any = broker.lrange(broker_queue(queue), 0, -1)
    return [json.loads(message) for message in raw]


def wait_for_messages(broker: Redis, count: int, queue: str = "default") -> list[dict[str, Any]]:
    until = time.monotonic() + 5
    while len(found := messages(broker, queue)) < count:
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_a_wake_up_names_its_queue_and_no_job(redis_url: str, broker: Redis, open_waker: Open) -> None:
    open_waker(redis_url).wake("default")

    [message] = wait_for_messages(broker, 1)

    arguments, options, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, options) == (["default"], {})
    assert message["headers"]["task"] == WAKE_TASK


def test_every_queue_has_its_own(redis_url: str, broker: Redis, open_waker: Open) -> None:
    waker = open_waker(redis_url)
    waker.wake("gpu")
    waker.wake("default")

    assert wait_for_messages(broker, 1, "gpu")
    assert wait_for_messages(broker, 1)


def test_a_burst_of_wake_ups_becomes_a_few_messages(redis_url: str, broker: Redis, open_waker: Open) -> None:
    waker = open_waker(redis_url)
    waker.wake("default")
    wait_for_messages(broker, 1)
    started = time.perf_counter()
    for _ in range(1000):
        waker.wake("default")
    seconds = time.perf_counter() - started
    waker.close()

    assert 2 <= len(messages(broker)) < 100
    assert seconds < 0.5


def test_the_longer_wake_ups_keep_coming_the_fewer_are_published(
    redis_url: str, broker: Redis, open_waker: Open
) -> None:
    waker = open_waker(redis_url)
    started = time.perf_counter()
    while time.perf_counter() - started < 0.5:
        waker.wake("default")
        time.sleep(0.0005)
    waker.close()

    assert 3 <= len(messages(broker)) <= 55


def test_a_wake_up_after_a_publish_began_is_published_again(
    redis_url: str, broker: Redis, open_waker: Open
) -> None:
    waker = open_waker(redis_url)
    for count in range(1, 6):
        waker.wake("default")
        wait_for_messages(broker, count)

    assert len(messages(broker)) == 5


def test_wake_ups_that_no_worker_takes_do_not_pile_up_for_ever(
    redis_url: str, broker: Redis, open_waker: Open
) -> None:
    for _ in range(101):
        broker.lpush(broker_queue("default"), "{}")
    waker = open_waker(redis_url)
    for _ in range(50):
        waker.wake("default")
        waker.wake("gpu")
        time.sleep(0.01)
    while_crowded = broker.llen(broker_queue("default"))
    broker.delete(broker_queue("default"))
    time.sleep(0.6)
    waker.wake("default")

    assert wait_for_messages(broker, 1)
    assert while_crowded == 102
    assert len(messages(broker, "gpu")) > 10


def test_what_is_pending_is_published_at_the_end(redis_url: str, broker: Redis, open_waker: Open) -> None:
    waker = open_waker(redis_url)
    waker.wake("default")
    waker.close()

    assert len(messages(broker)) == 1


def test_waking_a_queue_that_cannot_be_does_not_end_the_waking_of_others(
    redis_url: str, broker: Redis, open_waker: Open
) -> None:
    waker = open_waker(redis_url)
    waker.wake("No Queue")
    time.sleep(0.1)
    waker.wake("default")

    assert wait_for_messages(broker, 1)


def test_a_broker_that_is_away_neither_blocks_nor_raises(open_waker: Open) -> None:
    waker = open_waker(AWAY)
    started = time.perf_counter()
    for _ in range(1000):
        waker.wake("default")
        time.sleep(0.0001)
    seconds = time.perf_counter() - started
    waker.close()

    assert seconds < 1
    assert time.perf_counter() - started < 5


def test_a_broker_that_comes_back_gets_the_next_wake_up(
    redis_url: str, broker: Redis, open_waker: Open, valkey: ValkeyServer
) -> None:
    waker = open_waker(redis_url)
    waker.wake("default")
    wait_for_messages(broker, 1)
    valkey.stop()
    try:
        waker.wake("default")
        time.sleep(0.2)
    finally:
        valkey.launch()
        valkey.wait_ready()
    until = time.monotonic() + 8
    while not messages(broker):
        assert time.monotonic() < until
        waker.wake("default")
        time.sleep(0.1)


def test_the_task_calls_back_with_the_queue_and_its_own_id() -> None:
    app = create_celery_app("redis://127.0.0.1:1")
    calls: list[tuple[str, str | None]] = []
    register_wake_task(app, lambda queue, task_id: calls.append((queue, task_id)))
    task = app.tasks[WAKE_TASK]

    task.apply(args=["gpu"], task_id="task-1")
    task.apply(task_id="task-2")

    assert calls == [("gpu", "task-1"), ("default", "task-2")]


def test_a_message_can_be_lost_so_nothing_that_would_make_it_matter_is_on() -> None:
    settings = create_celery_app("redis://127.0.0.1:1", ("default", "gpu")).conf

    assert not settings.task_acks_late
    assert settings.task_ignore_result
    assert settings.result_backend is None
    assert settings.accept_content == ["json"]
    assert settings.worker_pool == "threads"
    assert (settings.worker_concurrency, settings.worker_prefetch_multiplier) == (2, 1)
    assert not settings.worker_enable_remote_control
    assert settings.broker_transport_options["socket_timeout"] == 2
    assert [queue.name for queue in settings.task_queues] == ["fleek.default", "fleek.gpu"]


@pytest.mark.parametrize(
    ("url", "celerys"),
    [
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("unix:///run/valkey.sock?db=1", "redis+socket:///run/valkey.sock?db=1"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("rediss://host", "rediss://host?ssl_cert_reqs=required"),
        (
            "rediss://host/1?ssl_ca_certs=/ca.pem",
            "rediss://host/1?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required",
        ),
        ("rediss://host?ssl_cert_reqs=none", "rediss://host?ssl_cert_reqs=none"),
    ],
)
def test_celery_spells_a_socket_in_its_own_way_and_checks_certificates(url: str, celerys: str) -> None:
    assert broker_url(url) == celerys


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a" * 64, "a\n", "ä", "fleek.a"])
def test_a_queue_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="a queue's name"):
        broker_queue(name)


def test_the_fake_for_tests_notes_what_it_was_asked() -> None:
    waker: Waker = (recording := RecordingWaker())
    waker.wake("default")
    waker.close()

    assert (recording.woken, recording.closed) == (["default"], True)
