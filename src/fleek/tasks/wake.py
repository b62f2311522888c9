"""The worker's side of wake-ups: Celery's application, its one task, and the step that runs the runtime."""

from __future__ import annotations

import warnings
from typing import Any

from celery import Celery, bootsteps
from celery.signals import setup_logging, worker_shutting_down

from fleek.bootstrap.parts import build_redactor
from fleek.core.errors import ConfigurationError
from fleek.observability.logs import configure_logging
from fleek.queue.celery_app import create_celery_app, register_ping_task, register_wake_task
from fleek.settings import Settings
from fleek.tasks.runtime import WorkerRuntime

_REFUSED = 2
"""The exit code of a process whose configuration is wrong."""


class RuntimeStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery is untyped
    """Starts and stops this process's runtime with the Celery worker. Subclassed with its runtime."""

    requires = ("celery.worker.components:Pool",)
    runtime: WorkerRuntime

    def start(self, parent: Any) -> None:  # noqa: ANN401, ARG002  Celery's protocol
        """Begin to claim jobs."""
        worker_shutting_down.connect(self._on_shutting_down)
        try:
            self.runtime.start()
        except ConfigurationError as error:
            # Celery ends the worker with this exit code, and without a traceback; the log has the reason.
            raise SystemExit(_REFUSED) from error

    def stop(self, parent: Any) -> None:  # noqa: ANN401, ARG002  Celery's protocol
        """Finish or give back what runs."""
        self.runtime.stop()

    def terminate(self, parent: Any) -> None:  # noqa: ANN401, ARG002  Celery's protocol
        """Give back what runs, at once: Celery's cold shutdown, as SIGQUIT asks for it."""
        self.runtime.stop(grace=0)

    def _on_shutting_down(self, how: str = "Warm", **_: object) -> None:
        """A signal came: stop claiming at once, while Celery still winds down.

        A cold shutdown during a warm one is told to nobody else: the grace time ends with it.
        """
        self.runtime.begin_stop(at_once=how == "Cold")


def create_worker_app(settings: Settings) -> Celery:
    """The Celery application of a worker process: `fleek worker` and the bare celery command share it."""
    # Celery warns root of pickled messages; only JSON is accepted here, and a message has no effect.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    runtime = WorkerRuntime(settings)
    app = create_celery_app(settings.resolved_redis_url, settings.queues)
    register_wake_task(app, runtime.ring)
    register_ping_task(app, runtime.ping)
    app.steps["worker"].add(type("FleekRuntime", (RuntimeStep,), {"runtime": runtime}))

    @setup_logging.connect(weak=False)  # type: ignore[untyped-decorator]  # Celery is untyped
    def _configure_logging(**_: object) -> None:
        """Celery asks before it would set up logging of its own."""
        configure_logging(settings.log_level, settings.log_format, build_redactor(settings))

    return app
