"""How a command shows that it waits: a moving bar on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fleek.cli.feed import Change
from fleek.cli.output import Output, clean, use_colour
from fleek.core.events import TERMINAL_EVENTS, EventKind
from fleek.core.job import TERMINAL, Status

_LONGEST_DESCRIPTION = 60
_PHRASES: Mapping[str, str] = {
    EventKind.ACCEPTED: "Waiting for a worker",
    EventKind.CLAIMED: "Generating",
    EventKind.SUBMITTED: "Generating",
    EventKind.RESUMED: "Resuming",
    EventKind.DEFERRED: "Waiting to go on",
    EventKind.RETRY_SCHEDULED: "Failed once, will try again",
    EventKind.COMPLETED: "Completed",
    EventKind.FAILED: "Failed",
    EventKind.CANCELED: "Canceled",
    EventKind.RETRIED: "Starting again",
    Status.IN_QUEUE: "Waiting for a worker",
    Status.PROCESSING: "Generating",
    Status.ERROR: "Failed",
}


class Display(Protocol):
    """Shows one job, between `start` and `close`."""

    def start(self) -> None:
        """Begin."""
        ...

    def show(self, change: Change) -> None:
        """Take in what happened."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was, also after a start that was interrupted."""
        ...


def choose_display(output: Output) -> Display:
    """The display that suits standard error."""
    if output.as_json and not sys.stderr.isatty():
        return Silence()
    return Bar() if use_colour(sys.stderr) else Lines(output.note)


class Silence:
    """For programs."""

    def start(self) -> None:
        """Show nothing."""

    def show(self, change: Change) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is open."""


class Lines:
    """One line a change, for logs: only what is news, so a log does not fill with percentages."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""

    def start(self) -> None:
        """There is nothing to say yet."""

    def show(self, change: Change) -> None:
        """Say what happened, unless it was said just before; the end is told by the command itself."""
        if (
            change.kind == "progress"
            or change.kind in TERMINAL_EVENTS
            or change.data.get("status") in TERMINAL
        ):
            return
        text = phrase(change)
        if text != self._last:
            self._say(text)
        self._last = text

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """A bar on the terminal, which disappears at the end."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  by now the job runs already: nobody waits for the import
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(show_speed=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr, markup=False, highlight=False, emoji=False),
            transient=True,
        )
        self._task = self._bar.add_task(_PHRASES[Status.IN_QUEUE], total=None)

    def start(self) -> None:
        """Draw the bar, and keep it moving."""
        self._bar.start()

    def show(self, change: Change) -> None:
        """Move the bar, and say what happens."""
        if change.kind != "progress":
            self._bar.update(self._task, description=phrase(change)[:_LONGEST_DESCRIPTION])
        done = change.data.get("progress")
        if isinstance(done, int | float):
            self._bar.update(self._task, total=1.0, completed=float(done))
        elif change.kind in {EventKind.RETRY_SCHEDULED, EventKind.DEFERRED, EventKind.RETRIED}:
            self._bar.update(self._task, total=None, completed=0)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def phrase(change: Change) -> str:
    """A change in words, safe for a terminal."""
    kind = change.data.get("status") if change.kind == "status" else change.kind
    text = _PHRASES.get(str(kind), str(kind))
    reason = _reason(change.data)
    return clean(f"{text}: {reason}" if reason else text)


def _reason(data: Mapping[str, Any]) -> str:
    """The error of an event, or of a status."""
    facts = data.get("data") if isinstance(data.get("data"), dict) else data
    error = facts.get("error") if facts else None
    return str(error.get("message") or "") if isinstance(error, dict) else ""
