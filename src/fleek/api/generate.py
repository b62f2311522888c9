"""The two hot routes: accept a job, and say how it is."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Literal, NamedTuple
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response
from structlog.contextvars import bind_contextvars

from fleek.api import examples, responses as docs
from fleek.api.answers import answer, tag_of, tagged, to_json
from fleek.api.deps import Call, CallDep, JobId, known_id
from fleek.api.headers import MAX_WAIT, has_tag, idempotency_of, preferred_wait, replayed
from fleek.api.lists import WholeNumber
from fleek.api.strict_json import StrictRoute
from fleek.api.waits import Wait
from fleek.core.job import TERMINAL
from fleek.jobs.schemas import GenerateRequest, JobOut, JobStatusOut
from fleek.observability.records import hide_text

_Seconds = Annotated[int, Field(ge=1, le=MAX_WAIT), WholeNumber]

router = APIRouter(prefix="/v1/media", tags=["media"], route_class=StrictRoute)


@router.post(
    "/generate",
    operation_id="generate",
    status_code=202,
    response_model=JobOut,
    responses=docs.generate(),
    openapi_extra={"parameters": [docs.IDEMPOTENCY_KEY, docs.PREFER]} | docs.body(examples.GENERATE_REQUESTS),
)
async def generate(request: Request, call: CallDep, body: GenerateRequest) -> Response:
    """Accept a job. The answer leaves once the job is stored for good; it cannot be lost after that.

    The ids of its results are known at once. With `Prefer: wait=N` the answer waits for the job's end,
    and is 200 if that came in time. A client that disconnects changes nothing for the job.
    """
    hide_text(body.prompt)
    wait, idempotency = preferred_wait(request), idempotency_of(request)
    accepted = await call.context.jobs.accept(call.owner, body, call.urls, idempotency=idempotency)
    bind_contextvars(job_id=str(accepted.job.id))
    headers = {"Location": call.urls.job(accepted.job.id)} | replayed(accepted.replayed)
    if wait is None:
        return answer(accepted.job, HTTPStatus.ACCEPTED, headers)
    job = await _wait_for_end(call, Wait(request, call.context.waiters, accepted.job.id, wait))
    headers["Preference-Applied"] = f"wait={wait}"
    return answer(job, HTTPStatus.OK if job.status in TERMINAL else HTTPStatus.ACCEPTED, headers)


@router.get(
    "/status/{job_id}",
    operation_id="get_job_status",
    response_model=JobStatusOut | JobOut,
    responses=docs.get_job_status(),
    openapi_extra={"parameters": [docs.IF_NONE_MATCH]},
)
async def get_job_status(
    request: Request,
    call: CallDep,
    job_id: JobId,
    wait: Annotated[
        _Seconds | None,
        Query(description="Seconds to wait at most: with `If-None-Match` for another tag, else for the end"),
    ] = None,
    include: Annotated[Literal["media"] | None, Query(description="`media`: the whole job")] = None,
) -> Response:
    """Is it done? The light answer, or with `include=media` the whole job.

    The answer has an `ETag`; send it as `If-None-Match` and nothing new is a 304 without a body.
    """
    known = known_id(job_id, "job")

    async def read() -> _Reading:
        return await _read(call, known, whole=include is not None)

    if wait is None:
        reading = await read()
    else:
        waiting = Wait(request, call.context.waiters, known, wait)
        reading = await waiting.until(read, lambda found: found.is_awaited_by(request))
    return tagged(request, reading.content, reading.tag)


class _Reading(NamedTuple):
    """A job as it was read, ready to be sent."""

    content: bytes
    tag: str
    ended: bool

    def is_awaited_by(self, request: Request) -> bool:
        """The end is always worth an answer; before it, only what the client does not have yet."""
        return self.ended or ("if-none-match" in request.headers and not has_tag(request, self.tag))


async def _read(call: Call, job_id: UUID, *, whole: bool) -> _Reading:
    jobs = call.context.jobs
    found = await (jobs.get(call.owner, job_id, call.urls) if whole else jobs.status(call.owner, job_id))
    content = to_json(found)
    return _Reading(content, tag_of(content), found.status in TERMINAL)


async def _wait_for_end(call: Call, waiting: Wait) -> JobOut:
    """The whole job, at its end or when the time is over; meanwhile only the light status is read."""

    async def read() -> JobStatusOut:
        return await call.context.jobs.status(call.owner, waiting.job_id)

    await waiting.until(read, lambda found: found.status in TERMINAL)
    return await call.context.jobs.get(call.owner, waiting.job_id, call.urls)
