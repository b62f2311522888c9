"""The route of a job's log."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from fleek.api import responses as docs
from fleek.api.answers import answer
from fleek.api.deps import CallDep, JobId, known_id
from fleek.api.lists import WholeNumber
from fleek.api.strict_json import StrictRoute
from fleek.core.log_levels import LogLevel
from fleek.logs.repository import EntryFilter
from fleek.logs.schemas import LogPage

router = APIRouter(prefix="/v1/media/jobs", tags=["jobs"], route_class=StrictRoute)

DEFAULT_LIMIT, MAX_LIMIT = 100, 500

_Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT), WholeNumber]
_After = Annotated[int, Field(ge=0, le=2**53 - 1), WholeNumber]
_Number = Annotated[int, Field(ge=1, le=2**31 - 1), WholeNumber]


@router.get(
    "/{job_id}/logs", operation_id="list_job_logs", response_model=LogPage, responses=docs.list_job_logs()
)
async def list_job_logs(  # noqa: PLR0913  one argument a parameter
    request: Request,
    call: CallDep,
    job_id: JobId,
    level: Annotated[LogLevel, Query(description="This level and worse")] = LogLevel.DEBUG,
    attempt: Annotated[_Number | None, Query(description="Only records of this attempt")] = None,
    after: Annotated[_After, Query(description="The id of the last record that you have")] = 0,
    limit: Annotated[_Limit, Query(description="Items of a page")] = DEFAULT_LIMIT,
) -> Response:
    """What the processes recorded about a job, oldest first: each of its attempts, warnings and errors.

    Records are stored about a second after they were written. To follow a job, ask again with the last id as
    `after`: nothing is missed, and nothing is told twice. They are kept for `FLEEK_LOG_RETENTION`.
    """
    wanted = EntryFilter(after, level, attempt)
    page = await call.context.logs.list(call.owner, known_id(job_id, "job"), wanted, limit)
    return answer(page, headers=_next_link(request, call.urls.base, page.next_after))


def _next_link(request: Request, base: str, next_after: int | None) -> dict[str, str]:
    """The Link header (RFC 8288) of the next page; none at the end."""
    if next_after is None:
        return {}
    kept = [item for item in request.query_params.multi_items() if item[0] != "after"]
    path = f"{router.prefix}/{request.path_params['job_id']}/logs"
    return {"Link": f'<{base}{path}?{urlencode([*kept, ("after", next_after)])}>; rel="next"'}
