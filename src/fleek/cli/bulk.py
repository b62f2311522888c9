"""Jobs by what they have in common: list them, and retry or cancel all of them with one command.

A job that refuses is one line of the outcome, not the end of it; a server that is gone is the end.
"""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import typer

from fleek.cli.client import Client
from fleek.cli.exits import CommandError, ExitCode, usage_error
from fleek.cli.generate import parse_pairs
from fleek.cli.output import Output, use_colour
from fleek.core.job import TERMINAL, ErrorCode, Status

StatusOption = typer.Option("--status", help="Only jobs that stand there")
CodeOption = typer.Option("--code", help="Only jobs with this error, such as ambiguous_submission")
ModelOption = typer.Option("--model", help="Only jobs of this model")
WordsOption = typer.Option("--q", help="Words of the prompt")
AfterOption = typer.Option("--created-after", metavar="TIME", help="Such as 2026-11-20T12:00:00Z")
BeforeOption = typer.Option("--created-before", metavar="TIME", help="Likewise")
MetadataOption = typer.Option("--metadata", metavar="KEY=VALUE", help="Only jobs with this, repeatable")
LimitOption = typer.Option("--limit", min=1, help="At most so many")
AllOption = typer.Option("--all", help="All of them, whatever --limit says")
DryRunOption = typer.Option("--dry-run", help="Only list the jobs that are meant")
YesOption = typer.Option("--yes", help="Do not ask")

_USUAL = {"retry": Status.ERROR, "cancel": Status.IN_QUEUE}
_PAGE = 100
"""The most that one request may ask for."""
_AT_ONCE = 4
"""Jobs that are asked to change at the same time, which a server that is far away makes worth while."""

Outcome = dict[str, Any]
"""`id`, `status` and `error` of one job: a refusal has no status, everything else no error."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs are meant: all filters must hold."""

    status: Status | None = None
    code: ErrorCode | None = None
    model: str | None = None
    words: str | None = None
    created_after: str | None = None
    created_before: str | None = None
    metadata: Sequence[str] = field(default=())
    limit: int | None = None
    """None: all of them."""

    @property
    def query(self) -> dict[str, Any]:
        """The filters as the API takes them."""
        values = {
            "status": self.status,
            "code": self.code,
            "model": self.model,
            "q": self.words,
            "created_after": self.created_after,
            "created_before": self.created_before,
        }
        wanted = parse_pairs("--metadata", self.metadata, str)
        # An empty text is passed on, for the server to refuse: a script whose variable is empty must not
        # cancel what its filter would have left out.
        return {name: value for name, value in values.items() if value is not None} | {
            f"metadata.{key}": value for key, value in wanted.items()
        }

    def jobs(self, client: Client) -> Iterator[Mapping[str, Any]]:
        """The jobs, newest first, asked for page by page as they are needed."""
        cursor, left = None, self.limit
        while left is None or left > 0:
            query = {
                **self.query,
                "limit": min(left or _PAGE, _PAGE),
                **({"cursor": cursor} if cursor else {}),
            }
            page = client.get("/v1/media/jobs", query)
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return
            left = None if left is None else left - len(page["items"])


def require_one(job_id: str | None, selection: Selection, verb: str, *, dry_run: bool) -> None:
    """Raise a usage error unless either one job or a filter is named."""
    hint = f"`fleek jobs {verb} ID`, or `fleek jobs {verb} --status {_USUAL[verb]} --model NAME`"
    if job_id is None:
        if not selection.query:
            raise usage_error(f"{verb} needs the id of a job, or a filter", hint)
    elif selection.query or selection.limit is not None or dry_run:
        raise usage_error(f"{verb} takes the id of a job or filters, not both", hint)


@dataclass(slots=True)
class Bulk:
    """One change of many jobs."""

    client: Client
    output: Output
    verb: str
    change: Callable[[str], Mapping[str, Any]]
    """Changes one job by its id; the job after it. Raises CommandError for a refusal."""
    _outcomes: list[Outcome] = field(init=False, default_factory=list)

    def run(self, selection: Selection, *, dry_run: bool, yes: bool) -> None:
        """List, ask, change each, and print what became of each.

        Raises CommandError: FAILED where a job refused; UNREACHABLE when the server is gone, INTERRUPTED
        and TERMINATED for signals, each of them with what was done before.
        """
        matches = [_outcome(job["id"], job["status"]) for job in selection.jobs(self.client)]
        if dry_run:
            self._print_matches(matches)
            return
        if matches and not yes:
            self._confirm(len(matches))
        stopped = None
        try:
            with _noting_signals() as noted:
                self._change_all([match["id"] for match in matches], noted)
            stopped = _interrupted(noted[0]) if noted else None
        except KeyboardInterrupt:
            stopped = _interrupted(signal.SIGINT)
        except CommandError as error:
            stopped = error
        self._conclude(matches, stopped)

    def _change_all(self, job_ids: Sequence[str], noted: Sequence[int]) -> None:
        """Change each, a few at a time, and tell what became of them in their order, until a signal."""
        pool = ThreadPoolExecutor(_AT_ONCE)
        under_way: deque[Future[Outcome]] = deque()
        try:
            for job_id in job_ids:
                if len(under_way) == _AT_ONCE:
                    self._tell(under_way.popleft().result(), len(job_ids))
                if noted:
                    break
                under_way.append(pool.submit(self._change, job_id))
            while under_way:
                self._tell(under_way.popleft().result(), len(job_ids))
        except CommandError:
            # What has been sent may well be done, so it is told as well.
            done = [future.result() for future in under_way if future.exception() is None]
            for outcome in done:
                self._tell(outcome, len(job_ids))
            raise
        finally:
            pool.shutdown(wait=False)

    def _change(self, job_id: str) -> Outcome:
        """What became of one job; a refusal is an outcome. Raises CommandError for a server that is gone."""
        try:
            return _outcome(job_id, self.change(job_id)["status"])
        except CommandError as error:
            if error.exit_code is not ExitCode.USAGE:
                raise
            return _outcome(job_id, None, {"code": error.problem_code, "detail": error.message})

    def _tell(self, outcome: Outcome, of: int) -> None:
        self._outcomes.append(outcome)
        if self.output.as_json:
            return
        error = outcome["error"]
        became = f"refused: {error['code']}" if error else outcome["status"]
        self.output.data(f"{outcome['id']}\t{became}")
        if use_colour(sys.stderr):
            typer.echo(f"\r{len(self._outcomes)} of {of}\r", err=True, nl=False)

    def _print_matches(self, matches: Sequence[Outcome]) -> None:
        if self.output.as_json:
            self.output.document({"items": matches, "matched": len(matches), "changed": 0, "refused": 0})
            return
        for match in matches:
            self.output.data(f"{match['id']}\t{match['status']}")
        self.output.note(f"{_jobs(len(matches))} would be asked to {self.verb}; nothing was changed")

    def _confirm(self, count: int) -> None:
        """Ask on a terminal; elsewhere silence is no consent."""
        if not sys.stdin.isatty() or not sys.stderr.isatty():
            raise usage_error(
                f"{_jobs(count)} match, and nobody is there to be asked",
                "--yes says that it is meant; --dry-run lists them",
            )
        if not typer.confirm(f"{self.verb.capitalize()} {_jobs(count)}?", err=True):
            raise CommandError("Nothing was changed", exit_code=ExitCode.FAILED, code="not_confirmed")

    def _conclude(self, matches: Sequence[Outcome], stopped: CommandError | None) -> None:
        """Print the counts; raise what ended it early, or that jobs refused."""
        counts = self._count(matches)
        of = _jobs(len(matches))
        if self.output.as_json:
            self.output.document({"items": self._outcomes, **counts})
        if stopped is not None:
            raise CommandError(
                f"{stopped.message}; {len(self._outcomes)} of {of} were done",
                exit_code=stopped.exit_code,
                code=stopped.problem_code,
                hint=stopped.hint or "the same command with --dry-run lists what still matches",
                facts={**stopped.facts, **counts},
            )
        self.output.note(f"{counts['changed']} of {of}: {self.verb} accepted")
        if counts["refused"]:
            message = f"{counts['refused']} of {of} refused"
            raise CommandError(message, exit_code=ExitCode.FAILED, code="refused", facts=counts)

    def _count(self, matches: Sequence[Outcome]) -> dict[str, int]:
        before = {match["id"]: match["status"] for match in matches}
        return {
            "matched": len(matches),
            "changed": sum(_is_change(before[one["id"]], one["status"]) for one in self._outcomes),
            "refused": sum(one["error"] is not None for one in self._outcomes),
        }


def _outcome(job_id: str, status: str | None, error: Mapping[str, Any] | None = None) -> Outcome:
    return {"id": job_id, "status": status, "error": error}


def _is_change(before: str, after: str | None) -> bool:
    """Whether a request that was not refused did anything: a cancel leaves a job that has ended as it is."""
    if after in TERMINAL:
        return after == Status.CANCELED and before != Status.CANCELED
    return after is not None


@contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is only noted: an exception could fall between a request and its record."""
    noted: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        _restore(before)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _interrupted(number: int) -> CommandError:
    exit_code = ExitCode.TERMINATED if number == signal.SIGTERM else ExitCode.INTERRUPTED
    return CommandError("Interrupted", exit_code=exit_code, code="interrupted")


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
