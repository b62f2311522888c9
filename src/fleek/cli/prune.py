"""`fleek prune`: what workers delete by age, done now or only counted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleek.cli.exits import unreachable
from fleek.cli.output import JsonOption, Output

if TYPE_CHECKING:
    from fleek.bootstrap.pruning import PruneTools
    from fleek.settings import Settings

_STATEMENT_SECONDS = 600.0
"""Counting reads every row that is to go."""


def prune(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count")] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="The object store belongs to this database from now on")
    ] = False,
    unknown: Annotated[
        bool,
        typer.Option("--unknown", help="Also objects of jobs older than the oldest that the database knows"),
    ] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Delete expired results, jobs past their retention and orphaned objects, as workers do by themselves.

    Uses the configuration of this environment.
    """
    import asyncio  # noqa: PLC0415  other commands start faster without all of this

    from fleek.settings import load_settings  # noqa: PLC0415
    from fleek.storage.base import StorageError  # noqa: PLC0415

    settings, output = load_settings(), Output(as_json)
    try:
        with _records_beside(as_json=as_json):
            found = asyncio.run(_prune(settings, dry_run=dry_run, adopt=adopt, unknown=unknown))
    except StorageError as error:
        message = f"The object store does not answer: {error}"
        raise unreachable(message, "`fleek doctor` tells more") from error
    if as_json:
        output.document({"dry_run": dry_run, **found})
        return
    output.facts(found)
    if dry_run:
        output.note("Nothing was deleted")
    if settings.job_retention is None:
        output.note("Jobs are kept for ever: FLEEK_JOB_RETENTION is not set")


@contextmanager
def _records_beside(*, as_json: bool) -> Iterator[None]:
    """What is logged goes to standard error, and nowhere with `--json`; structlog itself prints to stdout."""
    import structlog  # noqa: PLC0415  see above

    before = structlog.get_config()
    beside = structlog.ReturnLoggerFactory() if as_json else lambda *_: structlog.PrintLogger(sys.stderr)
    structlog.configure(logger_factory=beside)
    try:
        yield
    finally:
        structlog.configure(**before)


async def _prune(settings: Settings, *, dry_run: bool, adopt: bool, unknown: bool) -> dict[str, Any]:
    """Numbers by what is gone or would go, and the stored `bytes` of all of it."""
    from fleek.bootstrap.pruning import open_prune_tools  # noqa: PLC0415  see above

    async with open_prune_tools(settings, _STATEMENT_SECONDS) as tools:
        rows = await _survey(tools, settings)
        # First, since it may refuse: then nothing has happened yet.
        orphans = await tools.orphans.sweep(delete=not dry_run, adopt=adopt, even_unknown=unknown)
        size = rows.pop("bytes") + orphans.size
        if not dry_run:
            rows = await _until_nothing_is_left(tools)
            left = (await _survey(tools, settings))["jobs"]
            # The store refused their objects, or a worker is at them.
            rows |= {"put_off": left} if left else {}
        return {**rows, "orphans": orphans.number, "bytes": size}


async def _survey(tools: PruneTools, settings: Settings) -> dict[str, int]:
    from fleek.jobs import prunable  # noqa: PLC0415  see above

    expired = await prunable.count_expired_media(tools.database)
    jobs = prunable.Amount(0, 0)
    if settings.job_retention is not None:
        jobs = await prunable.count_outlived_jobs(tools.database, settings.job_retention)
    return {"expired": expired.number, "jobs": jobs.number, "bytes": expired.size + jobs.size}


async def _until_nothing_is_left(tools: PruneTools) -> dict[str, int]:
    """Passes are bounded: as many as it takes. Raises StorageError where the store keeps objects of jobs."""
    total: dict[str, int] = {}
    while any((counts := await tools.pruner.prune_rows(put_off=False)).values()):
        total = {name: total.get(name, 0) + count for name, count in counts.items()}
    return total or counts
