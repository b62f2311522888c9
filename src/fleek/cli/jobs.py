"""`fleek jobs`: look at jobs, follow them, cancel them, run them again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fleek.cli.bulk import (
    AfterOption,
    AllOption,
    BeforeOption,
    Bulk,
    CodeOption,
    DryRunOption,
    LimitOption,
    MetadataOption,
    ModelOption,
    Selection,
    StatusOption,
    WordsOption,
    YesOption,
    require_one,
)
from fleek.cli.client import UrlOption, job_path, open_client
from fleek.cli.delivery import Delivery, own_command
from fleek.cli.feed import Change
from fleek.cli.job_logs import show_logs
from fleek.cli.output import JsonOption, Output
from fleek.cli.saving import Destination
from fleek.cli.waiting import heeding_sigterm
from fleek.core.job import TERMINAL, ErrorCode, Status

app = typer.Typer(help="Look at jobs, follow them, cancel them, run them again", rich_markup_mode=None)

_JOB_ID = typer.Argument(metavar="ID", help="The job's id", show_default=False)
_ONE_JOB = typer.Argument(metavar="ID", help="One job's id, in place of filters", show_default=False)
_FACTS = (
    "id",
    "status",
    "reason",
    "model",
    "prompt",
    "negative_prompt",
    "n",
    "width",
    "height",
    "seed",
    "output_format",
    "input",
    "metadata",
    "progress",
    "failures",
    "max_attempts",
    "priority",
    "created_at",
    "started_at",
    "available_at",
    "deadline_at",
    "finished_at",
)


@app.command("ls")
def list_jobs(  # noqa: PLR0913  one parameter a flag
    *,
    status: Annotated[Status | None, StatusOption] = None,
    code: Annotated[ErrorCode | None, CodeOption] = None,
    model: Annotated[str | None, ModelOption] = None,
    q: Annotated[str | None, WordsOption] = None,
    created_after: Annotated[str | None, AfterOption] = None,
    created_before: Annotated[str | None, BeforeOption] = None,
    metadata: Annotated[list[str] | None, MetadataOption] = None,
    limit: Annotated[int, LimitOption] = 20,
    show_all: Annotated[bool, AllOption] = False,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """List jobs, newest first.

    Columns where stdout is not a terminal: id, status, error code, model, created_at, prompt.
    """
    output = Output(as_json)
    some = None if show_all else limit
    selection = Selection(status, code, model, q, created_after, created_before, metadata or (), some)
    jobs = selection.jobs(open_client(url))
    if as_json:
        output.document({"items": list(jobs)})
        return
    titles = ("ID", "STATUS", "ERROR", "MODEL", "CREATED", "PROMPT")
    output.rows(titles, ([*_place(job), job["model"], job["created_at"], job["prompt"]] for job in jobs))


@app.command("get")
def get_job(
    job_id: Annotated[str, _JOB_ID],
    *,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Show all of one job: its request, results, attempts and error."""
    job = open_client(url).get(job_path(job_id))
    if as_json:
        Output(as_json).document(job)
    else:
        Output(as_json).facts(_describe(job))


@app.command("watch")
def watch_job(  # noqa: PLR0913  one parameter a flag
    job_id: Annotated[str, _JOB_ID],
    *,
    destination: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE|DIR|-", help="Save the result there")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait; then exit 124")] = None,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Follow a job until it ends; with --output save what it made.

    Exits as `fleek generate` does. With --json every change is one line, and the last line is the job.
    """
    client = open_client(url)
    with heeding_sigterm():
        where = None
        if destination is not None:
            where = Destination(destination, force, client.get(job_path(job_id))["n"])
            where.check()
        output = Output(as_json)
        on_change = (lambda change: _print_change(output, change)) if as_json else None
        Delivery(client, output, job_id, where, timeout, url, on_change).run()
        if where is None and not as_json:
            output.data(f"{job_id}\t{Status.COMPLETED}")


app.command("logs")(show_logs)


@app.command("cancel")
def cancel_job(  # noqa: PLR0913  one parameter a flag
    job_id: Annotated[str | None, _ONE_JOB] = None,
    *,
    status: Annotated[Status | None, StatusOption] = None,
    code: Annotated[ErrorCode | None, CodeOption] = None,
    model: Annotated[str | None, ModelOption] = None,
    q: Annotated[str | None, WordsOption] = None,
    created_after: Annotated[str | None, AfterOption] = None,
    created_before: Annotated[str | None, BeforeOption] = None,
    metadata: Annotated[list[str] | None, MetadataOption] = None,
    limit: Annotated[int | None, LimitOption] = None,
    dry_run: Annotated[bool, DryRunOption] = False,
    yes: Annotated[bool, YesOption] = False,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Ask a job to stop, or all jobs that the filters name; a finished one stays as it is."""
    output = Output(as_json)
    selection = Selection(status, code, model, q, created_after, created_before, metadata or (), limit)
    require_one(job_id, selection, "cancel", dry_run=dry_run)
    client = open_client(url)

    def cancel(one: str) -> Mapping[str, Any]:
        return dict(client.post(job_path(one, "cancel")).json)

    if job_id is None:
        Bulk(client, output, "cancel", cancel).run(selection, dry_run=dry_run, yes=yes)
        return
    job = cancel(job_id)
    _print_job(output, job)
    if job["status"] in TERMINAL - {Status.CANCELED}:
        output.note("The job had ended before; nothing was changed")
    elif job["status"] not in TERMINAL:
        output.note("The cancel was requested; the job ends as soon as its worker hears of it")


@app.command("retry")
def retry_job(  # noqa: PLR0913  one parameter a flag
    job_id: Annotated[str | None, _ONE_JOB] = None,
    *,
    max_paid_submissions: Annotated[
        int | None,
        typer.Option(help="Allow so many orders at a paid provider in all, though one may be paid twice"),
    ] = None,
    status: Annotated[Status | None, StatusOption] = None,
    code: Annotated[ErrorCode | None, CodeOption] = None,
    model: Annotated[str | None, ModelOption] = None,
    q: Annotated[str | None, WordsOption] = None,
    created_after: Annotated[str | None, AfterOption] = None,
    created_before: Annotated[str | None, BeforeOption] = None,
    metadata: Annotated[list[str] | None, MetadataOption] = None,
    limit: Annotated[int | None, LimitOption] = None,
    dry_run: Annotated[bool, DryRunOption] = False,
    yes: Annotated[bool, YesOption] = False,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Run a job again that ended in error or was canceled, or all jobs that the filters name."""
    output = Output(as_json)
    selection = Selection(status, code, model, q, created_after, created_before, metadata or (), limit)
    require_one(job_id, selection, "retry", dry_run=dry_run)
    client = open_client(url)
    body = {} if max_paid_submissions is None else {"max_paid_submissions": max_paid_submissions}

    def retry(one: str) -> Mapping[str, Any]:
        return dict(client.post(job_path(one, "retry"), body, key=uuid.uuid4().hex).json)

    if job_id is None:
        Bulk(client, output, "retry", retry).run(selection, dry_run=dry_run, yes=yes)
        return
    _print_job(output, retry(job_id))
    output.note("Accepted", f"`{own_command('jobs', 'watch', job_id, url=url)}` follows it")


def _place(job: Mapping[str, Any]) -> list[str]:
    """Where a job stands, in three columns."""
    return [job["id"], job["status"], job["error"]["code"] if job["error"] else ""]


def _describe(job: Mapping[str, Any]) -> dict[str, object]:
    """A job as names and values; lists of things are numbered."""
    facts: dict[str, object] = {name: job.get(name) for name in _FACTS}
    error = job.get("error")
    facts["error"] = f"{error['code']}: {error['message']}" if error else None
    facts["cost"] = f"{job['cost']['amount']} {job['cost']['currency']}" if job.get("cost") else None
    for media in job["media"]:
        size = f"{media['width']}x{media['height']}" if media["width"] else ""
        parts = (media["content_type"], size, f"{media['size_bytes']} bytes", media["content_url"])
        facts[f"media {media['index'] + 1}"] = " ".join(part for part in parts if part)
    for order in job["submissions"]:
        accepted = f"taken {order['accepted_at']}" if order["accepted_at"] else "no reply was seen"
        ended = f"{order['resolution'] or 'open'} {order['resolved_at'] or ''}".rstrip()
        facts[f"order {order['ordinal']}"] = (
            f"{order['model_ref']} at {order['provider']}, {accepted}, {ended}"
        )
    for attempt in job["attempts"]:
        failure = f": {attempt['error']['message']}" if attempt["error"] else ""
        began = f"{attempt['started_at']} on {attempt['worker']}"
        facts[f"attempt {attempt['number']}"] = f"{began}, {attempt['outcome'] or 'running'}{failure}"
    return facts


def _print_job(output: Output, job: Mapping[str, Any]) -> None:
    if output.as_json:
        output.document(job)
    else:
        output.data(f"{job['id']}\t{job['status']}")


def _print_change(output: Output, change: Change) -> None:
    output.line({"event": change.kind, "sequence": change.sequence, "data": change.data})
