"""Jobs by what they have in common: list them, and retry or cancel all of them at once.

A job that refuses is one line of the outcome, not the end of it; a server that is gone is the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import typer

from fleek.cli.client import Client
from fleek.cli.exits import CommandError, ExitCode, usage_error
from fleek.cli.generate import parse_pairs
from fleek.cli.output import Output, use_colour
from fleek.core.job import ErrorCode, Status

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

_PAGE = 100
"""The most that one request may ask for."""


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
        return {name: value for name, value in values.items() if value} | {
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


def require_one(job_id: str | None, selection: Selection, verb: str) -> None:
    """Raise a usage error unless either one job or a filter is named."""
    if (job_id is None) is bool(selection.query):
        return
    hint = f"`fleek jobs {verb} ID`, or `fleek jobs {verb} --status error --code CODE`"
    if job_id is None:
        raise usage_error(f"{verb} needs the id of a job, or a filter", hint)
    raise usage_error(f"{verb} takes the id of a job or filters, not both", hint)


@dataclass(slots=True)
class Bulk:
    """One change of many jobs."""

    client: Client
    output: Output
    verb: str
    change: Callable[[str], Mapping[str, Any]]
    """Changes one job by its id; the job after it. Raises CommandError for a refusal."""

    def run(self, selection: Selection, *, dry_run: bool, yes: bool) -> None:
        """List, ask, change each, and print what became of each.

        Raises CommandError: FAILED where a job refused, UNREACHABLE when the server is gone.
        """
        jobs = list(selection.jobs(self.client))
        if dry_run:
            self._print_matches(jobs)
            return
        if jobs and not yes:
            self._confirm(len(jobs))
        outcomes: list[dict[str, Any]] = []
        try:
            for job in jobs:
                outcomes.append(self._change(str(job["id"]), len(outcomes), len(jobs)))
        except (CommandError, KeyboardInterrupt):
            self.output.warn(f"Stopped after {len(outcomes)} of {len(jobs)} jobs")
            raise
        self._conclude(outcomes, len(jobs))

    def _change(self, job_id: str, done: int, of: int) -> dict[str, Any]:
        """What became of one job, which is also printed; a refusal is an outcome."""
        if use_colour(sys.stderr) and not self.output.as_json:
            typer.echo(f"\r{done + 1} of {of}\r", err=True, nl=False)
        try:
            status = str(self.change(job_id)["status"])
        except CommandError as error:
            if error.exit_code is not ExitCode.USAGE:
                raise
            self._say(f"{job_id}\trefused: {error.problem_code}")
            refusal = {"code": error.problem_code, "detail": error.message}
            return {"id": job_id, "status": None, "error": refusal}
        self._say(f"{job_id}\t{status}")
        return {"id": job_id, "status": status, "error": None}

    def _say(self, line: str) -> None:
        if not self.output.as_json:
            self.output.data(line)

    def _print_matches(self, jobs: Sequence[Mapping[str, Any]]) -> None:
        if self.output.as_json:
            found = [{"id": job["id"], "status": job["status"], "error": None} for job in jobs]
            self.output.document({"items": found, "matched": len(jobs), "changed": 0, "refused": 0})
            return
        for job in jobs:
            self._say(f"{job['id']}\t{job['status']}")
        self.output.note(f"{len(jobs)} jobs would be asked to {self.verb}; nothing was changed")

    def _confirm(self, count: int) -> None:
        """Ask on a terminal; elsewhere silence is no consent."""
        question = f"{self.verb.capitalize()} {count} jobs?"
        if not sys.stdin.isatty():
            raise usage_error(
                f"{count} jobs match, and nobody is there to be asked",
                "--yes says that it is meant; --dry-run lists them",
            )
        if not typer.confirm(question, err=True):
            raise CommandError("Nothing was changed", exit_code=ExitCode.FAILED, code="not_confirmed")

    def _conclude(self, outcomes: Sequence[Mapping[str, Any]], matched: int) -> None:
        refused = sum(outcome["error"] is not None for outcome in outcomes)
        counts = {"matched": matched, "changed": matched - refused, "refused": refused}
        if self.output.as_json:
            self.output.document({"items": list(outcomes), **counts})
        self.output.note(f"{counts['changed']} of {matched} jobs: {self.verb} accepted")
        if refused:
            message = f"{refused} of {matched} jobs refused"
            raise CommandError(message, exit_code=ExitCode.FAILED, code="refused", facts=counts)
