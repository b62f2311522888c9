"""The limit of the queue: Celery tasks that do nothing, in one worker process with threads.

python -m benchmarks.noop publish BROKER COUNT
python -m benchmarks.noop work BROKER COUNT THREADS RESULT       (until COUNT tasks have run)
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

from celery import Celery

_QUEUE = "noop"


def create_app(broker: str) -> Celery:
    """Celery with its defaults, but for results, which nobody reads."""
    app = Celery("noop", broker=broker)
    app.conf.update(
        task_default_queue=_QUEUE,
        task_ignore_result=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
    )
    return app


def publish(app: Celery, count: int) -> None:
    """Queue `count` tasks."""
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            app.send_task("noop", producer=producer)


def work(app: Celery, count: int, threads: int, result: Path) -> None:
    """Run `count` tasks; writes the seconds from the first to the last, and waits to be ended."""
    turns = itertools.count(1)
    began: list[float] = []

    @app.task(name="noop", ignore_result=True)  # type: ignore[untyped-decorator]  # Celery is untyped
    def noop() -> None:
        turn = next(turns)
        if turn == 1:
            began.append(time.perf_counter())
        if turn == count:
            draft = result.with_suffix(".new")
            draft.write_text(json.dumps({"tasks": count - 1, "seconds": time.perf_counter() - began[0]}))
            draft.replace(result)

    app.Worker(
        pool="threads",
        concurrency=threads,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    ).start()


if __name__ == "__main__":
    _verb, _broker, _count, *_rest = sys.argv[1:]
    if _verb == "publish":
        publish(create_app(_broker), int(_count))
    else:
        work(create_app(_broker), int(_count), int(_rest[0]), Path(_rest[1]))
