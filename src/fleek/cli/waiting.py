"""Waiting for a job: until it ends, `--timeout` passes, or somebody presses Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import typer

from fleek.cli.client import Client, job_path
from fleek.cli.display import Display, choose_display
from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.feed import Change, Finished, JobFeed
from fleek.cli.output import Output
from fleek.core.job import Status

_CANCEL_SECONDS = 30.0
"""How long a canceled job is given to stop; a provider may take its time."""

Job = Mapping[str, Any]


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, but nobody is there to be asked."""


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no half file stays and the job's id is told."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(slots=True)
class Wait:
    """How to wait for one job. `watch_command` is what continues the waiting later."""

    client: Client
    output: Output
    job_id: str
    watch_command: str
    timeout: float | None = None
    on_change: Callable[[Change], None] | None = None

    def run(self) -> Job:
        """The finished job, however it ended. Raises CommandError when the waiting ends first."""
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        try:
            with JobFeed(self.client, self.job_id) as feed:
                job = self._show_or_ask(feed, deadline)
        except CommandError as error:
            raise self._lost(error) from error
        except KeyboardInterrupt as interrupt:
            raise self._detached(interrupt) from None
        if job is None:
            raise self._timed_out()
        return job

    def _show_or_ask(self, feed: JobFeed, deadline: float | None) -> Job | None:
        try:
            return self._show(feed, deadline)
        except KeyboardInterrupt as interrupt:
            # A second Ctrl-C, also while the cancel is on its way, leaves the job alone.
            is_asked = _is_interactive() and not isinstance(interrupt, Terminated)
            if is_asked and _wants_cancel(self.job_id):
                return self._cancel(feed)
            raise

    def _show(self, feed: JobFeed, deadline: float | None) -> Job | None:
        """Show what happens until the job's end; None once the deadline (monotonic seconds) has passed."""
        display = choose_display(self.output)
        try:
            display.start()
            return self._until(feed, display, deadline)
        finally:
            display.close()

    def _until(self, feed: JobFeed, display: Display, deadline: float | None) -> Job | None:
        while True:
            remaining = None if deadline is None else max(deadline - time.monotonic(), 0)
            news = feed.next(remaining)
            match news:
                case None:
                    return None
                case Finished(job):
                    return job
                case Change():
                    display.show(news)
                    if self.on_change is not None:
                        self.on_change(news)

    def _cancel(self, feed: JobFeed) -> Job:
        """Cancel, and see what became of it: a job that completed first stays completed."""
        self.client.post(job_path(self.job_id, "cancel"))
        self.output.note("Canceling; Ctrl-C again to leave it to itself")
        job = self._show(feed, time.monotonic() + _CANCEL_SECONDS)
        if job is None:
            raise self._stopped("The cancel was requested, but the job has not stopped yet")
        if job["status"] == Status.CANCELED:
            raise self._error("The job was canceled", ExitCode.INTERRUPTED, "canceled", None)
        self.output.note("The job ended before it could be canceled")
        return job

    def _timed_out(self) -> CommandError:
        message = f"The job has not ended after {self.timeout:g} s; it goes on"
        return self._error(message, ExitCode.TIMED_OUT, "timed_out", self._way_back)

    def _detached(self, interrupt: KeyboardInterrupt) -> CommandError:
        is_terminated = isinstance(interrupt, Terminated)
        exit_code = ExitCode.TERMINATED if is_terminated else ExitCode.INTERRUPTED
        return self._stopped(f"Stopped waiting; job {self.job_id} goes on", exit_code)

    def _stopped(self, message: str, exit_code: ExitCode = ExitCode.INTERRUPTED) -> CommandError:
        return self._error(message, exit_code, "interrupted", self._way_back)

    def _lost(self, error: CommandError) -> CommandError:
        """An error of the feed: the job goes on without us where only the connection is lost."""
        hint = self._way_back if error.exit_code == ExitCode.UNREACHABLE else error.hint
        lost = self._error(error.message, error.exit_code, error.problem_code, hint)
        lost.facts = {**error.facts, **lost.facts}
        return lost

    def _error(self, message: str, exit_code: ExitCode, code: str, hint: str | None) -> CommandError:
        return CommandError(message, exit_code=exit_code, code=code, hint=hint, facts={"job_id": self.job_id})

    @property
    def _way_back(self) -> str:
        return f"`{self.watch_command}` goes on watching"


def _is_interactive() -> bool:
    """Whether somebody can be asked: standard output may well be a file."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _wants_cancel(job_id: str) -> bool:
    """Whether to cancel the job; no answer at all means to leave it running."""
    question = f"\nJob {job_id} is still running. Detach from it, or cancel it? [d/c] "
    while True:
        typer.echo(question, err=True, nl=False)
        answer = sys.stdin.readline()
        if not answer:
            return False
        choice = answer.strip().lower()
        if choice in {"d", "detach", "c", "cancel"}:
            return choice.startswith("c")
        question = "Please type d or c: "
