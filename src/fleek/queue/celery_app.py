"""Celery, reduced to what it is good for here: bringing a worker process to a queue.

A message names a queue and no job, so it may be lost, repeated or late without any job noticing.
That is why every feature that would make a message matter is off: late acks, results, countdowns,
retries, remote control (`docs/adr/0001-celery-only-brings-workers-to-the-work.md`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import structlog
from celery import Celery
from kombu.entity import Queue

from fleek.queue.base import DEFAULT_QUEUE, PING_TASK, WAKE_TASK, broker_queue

_log = structlog.get_logger(__name__)

_SOCKET_TIMEOUT = 2.0
"""Seconds; without it a frozen broker blocks a publisher for ever."""
_MIN_SPACING, _MAX_SPACING = 0.002, 0.01
"""Seconds between two publishes, the more the longer wake-ups keep coming: a burst of submits becomes a few
messages instead of one each, and the workers claim anyway while it lasts."""
_MAX_WAITING = 100
"""Wake-ups that may lie in the broker for one queue; more would bring no worker sooner."""
_COUNT_INTERVAL = 1.0
"""Seconds between two counts of a queue's waiting wake-ups."""
_PAUSE_AFTER_ERROR = 1.0
_CLOSE_TIMEOUT = 3.0
_ONCE_MORE = {"max_retries": 1, "interval_start": 0}
"""A connection that lay idle while the broker was started again fails once."""


def broker_url(redis_url: str) -> str:
    """Celery's spelling of a Redis URL: a Unix socket is `redis+socket://`.

    Without a word about certificates Celery would accept any; every other client of ours checks them.
    """
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        return redis_url.replace("unix://", "redis+socket://", 1)
    if parts.scheme == "rediss" and "ssl_cert_reqs=" not in parts.query:
        return f"{redis_url}{'&' if parts.query else '?'}ssl_cert_reqs=required"
    return redis_url


def create_celery_app(redis_url: str, queues: tuple[str, ...] = (DEFAULT_QUEUE,)) -> Celery:
    """A Celery application that only knows wake-ups."""
    app = Celery("fleek", broker=broker_url(redis_url), set_as_current=False)
    app.conf.update(
        task_default_queue=broker_queue(DEFAULT_QUEUE),
        task_queues=[
            Queue(broker_queue(queue))  # type: ignore[no-untyped-call]  # kombu is untyped
            for queue in queues
        ],
        task_create_missing_queues=True,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        result_backend=None,
        task_acks_late=False,
        worker_pool="threads",
        worker_concurrency=2,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A broker that refuses to write, such as a primary that became a replica, must not end the worker.
        broker_channel_error_retry=True,
        broker_connection_timeout=_SOCKET_TIMEOUT,
        broker_transport_options={
            "socket_timeout": _SOCKET_TIMEOUT,
            "socket_connect_timeout": _SOCKET_TIMEOUT,
            "retry_on_timeout": False,
        },
    )
    return app


class CeleryWaker:
    """Publishes wake-ups from a thread of its own, coalesced: Celery's publish blocks and costs 0.3 ms."""

    def __init__(self, app: Celery, on_publish: Callable[[str, bool], None] | None = None) -> None:
        """`on_publish` hears, on the waker's thread, of each message's queue and whether it was sent."""
        self._app = app
        self._on_publish = on_publish or (lambda _queue, _is_sent: None)
        self._pending: set[str] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._crowded: set[str] = set()
        self._count_at: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="fleek-waker", daemon=True)
        self._thread.start()

    def wake(self, queue: str) -> None:
        """Ask for a wake-up of a queue's workers; returns at once."""
        with self._changed:
            self._pending.add(queue)
            self._changed.notify()

    def close(self) -> None:
        """Publish what is pending, for a few seconds at most, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        spacing = _MIN_SPACING
        while (queues := self._take()) is not None:
            for queue in queues:
                self._publish(queue)
            time.sleep(spacing)
            spacing = min(spacing * 2, _MAX_SPACING) if self._pending else _MIN_SPACING

    def _take(self) -> set[str] | None:
        """The queues to wake; None at the end.

        The set is emptied *before* publishing: a job that commits while its queue's message travels
        asks again, so that every commit is followed by a publish that began after it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            taken, self._pending = self._pending, set()
            return taken or None

    def _publish(self, queue: str) -> None:
        try:
            with self._app.producer_or_acquire() as producer:
                if queue in self._crowded:
                    self._count(producer, queue)
                if queue not in self._crowded:
                    self._send(producer, queue)
                    self._on_publish(queue, True)  # noqa: FBT003  a callback has no keywords
                    self._count(producer, queue)
        except Exception as error:  # noqa: BLE001  whatever it is, the thread must live on for the next
            _log.warning("wake_up_failed", queue=queue, error=type(error).__name__)
            self._on_publish(queue, False)  # noqa: FBT003  likewise
            self._pause()

    def _send(self, producer: Any, queue: str) -> None:  # noqa: ANN401  kombu is untyped
        self._app.send_task(
            WAKE_TASK, args=[queue], queue=broker_queue(queue), retry=False, producer=producer
        )

    def _count(self, producer: Any, queue: str) -> None:  # noqa: ANN401  kombu is untyped
        """Note, now and then, whether wake-ups pile up because no worker takes them."""
        now = time.monotonic()
        if now < self._count_at.get(queue, now):
            return
        self._count_at[queue] = now + _COUNT_INTERVAL
        waiting = producer.channel.queue_declare(broker_queue(queue)).message_count
        if waiting > _MAX_WAITING:
            self._crowded.add(queue)
        else:
            self._crowded.discard(queue)

    def _pause(self) -> None:
        """A broker that is away is not hammered; workers look by themselves every second meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, timeout=_PAUSE_AFTER_ERROR)


def publish_ping(app: Celery, queue: str, reply_to: str) -> None:
    """Ask one worker of a queue to answer to `reply_to`. Blocks, for seconds where the broker is slow.

    Raises OSError. The message has no expiry: that would compare two machines' clocks, and a late answer
    goes where nobody reads it.
    """
    try:
        with app.producer_or_acquire() as producer:
            app.send_task(
                PING_TASK,
                args=[reply_to, queue],
                queue=broker_queue(queue),
                retry=True,
                retry_policy=_ONCE_MORE,
                producer=producer,
            )
    except Exception as error:
        # The client, its transport and its pool each have errors of their own; none of them is ours.
        message = f"the broker takes no message: {type(error).__name__}"
        raise OSError(message) from error


def register_ping_task(app: Celery, on_ping: Callable[[str, str], None]) -> None:
    """Make `fleek.ping(reply_to, queue)` call back with both; its signature may only grow, like the other's.

    A worker of a release that does not know it logs an unregistered task, and drops the message.
    """

    def ping(reply_to: str = "", queue: str = DEFAULT_QUEUE) -> None:
        on_ping(reply_to, queue)

    app.task(ping, name=PING_TASK, ignore_result=True)


def register_wake_task(app: Celery, on_wake: Callable[[str, str | None], None]) -> None:
    """Make `fleek.wake(queue)` call back with the queue and the message's task id.

    The signature may only grow, with defaults: messages of the previous release are in flight.
    """

    def wake(task: Any, queue: str = DEFAULT_QUEUE) -> None:  # noqa: ANN401  a Celery task
        on_wake(queue, task.request.id)

    app.task(wake, name=WAKE_TASK, bind=True, ignore_result=True)
