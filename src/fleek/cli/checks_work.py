"""What `fleek doctor` looks at in the queue: whether jobs get done, and what waits for an operator.

Every question is bounded: it reads waiting, running or failed jobs by their own indexes, never all jobs,
and of those that wait only the oldest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from fleek.cli.findings import CHECK_SECONDS, Finding, connect, failed, ok, warning
from fleek.core.job import ErrorCode
from fleek.providers.registry import Catalog, build_catalog, load_providers
from fleek.queue.base import WORKER, queues_of
from fleek.settings import Settings

_PATIENCE = timedelta(seconds=60)
"""A job that has been due for longer is late."""
_RESCUE_TIME = timedelta(seconds=60)
"""A lease that ran out longer ago should have been rescued."""

_COUNTED = 1000
"""Due jobs of a model in a queue: so many are counted."""

Row = Mapping[str, Any]

_BACKLOG = """
WITH RECURSIVE lane AS (
    (
        SELECT queue, model, owner_id FROM jobs
        WHERE status = 'in_queue' ORDER BY queue, model, owner_id LIMIT 1
    )
    UNION ALL
    SELECT following.* FROM lane CROSS JOIN LATERAL (
        SELECT queue, model, owner_id FROM jobs
        WHERE status = 'in_queue'
          AND (jobs.queue, jobs.model, jobs.owner_id) > (lane.queue, lane.model, lane.owner_id)
        ORDER BY queue, model, owner_id LIMIT 1
    ) AS following
),
due AS (
    SELECT lane.queue, lane.model, found.available_at
    FROM lane CROSS JOIN generate_series(-10, 10) AS p (priority) CROSS JOIN LATERAL (
        SELECT available_at FROM jobs
        WHERE status = 'in_queue' AND NOT resuming AND available_at <= statement_timestamp()
          AND jobs.queue = lane.queue AND jobs.model = lane.model AND jobs.owner_id = lane.owner_id
          AND jobs.priority = p.priority
        ORDER BY available_at LIMIT $2
    ) AS found
    WHERE NOT EXISTS (
        SELECT FROM lane_state
        WHERE lane_state.model = lane.model AND paused_until > statement_timestamp()
    )
    UNION ALL
    (
        SELECT queue, model, available_at FROM jobs
        WHERE status = 'in_queue' AND resuming AND available_at <= statement_timestamp()
        ORDER BY queue, available_at LIMIT $2
    )
)
SELECT queue, model, least(count(*), $2) AS jobs,
    min(available_at) < statement_timestamp() - CAST($1 AS interval) AS is_late,
    CAST(extract(epoch FROM statement_timestamp() - min(available_at)) AS int) AS seconds,
    EXISTS (SELECT FROM jobs WHERE jobs.status = 'processing' AND jobs.queue = due.queue) AS is_served
FROM due GROUP BY queue, model ORDER BY queue, model
"""
"""By the index from lane to lane, as a claim goes: a million waiting jobs take no longer than a few thousand.

What resumes is due also while its model is paused.
"""
_WORKERS = f"""
SELECT DISTINCT application_name FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE '{WORKER}%'
"""  # noqa: S608  a constant of ours
_LOST = """
SELECT count(*) AS jobs,
    CAST(extract(epoch FROM max(clock_timestamp() - lease_expires_at)) AS int) AS seconds
FROM jobs WHERE status = 'processing' AND lease_expires_at < clock_timestamp() - CAST($1 AS interval)
"""
_PAUSES = """
SELECT model, reason, CASE WHEN isfinite(paused_until) THEN paused_until END AS until
FROM lane_state WHERE paused_until > clock_timestamp() ORDER BY model
"""
_AMBIGUOUS = f"""
SELECT count(*) AS jobs FROM jobs
WHERE status = 'error' AND error_code = '{ErrorCode.AMBIGUOUS_SUBMISSION}'
  AND finished_at > clock_timestamp() - interval '7 days'
"""  # noqa: S608  a constant of ours


async def check_workers(settings: Settings) -> Finding:
    """Whether any worker is there, and none of the queues is left waiting by all."""
    return judge_workers(await _backlog(settings), await _fetch(settings, _WORKERS))


async def check_queue(settings: Settings) -> Finding:
    """Whether what is due gets its turn."""
    workers = [row["application_name"] for row in await _fetch(settings, _WORKERS)]
    catalog = await _catalog(settings)
    return judge_queue(await _backlog(settings), workers, catalog)


async def check_leases(settings: Settings) -> Finding:
    """Whether jobs of lost workers are taken over."""
    [row] = await _fetch(settings, _LOST, _RESCUE_TIME)
    return judge_leases(row["jobs"], row["seconds"] or 0)


async def check_pauses(settings: Settings) -> Finding:
    """Whether models are kept from generating."""
    return judge_pauses(await _fetch(settings, _PAUSES))


async def check_ambiguous(settings: Settings) -> Finding:
    """Whether orders wait for somebody to look at the provider's account."""
    [row] = await _fetch(settings, _AMBIGUOUS)
    return judge_ambiguous(row["jobs"])


def judge_workers(backlog: Sequence[Row], workers: Sequence[Row]) -> Finding:
    """`workers` are sessions of worker processes, `backlog` due jobs by queue and model."""
    left = {row["queue"]: row["seconds"] for row in backlog if row["is_late"] and not row["is_served"]}
    if left:
        queues = ", ".join(f"{queue} ({seconds} s)" for queue, seconds in left.items())
        remedy = f"fleek worker --queues {','.join(left)}"
        return failed(f"due jobs wait and no worker takes them: {queues}", remedy)
    if not workers:
        return failed("none is connected to the database", "fleek worker (script/up starts one, too)")
    return ok("connected, and no queue is left waiting")


def judge_queue(backlog: Sequence[Row], workers: Sequence[str], catalog: Catalog) -> Finding:
    """`workers` are what worker processes call themselves."""
    # That no worker is there at all is said by another check.
    served = queues_of(workers) if workers else None
    details, remedies = [], []
    for row in backlog:
        count = row["jobs"] if row["jobs"] <= _COUNTED else f"more than {_COUNTED}"
        what = f"{count} of {row['model']} in {row['queue']}"
        if served is not None and row["queue"] not in served:
            details.append(f"no worker serves the queue of {what}")
            remedies.append(f"fleek worker --queues {row['queue']}")
        elif not _knows(catalog, row["model"]):
            details.append(f"this configuration has no such model: {what}")
            remedies.append(f"declare it, or fleek jobs cancel --status in_queue --model {row['model']}")
        elif row["is_late"]:
            details.append(f"late, the oldest for {row['seconds']} s: {what}")
            remedies.append("more workers, or more --slots")
    if details:
        return warning("; ".join(details), "; ".join(dict.fromkeys(remedies)))
    return ok("nothing is late")


def judge_leases(jobs: int, seconds: int) -> Finding:
    """`jobs` run under a lease that ended long ago, the oldest for so many seconds."""
    if jobs:
        detail = f"running jobs without a worker: {jobs}, the first for {seconds} s"
        return warning(detail, "start a worker: each one rescues what others left (fleek worker)")
    return ok("every running job has its worker")


def judge_pauses(pauses: Sequence[Row]) -> Finding:
    """Each with `model`, `reason` and `until`, which is None for one without an end."""
    if not pauses:
        return ok("no model is paused")
    shown = [
        f"{row['model']} until {row['until'].isoformat(timespec='seconds') if row['until'] else 'resumed'}: "
        f"{row['reason']}"
        for row in pauses
    ]
    remedy = "; ".join(f"fleek models resume {row['model']}" for row in pauses)
    return warning("; ".join(shown), f"when the reason is gone: {remedy}")


def judge_ambiguous(jobs: int) -> Finding:
    """`jobs` ended in the last days without anybody knowing whether they were paid for."""
    if jobs:
        detail = f"jobs of the last 7 days that may have been paid for without a result: {jobs}"
        command = f"fleek jobs ls --status error --code {ErrorCode.AMBIGUOUS_SUBMISSION}"
        return warning(detail, f"{command}, then look at the provider's account")
    return ok("no order was lost in the last 7 days")


def _knows(catalog: Catalog, name: str) -> bool:
    return catalog.is_open or name in catalog.names


async def _backlog(settings: Settings) -> list[Row]:
    return await _fetch(settings, _BACKLOG, _PATIENCE, _COUNTED + 1)


async def _catalog(settings: Settings) -> Catalog:
    loaded = load_providers(settings.providers)
    try:
        return build_catalog(settings.models, loaded.providers, loaded.unavailable)
    finally:
        for provider in loaded.providers.values():
            await provider.aclose()


async def _fetch(settings: Settings, statement: str, *parameters: timedelta | int) -> list[Row]:
    connection = await connect(settings)
    try:
        return [dict(row) for row in await connection.fetch(statement, *parameters, timeout=CHECK_SECONDS)]
    finally:
        await connection.close()
