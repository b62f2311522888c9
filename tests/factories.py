"""Rows for tests: jobs in any state with everything that belongs to them, written past the product's code.

What a builder writes is what the product would have written: the history leads to the status, a job
that was claimed has an attempt, one that completed has stored results with real bytes behind them.

    job = await make_job(database)                                           # waiting in the queue
    job = await make_job(database, status=Status.PROCESSING, progress=0.4)   # a worker holds a lease
    job = await make_job(database, status=Status.ERROR, error_code="content_refused")
    job = await make_completed_job(database, storage, n=2, prompt="a lighthouse at dawn")
    jobs = await make_jobs(database, 100, owner_id="somebody else")          # oldest first

Every column of `jobs`, and `prompt`, `parameters`, `input`, `metadata` of the request, can be given by name.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, TypedDict, Unpack
from uuid import UUID

from PIL import Image
from sqlalchemy import Table, insert

from fleek.core.events import EventKind
from fleek.core.ids import new_id
from fleek.core.job import TERMINAL, ErrorCode, Reason, Status
from fleek.core.media import MAX_SEED, PNG, object_key
from fleek.core.owner import LOCAL_OWNER
from fleek.db.base import Base
from fleek.db.session import Database
from fleek.events import models as _events
from fleek.jobs import models as _jobs
from fleek.media import models as _media
from fleek.storage.base import ObjectStorage

_TABLES: tuple[Table, ...] = tuple(
    Base.metadata.tables[model.__tablename__]
    for model in (_jobs.Job, _jobs.JobRequest, _media.Media, _jobs.Attempt, _events.Event)
)
_SUBMISSIONS = Base.metadata.tables[_jobs.Submission.__tablename__]
_SIDE = 64
_THUMBHASH = "1QcSHQRnh493V4dIh4eXh1h4kJUI"
_START, _WORK, _AGE, _RETRY_AFTER, _LEASE = (timedelta(seconds=seconds) for seconds in (0.005, 1, 2, 5, 30))
_ATTEMPT_TIMEOUT = timedelta(minutes=3)

_REASONS = {
    Status.IN_QUEUE: Reason.ACCEPTED,
    Status.PROCESSING: Reason.CLAIMED,
    Status.COMPLETED: Reason.COMPLETED,
    Status.ERROR: Reason.FAILED,
    Status.CANCELED: Reason.CANCELED,
}
_LAST_EVENTS = {
    Reason.COMPLETED: EventKind.COMPLETED,
    Reason.RETRY_SCHEDULED: EventKind.RETRY_SCHEDULED,
    Reason.DEFERRED: EventKind.DEFERRED,
    Reason.INTERRUPTED: EventKind.DEFERRED,
    Reason.LEASE_EXPIRED: EventKind.DEFERRED,
}
_UNCLAIMED = frozenset({Reason.ACCEPTED, Reason.CANCELED})
"""Reasons of a change that needs no attempt before it."""


class JobOverrides(TypedDict, total=False):
    """What a test may say about a job; the rest follows from `status` and `reason`."""

    id: UUID
    owner_id: str
    queue: str
    model: str
    n: int
    status: Status
    reason: Reason
    priority: int
    available_at: datetime
    deadline_at: datetime
    failures: int
    max_attempts: int
    deferrals: int
    crashes: int
    resuming: bool
    fence: int
    lease_expires_at: datetime
    worker: str
    cancel_requested_at: datetime
    progress: float
    error_code: str
    error_message: str
    created_at: datetime
    started_at: datetime
    finished_at: datetime
    prompt: str
    parameters: Mapping[str, Any]
    """Over the defaults: width, height, seed, negative_prompt, output_format."""
    input: Mapping[str, Any]
    metadata: Mapping[str, str]
    deadline_seconds: int
    media: Mapping[str, Any]
    """Columns of every media row, such as `expires_at` or `deleted_at`."""


@dataclass(frozen=True, slots=True)
class MadeJob:
    """What a test needs to know of a job that was made."""

    id: UUID
    owner_id: str
    created_at: datetime
    fence: int
    media_ids: tuple[UUID, ...]
    keys: tuple[str, ...] = field(default=())
    """Of its stored results, in the order of their indexes."""


async def make_job(database: Database, **overrides: Unpack[JobOverrides]) -> MadeJob:
    """One job with its request, media, attempt and history."""
    return (await _insert(database, [_Rows(overrides)]))[0]


async def make_completed_job(
    database: Database, storage: ObjectStorage | None = None, **overrides: Unpack[JobOverrides]
) -> MadeJob:
    """One job whose results are stored; with a `storage`, their bytes are really there."""
    job = await make_job(database, **(overrides | {"status": Status.COMPLETED}))
    if storage is not None:
        seed = overrides.get("parameters", {}).get("seed", 7)
        for index, key in enumerate(job.keys):
            content = picture(seed + index)
            await storage.put(key, content, content_type=PNG.content_type, filename=f"{index}.png")
    return job


async def make_jobs(database: Database, count: int, **overrides: Unpack[JobOverrides]) -> list[MadeJob]:
    """Many jobs in one transaction, oldest first, a millisecond apart unless `created_at` is given."""
    first = datetime.now(UTC) - _AGE - timedelta(milliseconds=count)
    times = (first + timedelta(milliseconds=index) for index in range(count))
    return await _insert(database, [_Rows({"created_at": time, **overrides}) for time in times])


async def make_submission(database: Database, job: MadeJob, **overrides: Any) -> None:
    """One order of a job: open and without a handle, unless said otherwise.

    A `resolution` brings its time; a `handle_id` brings its handle and the time of acceptance.
    """
    row = {"ordinal": 1, "first_index": 0, "count": 1, "provider": "demo", "model_ref": "demo"}
    row |= {"job_id": job.id, "request_hash": "0" * 64, "seed": 7, "intent_at": job.created_at + _START}
    if "handle_id" in overrides:
        row |= {"handle": {}, "accepted_at": job.created_at + _START}
    if "resolution" in overrides:
        row |= {"resolved_at": job.created_at + _WORK}
    if "cost" in overrides:
        overrides["cost"] = Decimal(overrides["cost"])
    async with database.begin() as connection:
        await connection.execute(insert(_SUBMISSIONS), [row | overrides])


@cache
def picture(seed: int) -> bytes:
    """A small PNG of one colour: real bytes, another for every seed."""
    stream = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), tuple(seed.to_bytes(4)[1:])).save(stream, "PNG")
    return stream.getvalue()


class _Rows:
    """The rows of one job, in the order of `_TABLES`."""

    def __init__(self, overrides: JobOverrides) -> None:
        self.created_at = overrides.get("created_at", datetime.now(UTC) - _AGE)
        self.status = overrides.get("status", Status.IN_QUEUE)
        self.reason = overrides.get("reason", _REASONS[self.status])
        self.is_claimed = self.reason not in _UNCLAIMED
        self.parameters = _parameters(overrides)
        self.request = self._request(overrides)
        self.job = self._job(overrides)
        self.attempts = [self._attempt()] if self.is_claimed else []
        self.events = self._events()
        self.job["event_sequence"] = len(self.events)
        self.media = [self._media(index) | dict(overrides.get("media", {})) for index in range(self.job["n"])]

    @property
    def in_order(self) -> Sequence[list[dict[str, Any]]]:
        """Rows by table."""
        return [self.job], [self.request], self.media, self.attempts, self.events

    @property
    def made(self) -> MadeJob:
        """What the test is told."""
        return MadeJob(
            id=self.job["id"],
            owner_id=self.job["owner_id"],
            created_at=self.created_at,
            fence=self.job["fence"],
            media_ids=tuple(row["id"] for row in self.media),
            keys=tuple(row["key"] for row in self.media if row["key"] is not None),
        )

    def _job(self, overrides: JobOverrides) -> dict[str, Any]:
        columns = Base.metadata.tables["jobs"].columns.keys()
        given = {name: value for name, value in overrides.items() if name in columns}
        deadline = timedelta(seconds=self.request["deadline_seconds"])
        defaults = {
            "id": self.request["job_id"],
            "owner_id": LOCAL_OWNER,
            "queue": "default",
            "model": "demo",
            "n": 1,
            "priority": 0,
            "max_attempts": 4,
            "deferrals": int(self.reason is Reason.DEFERRED),
            "crashes": 0,
            "resuming": False,
            "cancel_requested_at": None,
            "available_at": self._available_at(),
            "deadline_at": self.created_at + deadline,
            "fence": int(self.is_claimed),
            "failures": int(self.reason in {Reason.RETRY_SCHEDULED, Reason.FAILED}),
        }
        return (
            defaults
            | self._job_by_status()
            | given
            | {
                "created_at": self.created_at,
                "status": self.status,
                "reason": self.reason,
            }
        )

    def _job_by_status(self) -> dict[str, Any]:
        is_running, is_failed = self.status is Status.PROCESSING, self._has_failed()
        return {
            "lease_expires_at": datetime.now(UTC) + _LEASE if is_running else None,
            "worker": "test-1" if is_running else None,
            "progress": 1.0 if self.status is Status.COMPLETED else None,
            "error_code": ErrorCode.TRANSIENT if is_failed else None,
            "error_message": "The provider did not answer" if is_failed else None,
            "started_at": self.created_at + _START if self.is_claimed else None,
            "finished_at": self.created_at + _WORK if self.status in TERMINAL else None,
        }

    def _request(self, overrides: JobOverrides) -> dict[str, Any]:
        return {
            "job_id": overrides.get("id") or new_id(),
            "prompt": overrides.get("prompt", "a lighthouse at dawn"),
            "parameters": self.parameters,
            "input": dict(overrides.get("input", {})),
            "metadata": dict(overrides.get("metadata", {})),
            "deadline_seconds": overrides.get("deadline_seconds", 86_400),
        }

    def _attempt(self) -> dict[str, Any]:
        is_over, is_failed = self.status is not Status.PROCESSING, self._has_failed()
        outcome = Reason.FAILED if self.reason is Reason.RETRIED_BY_CLIENT else self.reason
        return {
            "job_id": self.job["id"],
            "number": self.job["fence"],
            "worker": "test-1",
            "celery_task_id": None,
            "started_at": self.created_at + _START,
            "run_deadline_at": datetime.now(UTC) + _ATTEMPT_TIMEOUT,
            "finished_at": self.created_at + _WORK if is_over else None,
            "outcome": outcome if is_over else None,
            "error_code": self.job["error_code"] if is_failed else None,
            "error_message": self.job["error_message"] if is_failed else None,
            "metrics": {"seconds": 1.0} if self.status is Status.COMPLETED else None,
        }

    def _events(self) -> list[dict[str, Any]]:
        attempt = {"attempt": self.job["fence"]}
        first = {
            EventKind.ACCEPTED: (self.created_at, {"reason": Reason.ACCEPTED}),
            EventKind.CLAIMED: (self.created_at + _START, attempt | {"worker": "test-1"}),
        }
        later = (self.created_at + _WORK, attempt | {"reason": self.reason})
        return [
            {"job_id": self.job["id"], "sequence": sequence, "kind": kind, "data": data, "at": at}
            for sequence, kind in enumerate(self._history(), start=1)
            for at, data in (first.get(kind, later),)
        ]

    def _history(self) -> list[EventKind]:
        history = [EventKind.ACCEPTED]
        if self.is_claimed:
            history.append(EventKind.CLAIMED)
        if self.reason is Reason.RETRIED_BY_CLIENT:
            history += [EventKind.FAILED, EventKind.RETRIED]
        elif self.status is Status.ERROR:
            history.append(EventKind.FAILED)
        elif self.status is Status.CANCELED:
            history.append(EventKind.CANCELED)
        elif self.reason in _LAST_EVENTS:
            history.append(_LAST_EVENTS[self.reason])
        return history

    def _media(self, index: int) -> dict[str, Any]:
        seed, media_id = (self.parameters["seed"] + index) % (MAX_SEED + 1), new_id()
        row = dict.fromkeys(Base.metadata.tables["media"].columns.keys()) | {
            "id": media_id,
            "job_id": self.job["id"],
            "owner_id": self.job["owner_id"],
            "index": index,
            "seed": seed,
            "created_at": self.created_at,
        }
        if self.status is not Status.COMPLETED:
            return row
        content = picture(seed)
        return row | {
            "key": object_key(self.job["id"], media_id, self.job["fence"], PNG),
            "content_type": PNG.content_type,
            "size_bytes": len(content),
            "width": _SIDE,
            "height": _SIDE,
            "sha256": hashlib.sha256(content).hexdigest(),
            "thumbhash": _THUMBHASH,
            "stored_at": self.created_at + _WORK,
        }

    def _available_at(self) -> datetime:
        is_waiting = self.reason in {Reason.RETRY_SCHEDULED, Reason.DEFERRED}
        return datetime.now(UTC) + _RETRY_AFTER if is_waiting else self.created_at

    def _has_failed(self) -> bool:
        return self.status is Status.ERROR or self.reason in {Reason.RETRY_SCHEDULED, Reason.DEFERRED}


def _parameters(overrides: JobOverrides) -> dict[str, Any]:
    defaults = {"width": None, "height": None, "negative_prompt": None, "output_format": "png", "seed": 7}
    return defaults | dict(overrides.get("parameters", {}))


async def _insert(database: Database, jobs: list[_Rows]) -> list[MadeJob]:
    async with database.begin() as connection:
        for position, table in enumerate(_TABLES):
            rows = [row for job in jobs for row in job.in_order[position]]
            if rows:
                await connection.execute(insert(table), rows)
    return [job.made for job in jobs]
