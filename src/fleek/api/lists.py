"""The query of the two lists: their filters, the page, and the link to the next one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query, Request
from pydantic import BeforeValidator, Field, StringConstraints

from fleek.core.errors import InvalidRequest, Violation
from fleek.core.job import ErrorCode, Status
from fleek.jobs.schemas import MAX_METADATA_KEYS

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
METADATA_PREFIX = "metadata."

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)")
_DIGITS = re.compile(r"-?[0-9]{1,18}")


def _parse_moment(text: str) -> datetime:
    """RFC 3339 with its time zone; pydantic would also take a number, a date, or no zone at all."""
    try:
        if _RFC3339.fullmatch(text):
            return datetime.fromisoformat(text.upper())
    except ValueError:
        pass  # Such as a 30th of February; the library's own message would repeat the input.
    message = "must be a time of RFC 3339 with its zone, such as 2026-11-20T12:00:00Z"
    raise ValueError(message)


def _only_digits(text: object) -> object:
    """A whole number as digits; pydantic would also take `1_0` and ` 10.0`."""
    if isinstance(text, str) and _DIGITS.fullmatch(text) is None:
        message = "must be a whole number"
        raise ValueError(message)
    return text


WholeNumber = BeforeValidator(_only_digits)

_Moment = Annotated[datetime, BeforeValidator(_parse_moment)]
_Words = Annotated[str, StringConstraints(min_length=1, max_length=500)]
_Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT), WholeNumber]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]

METADATA_PARAMETER: dict[str, Any] = {
    "name": "metadata.KEY",
    "in": "query",
    "description": "Jobs whose metadata has this value under `KEY`; may be given for several keys",
    "schema": {"type": "string"},
    "example": "1234",
}


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What a request for a page asked for, checked."""

    filters: Mapping[str, Any]
    """The keyword arguments of a `ListFilter`."""
    cursor: str | None
    limit: int
    _request: Request

    def next_link(self, url: str, next_cursor: str | None) -> dict[str, str]:
        """The Link header (RFC 8288) of the next page of the list at `url`; none at the end."""
        if next_cursor is None:
            return {}
        kept = [item for item in self._request.query_params.multi_items() if item[0] != "cursor"]
        query = urlencode([*kept, ("cursor", next_cursor)])
        return {"Link": f'<{url}?{query}>; rel="next"'}


async def get_list_query(  # noqa: PLR0913  one argument a parameter
    request: Request,
    *,
    status: Annotated[Status | None, Query(description="Of the job")] = None,
    code: Annotated[
        ErrorCode | None,
        Query(description="Of the job's error; without `status`: of jobs that ended in error"),
    ] = None,
    model: Annotated[_Name | None, Query(description="Of the job")] = None,
    q: Annotated[
        _Words | None, Query(description='Words of the prompt, as in a web search: `dawn -fog "red boat"`')
    ] = None,
    created_after: Annotated[_Moment | None, Query(description="RFC 3339, exclusive")] = None,
    created_before: Annotated[_Moment | None, Query(description="RFC 3339, exclusive")] = None,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
    limit: Annotated[_Limit, Query(description="Items of a page")] = DEFAULT_LIMIT,
) -> ListQuery:
    """The query of a list. Raises InvalidRequest for metadata that no job can have."""
    filters = {
        "status": status,
        "code": code,
        "model": model,
        "q": q,
        "created_after": created_after,
        "created_before": created_before,
        "metadata": _metadata(request),
    }
    return ListQuery(filters, cursor, limit, request)


ListQueryDep = Annotated[ListQuery, Depends(get_list_query)]


def _metadata(request: Request) -> dict[str, str]:
    items = request.query_params.multi_items()
    found = {
        name.removeprefix(METADATA_PREFIX): value for name, value in items if name.startswith(METADATA_PREFIX)
    }
    if len(found) > MAX_METADATA_KEYS:
        violation = Violation("metadata", f"must be given for at most {MAX_METADATA_KEYS} keys")
        raise InvalidRequest("The query is not valid; `errors` says where", (violation,))
    return found
