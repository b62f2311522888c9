"""`fleek worker`: the same worker as the bare celery command, with settings that flags have changed."""

from __future__ import annotations

from fleek.settings import Settings
from fleek.tasks.wake import create_worker_app


def run_worker(settings: Settings) -> int:
    """Run a worker until it is told to stop; the process's exit code."""
    worker = create_worker_app(settings).Worker(
        pool="threads",
        concurrency=2,
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
