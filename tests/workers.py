"""Real worker processes, as an operator starts them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.queueing import wait_until

FLEEK = (sys.executable, "-m", "fleek.cli.main", "worker")
CELERY = (
    *(sys.executable, "-m", "celery", "-A", "fleek.tasks.celery", "worker"),
    *("-l", "INFO", "--concurrency", "2"),
)
START, STOP = 20, 15
"""Seconds that a process may take to start, or to stop, on a busy machine."""


class WorkerProcess:
    """One worker, with everything that it has said in one log."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, cwd=log.parent
            )

    async def started(self) -> WorkerProcess:
        """Itself, once it claims."""
        await wait_until(lambda: "worker_started" in self.log.read_text(), within=START)
        return self

    async def ended(self, within: float = STOP) -> int:
        """Its exit code, once it has ended by itself."""
        await wait_until(lambda: self.process.poll() is not None, within)
        return int(self.process.returncode)

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        self.process.send_signal(number)


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(queue_url: str, redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """A function that starts a worker with these settings; killed after the test."""
    started: list[WorkerProcess] = []

    def start_one(command: tuple[str, ...] = FLEEK, **settings: str) -> WorkerProcess:
        given = {
            "home": str(tmp_path / "home"),
            "secret_key": secrets.token_hex(16),
            "database_url": queue_url,
            "redis_url": redis_url,
            "storage_url": (tmp_path / "media").as_uri(),
        } | settings
        plain = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        environment = plain | {f"FLEEK_{name.upper()}": value for name, value in given.items()}
        log = tmp_path / f"worker-{len(started)}.log"
        started.append(WorkerProcess(command, environment, log))
        return started[-1]

    yield start_one
    for worker in started:
        worker.process.kill()
        worker.process.wait()
