"""What clients can do with jobs. The service decides and commits; it knows neither HTTP nor Celery."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from fleek.core.cursor import CursorCodec, Position
from fleek.core.errors import (
    IdempotencyInFlight,
    IdempotencyMismatch,
    InvalidRequest,
    JobNotFinished,
    JobNotRetryable,
    NotFound,
    Violation,
    WouldPayAgain,
)
from fleek.core.ids import new_id
from fleek.core.job import Reason, Status
from fleek.core.media import MAX_SEED, OutputFormat
from fleek.core.urls import Urls
from fleek.db.session import Database
from fleek.failpoints import Point, failpoint
from fleek.jobs import changes, repository
from fleek.jobs.changes import AcceptedAt, Idempotency, NewJob
from fleek.jobs.repository import EventRow, JobFilter
from fleek.jobs.schemas import GenerateRequest, JobOut, JobPage, JobStatusOut, Links, RetryRequest
from fleek.observability.metrics import Metrics
from fleek.providers.registry import Catalog, Model
from fleek.queue.base import Announcement, PubSub, Waker


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job, and whether the request's key had made it before."""

    job: JobOut
    replayed: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """A job, and whether the request did anything to it."""

    job: JobOut
    changed: bool


class JobService:
    """Accept, look, cancel, retry, delete."""

    def __init__(  # noqa: PLR0913  the ports it works with
        self,
        database: Database,
        catalog: Catalog,
        waker: Waker,
        pubsub: PubSub,
        cursors: CursorCodec,
        delete_objects: Callable[[Sequence[str]], Awaitable[None]],
        metrics: Metrics | None = None,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._waker = waker
        self._pubsub = pubsub
        self._cursors = cursors
        self._delete_objects = delete_objects
        self._metrics = metrics or Metrics()

    async def accept(
        self, owner: str, request: GenerateRequest, urls: Urls, *, idempotency: Idempotency | None = None
    ) -> Accepted:
        """Make a job in one transaction, or find the one that the key made before."""
        model = self._catalog.get(request.model) if request.model else self._catalog.default
        _check_input(model, request)
        job = _new_job(owner, request, model)
        await failpoint(Point.ACCEPT_BEFORE_COMMIT)
        at = await changes.accept(self._database, job, idempotency)
        await failpoint(Point.ACCEPT_AFTER_COMMIT)
        if at is None:
            replay = await self._replay_or_none(owner, "generate", idempotency, urls)
            if replay is None:
                # The job was deleted between the two statements, and its key with it.
                raise IdempotencyInFlight
            return replay
        self._metrics.job_accepted(job.queue, job.model)
        self._waker.wake(job.queue)
        return Accepted(_as_accepted(job, request, at, urls), replayed=False)

    async def get(self, owner: str, job_id: UUID, urls: Urls) -> JobOut:
        """The whole job."""
        job = await repository.get_job_or_none(self._database, owner, job_id, urls)
        if job is None:
            raise NotFound("job")
        return job

    async def status(self, owner: str, job_id: UUID) -> JobStatusOut:
        """The light status: one indexed read."""
        status = await repository.get_status_or_none(self._database, owner, job_id)
        if status is None:
            raise NotFound("job")
        return status

    async def list(
        self, owner: str, filters: JobFilter, urls: Urls, *, cursor: str | None, limit: int
    ) -> JobPage:
        """A page of jobs, newest first; raises InvalidCursor for a cursor of another list."""
        scope = filters.scope(owner)
        after = self._cursors.decode(cursor, scope) if cursor is not None else None
        jobs = await repository.list_jobs(self._database, owner, filters, after, limit + 1, urls)
        page, more = jobs[:limit], len(jobs) > limit
        last = Position(page[-1].created_at, page[-1].id) if more else None
        return JobPage(items=page, next_cursor=self._cursors.encode(last, scope) if last else None)

    async def events(self, owner: str, job_id: UUID, after: int) -> Sequence[EventRow]:
        """The history after a sequence."""
        events = await repository.list_events(self._database, owner, job_id, after)
        if events is None:
            raise NotFound("job")
        return events

    async def cancel(self, owner: str, job_id: UUID, urls: Urls) -> Changed:
        """Cancel; a finished job is left as it is, and a completion that commits first wins."""
        moved = await changes.cancel(self._database, owner, job_id)
        if moved is not None:
            self._pubsub.announce(Announcement(job_id, cancel=moved.status is not Status.CANCELED))
            if moved.status is Status.CANCELED:
                self._metrics.job_ended(moved.model, Status.CANCELED)
            if moved.status is Status.IN_QUEUE:
                self._waker.wake(moved.queue)
        return Changed(await self.get(owner, job_id, urls), changed=moved is not None)

    async def retry(
        self,
        owner: str,
        job_id: UUID,
        request: RetryRequest,
        urls: Urls,
        *,
        idempotency: Idempotency | None = None,
    ) -> Accepted:
        """Start a new chain of attempts for a job that ended in error or was canceled."""
        operation = changes.retry_operation(job_id)
        if replay := await self._replay_or_none(owner, operation, idempotency, urls):
            # What the first request with the key has led to since must not make its repetition fail.
            return replay
        fence = await self._refuse_second_payment(owner, job_id, request.max_paid_submissions)
        moved = await changes.retry(self._database, owner, job_id, fence, idempotency)
        if moved is None and (replay := await self._replay_or_none(owner, operation, idempotency, urls)):
            return replay
        if moved is not None:
            self._metrics.job_retried(moved.queue, moved.model)
        job = await self.get(owner, job_id, urls)
        if moved is None:
            raise JobNotRetryable
        self._waker.wake(moved.queue)
        self._pubsub.announce(Announcement(job_id))
        return Accepted(job, replayed=False)

    async def delete(self, owner: str, job_id: UUID) -> None:
        """Delete a finished job with its prompt and its results; objects follow after the commit."""
        keys = await changes.delete(self._database, owner, job_id)
        if keys is None:
            await self.status(owner, job_id)
            raise JobNotFinished
        await self._delete_objects(keys)

    async def _replay_or_none(
        self, owner: str, operation: str, idempotency: Idempotency | None, urls: Urls
    ) -> Accepted | None:
        """The answer to a key that was used before: the job as it is now."""
        if idempotency is None:
            return None
        used = await changes.get_key_or_none(self._database, owner, operation, idempotency.key)
        if used is None:
            return None
        fingerprint, job_id = used
        if fingerprint != idempotency.fingerprint:
            raise IdempotencyMismatch
        return Accepted(await self.get(owner, job_id, urls), replayed=True)

    async def _refuse_second_payment(self, owner: str, job_id: UUID, allowed: int | None) -> int | None:
        """The fence of a job that has ended, if another order is allowed, by the request or by its model.

        Raises WouldPayAgain where it is not.
        """
        lost = await changes.get_lost_orders_or_none(self._database, owner, job_id)
        if lost is None:
            raise NotFound("job")
        if lost.fence is not None and lost.paid >= max(allowed or 1, self._max_paid(lost.model)):
            raise WouldPayAgain
        return lost.fence

    def _max_paid(self, name: str) -> int:
        """A job may outlive its model's configuration."""
        try:
            return self._catalog.get(name).max_paid_submissions
        except NotFound:
            return 1


def _check_input(model: Model, request: GenerateRequest) -> None:
    violations: Sequence[Violation] = model.validate_input(request.input)
    if violations:
        message = f"The input does not fit the model {model.name}"
        raise InvalidRequest(message, tuple(violations))


def _new_job(owner: str, request: GenerateRequest, model: Model) -> NewJob:
    seed = request.seed if request.seed is not None else secrets.randbelow(MAX_SEED + 1)
    return NewJob(
        id=new_id(),
        owner=owner,
        queue=model.queue,
        model=model.name,
        n=request.n,
        priority=request.priority,
        max_attempts=request.max_attempts,
        deadline_seconds=request.deadline_seconds,
        prompt=request.prompt,
        parameters=request.parameters | {"seed": seed},
        input=request.input,
        metadata=request.metadata,
        media_ids=[new_id() for _ in range(request.n)],
        seeds=[(seed + index) % (MAX_SEED + 1) for index in range(request.n)],
    )


def _as_accepted(job: NewJob, request: GenerateRequest, at: AcceptedAt, urls: Urls) -> JobOut:
    """The job as it was just committed, from what is known: the answer needs no second round trip."""
    return JobOut(
        id=job.id,
        status=Status.IN_QUEUE,
        reason=Reason.ACCEPTED,
        model=job.model,
        prompt=job.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        seed=job.seeds[0],
        output_format=OutputFormat(job.parameters["output_format"]),
        input=job.input,
        n=job.n,
        progress=None,
        failures=0,
        max_attempts=job.max_attempts,
        priority=job.priority,
        metadata=job.metadata,
        error=None,
        media_ids=list(job.media_ids),
        media=[],
        attempts=[],
        submissions=[],
        paid_submissions=0,
        cost=None,
        created_at=at.created_at,
        available_at=at.available_at,
        deadline_at=at.deadline_at,
        started_at=None,
        finished_at=None,
        links=Links.of(job.id, urls),
    )
