"""`fleek jobs logs`: what the processes recorded about a job."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer

from fleek.cli.client import Client, UrlOption, job_path, open_client
from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.output import JsonOption, Output, clean, to_json, use_colour
from fleek.cli.waiting import Terminated, heeding_sigterm
from fleek.core.job import TERMINAL
from fleek.core.log_levels import LogLevel

_PAGE = 500
"""The most that one request may ask for."""
_POLL_SECONDS = 1.0
_LAST_SECONDS = 3.0
"""How long a job that has ended is still asked about: its last records are stored about a second later."""
_COLOURS: Mapping[str, str] = {
    LogLevel.DEBUG: typer.colors.BRIGHT_BLACK,
    LogLevel.INFO: typer.colors.GREEN,
    LogLevel.WARNING: typer.colors.YELLOW,
    LogLevel.ERROR: typer.colors.RED,
    LogLevel.CRITICAL: typer.colors.RED,
}
_ON_EVERY_RECORD = frozenset({"model", "owner", "provider"})
"""Facts that are the same on all of a job's records; people are told once."""
_FIRST = "attempt_started"
_LAST = "attempt_finished"

Entry = Mapping[str, Any]


@dataclass(slots=True)
class JobLog:
    """Reads one job's entries on from where it is."""

    client: Client
    path: str
    job_id: str
    level: LogLevel | None = None
    attempt: int | None = None
    after: int = 0
    has_last: bool = False
    """Whether the record was read that ends the job."""

    def new_entries(self) -> Iterator[Entry]:
        """All that were stored since the last call, in that order."""
        wanted = {"level": self.level and str(self.level), "attempt": self.attempt}
        query = {name: value for name, value in wanted.items() if value is not None}
        while True:
            found = {**query, "after": self.after, "limit": _PAGE}
            page = self.client.get(self.path, found)
            for entry in page["items"]:
                self.after = entry["id"]
                self.has_last = _ends_the_job(entry)
                yield entry
            if page["next_after"] is None:
                return

    def follow(self) -> Iterator[Entry]:
        """All of them as they come, until the job has ended and its last one was read."""
        until: float | None = None
        while True:
            # Asked first: what was recorded before the job's end is then surely among what is read next.
            status, _ = self.client.status(self.job_id)
            if status is None or status["status"] not in TERMINAL:
                until = None
            elif until is None:
                until = time.monotonic() + _LAST_SECONDS
            yield from self.new_entries()
            if until is not None and (self.has_last or time.monotonic() > until):
                return
            time.sleep(_POLL_SECONDS)


def show_logs(  # noqa: PLR0913  one parameter a flag
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id", show_default=False)],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended")] = False,
    level: Annotated[LogLevel | None, typer.Option("--level", help="This level and worse")] = None,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Only this attempt")] = None,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Show what was recorded about a job: its attempts, warnings and errors, oldest first.

    With --json every record is one line. Exits with 0 also for a job that failed.
    """
    log = JobLog(open_client(url), job_path(job_id, "logs"), job_id, level, attempt)
    with heeding_sigterm():
        try:
            # Processes store their records on their own: the whole log is shown in the order of its times.
            entries = log.follow() if follow else sorted(log.new_entries(), key=lambda entry: entry["at"])
            for entry in entries:
                _print(entry, as_json=as_json)
        except KeyboardInterrupt as interrupt:
            exit_code = ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED
            raise CommandError("Stopped reading", exit_code=exit_code, code="interrupted") from None


def _ends_the_job(entry: Entry) -> bool:
    return entry["event"] == _LAST and entry["data"].get("status") in TERMINAL


def _print(entry: Entry, *, as_json: bool) -> None:
    if as_json:
        Output(as_json).line(entry)
    elif sys.stdout.isatty():
        typer.echo(_for_people(entry, colour=use_colour(sys.stdout)))
    else:
        facts = (entry["at"], entry["level"], entry["attempt"], entry["event"], to_json(entry["data"]))
        typer.echo("\t".join("" if fact is None else clean(str(fact)) for fact in facts))


def _for_people(entry: Entry, *, colour: bool) -> str:
    """One line: the local time, the level, the attempt, the event, and its facts."""
    at = datetime.fromisoformat(entry["at"]).astimezone()
    number = "" if entry["attempt"] is None else f"#{entry['attempt']}"
    level, event = f"{entry['level']:8}", clean(entry["event"])
    if colour:
        level = typer.style(level, fg=_COLOURS.get(entry["level"]))
        event = typer.style(event, bold=True)
    shown = {name: value for name, value in entry["data"].items() if _is_news(entry, name)}
    facts = " ".join(f"{clean(name)}={_fact(value)}" for name, value in shown.items() if value is not None)
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03} {level} {number:3} {event} {facts}".rstrip()


def _is_news(entry: Entry, name: str) -> bool:
    return entry["event"] == _FIRST or name not in _ON_EVERY_RECORD


def _fact(value: object) -> str:
    """A value on one line; a text with spaces is quoted."""
    if isinstance(value, str) and value and " " not in value:
        return clean(value)
    return clean(to_json(value))
