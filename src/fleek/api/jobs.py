"""Routes of jobs: look at them, list them, cancel, retry and delete them, and follow their events."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from fleek.api import examples, responses as docs
from fleek.api.answers import answer
from fleek.api.deps import CallDep, JobId, known_id
from fleek.api.events import EventStream, has_ended, stream
from fleek.api.headers import idempotency_of, invalid_last_event_id, last_event_id, replayed
from fleek.api.lists import METADATA_PARAMETER, ListQueryDep
from fleek.api.strict_json import StrictRoute
from fleek.jobs.repository import JobFilter
from fleek.jobs.schemas import JobOut, JobPage, RetryRequest

router = APIRouter(prefix="/v1/media/jobs", tags=["jobs"], route_class=StrictRoute)

_JOB = "job"


@router.get(
    "",
    operation_id="list_jobs",
    response_model=JobPage,
    responses=docs.list_jobs(),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
async def list_jobs(call: CallDep, query: ListQueryDep) -> Response:
    """A page of your jobs, newest first.

    Follow `next_cursor`, or the `Link` header, with the same filters; all filters must hold.
    """
    page = await call.context.jobs.list(
        call.owner, JobFilter(**query.filters), call.urls, cursor=query.cursor, limit=query.limit
    )
    return answer(page, headers=query.next_link(f"{call.urls.base}{router.prefix}", page.next_cursor))


@router.get("/{job_id}", operation_id="get_job", response_model=JobOut, responses=docs.get_job())
async def get_job(call: CallDep, job_id: JobId) -> Response:
    """The whole job: what was asked, every attempt and order, the results that are stored, the error."""
    return answer(await call.context.jobs.get(call.owner, known_id(job_id, _JOB), call.urls))


@router.delete("/{job_id}", operation_id="delete_job", status_code=204, responses=docs.delete_job())
async def delete_job(call: CallDep, job_id: JobId) -> Response:
    """Delete a finished job with its prompt, its results and their bytes."""
    await call.context.jobs.delete(call.owner, known_id(job_id, _JOB))
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    status_code=202,
    response_model=JobOut,
    responses=docs.cancel_job(),
)
async def cancel_job(call: CallDep, job_id: JobId) -> Response:
    """Ask for a cancel. It may be asked for again, and a finished job is answered as it is.

    A waiting job is canceled at once. One that runs is canceled by its worker; where it completes
    first, the completion stands.
    """
    canceled = await call.context.jobs.cancel(call.owner, known_id(job_id, _JOB), call.urls)
    return answer(canceled.job, HTTPStatus.ACCEPTED if canceled.changed else HTTPStatus.OK)


@router.post(
    "/{job_id}/retry",
    operation_id="retry_job",
    status_code=202,
    response_model=JobOut,
    responses=docs.retry_job(),
    openapi_extra={"parameters": [docs.IDEMPOTENCY_KEY]} | docs.body(examples.RETRY_REQUESTS),
)
async def retry_job(
    request: Request, call: CallDep, job_id: JobId, body: RetryRequest | None = None
) -> Response:
    """Run a job again that ended in error or was canceled; with a new budget and a new deadline."""
    accepted = await call.context.jobs.retry(
        call.owner,
        known_id(job_id, _JOB),
        body or RetryRequest(),
        call.urls,
        idempotency=idempotency_of(request),
    )
    headers = {"Location": call.urls.job(accepted.job.id)} | replayed(accepted.replayed)
    return answer(accepted.job, HTTPStatus.ACCEPTED, headers)


@router.get(
    "/{job_id}/events",
    operation_id="stream_job_events",
    status_code=200,
    response_class=EventStream,
    responses=docs.stream_job_events(),
    openapi_extra={"parameters": [docs.LAST_EVENT_ID]},
)
async def stream_job_events(request: Request, call: CallDep, job_id: JobId) -> Response:
    """The job's history as server-sent events: first what happened, then what happens, to its end.

    `progress` events have no id and are not repeated. After a lost connection send the last id as
    `Last-Event-ID`, as browsers do by themselves; when nothing can follow any more the answer is 204.
    """
    known, after = known_id(job_id, _JOB), last_event_id(request)
    rows = await call.context.jobs.events(call.owner, known, 0)
    if after > rows[-1].sequence:
        raise invalid_last_event_id()
    if after == rows[-1].sequence and has_ended(rows):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return EventStream(stream(call, known, after))
