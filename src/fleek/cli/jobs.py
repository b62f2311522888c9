"""`fleek jobs`: look at jobs, follow them, cancel them, run them again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from fleek.cli.client import Client, UrlOption, job_path, open_client
from fleek.cli.delivery import Delivery, own_command
from fleek.cli.feed import Change
from fleek.cli.output import JsonOption, Output
from fleek.cli.saving import Destination
from fleek.cli.waiting import heeding_sigterm
from fleek.core.job import TERMINAL, Status

app = typer.Typer(help="Look at jobs, follow them, cancel them, run them again", rich_markup_mode=None)

_PAGE = 100
"""The most that one request may ask for."""
_JOB_ID = typer.Argument(metavar="ID", help="The job's id", show_default=False)
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
    status: Annotated[Status | None, typer.Option(help="Only jobs that stand there")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model")] = None,
    q: Annotated[str | None, typer.Option("--q", help="Words of the prompt")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="All of them, whatever --limit says")] = False,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """List jobs, newest first.

    Columns where stdout is not a terminal: id, status, model, created_at, prompt.
    """
    output = Output(as_json)
    filters = {"status": status, "model": model, "q": q}
    given = {name: value for name, value in filters.items() if value}
    jobs = _pages(open_client(url), given, None if show_all else limit)
    if as_json:
        output.document({"items": list(jobs)})
        return
    columns = ("id", "status", "model", "created_at", "prompt")
    rows = ([job[column] for column in columns] for job in jobs)
    output.rows(("ID", "STATUS", "MODEL", "CREATED", "PROMPT"), rows)


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


@app.command("cancel")
def cancel_job(
    job_id: Annotated[str, _JOB_ID],
    *,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Ask a job to stop; a finished one stays as it is."""
    output = Output(as_json)
    job = open_client(url).post(job_path(job_id, "cancel")).json
    _print_job(output, job)
    if job["status"] in TERMINAL - {Status.CANCELED}:
        output.note("The job had ended before; nothing was changed")
    elif job["status"] not in TERMINAL:
        output.note("The cancel was requested; the job ends as soon as its worker hears of it")


@app.command("retry")
def retry_job(
    job_id: Annotated[str, _JOB_ID],
    *,
    max_paid_submissions: Annotated[
        int | None,
        typer.Option(help="Allow so many orders at a paid provider in all, though one may be paid twice"),
    ] = None,
    as_json: Annotated[bool, JsonOption] = False,
    url: Annotated[str | None, UrlOption] = None,
) -> None:
    """Run a job again that ended in error or was canceled."""
    output = Output(as_json)
    body = {} if max_paid_submissions is None else {"max_paid_submissions": max_paid_submissions}
    job = open_client(url).post(job_path(job_id, "retry"), body, key=uuid.uuid4().hex).json
    _print_job(output, job)
    output.note("Accepted", f"`{own_command('jobs', 'watch', job_id, url=url)}` follows it")


def _pages(client: Client, filters: Mapping[str, Any], limit: int | None) -> Iterator[Mapping[str, Any]]:
    """Up to `limit` jobs, asked for page by page as they are needed."""
    cursor, left = None, limit
    while left is None or left > 0:
        query = {**filters, "limit": min(left or _PAGE, _PAGE), **({"cursor": cursor} if cursor else {})}
        page = client.get("/v1/media/jobs", query)
        yield from page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return
        left = None if left is None else left - len(page["items"])


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
