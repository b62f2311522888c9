"""What routes are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path, Request
from structlog.contextvars import bind_contextvars

from fleek.bootstrap.api import ApiContext
from fleek.core.errors import NotFound
from fleek.core.ids import parse_id
from fleek.core.owner import LOCAL_OWNER
from fleek.core.urls import Urls


@dataclass(frozen=True, slots=True)
class Call:
    """One request: what serves it, whose it is, and how its links begin."""

    context: ApiContext
    owner: str
    urls: Urls


async def get_context(request: Request) -> ApiContext:
    """The parts of this process. Asynchronous, because a plain function would cost a thread."""
    context: ApiContext = request.app.state.context
    return context


async def get_call(request: Request) -> Call:
    """The call that a request makes. Raises SchemaOutdated where it is known that no call can work."""
    context: ApiContext = request.app.state.context
    context.schema.require()
    bind_contextvars(owner=LOCAL_OWNER)
    return Call(context, LOCAL_OWNER, _urls(request, context.settings.public_url))


CallDep = Annotated[Call, Depends(get_call)]
ContextDep = Annotated[ApiContext, Depends(get_context)]
"""For routes that tell how this process is."""

JobId = Annotated[
    str,
    Path(
        description="A job's id",
        examples=["01920000-0000-7000-8000-000000000001"],
        json_schema_extra={"format": "uuid"},
    ),
]
MediaId = Annotated[
    str,
    Path(
        description="A result's id",
        examples=["01920000-0000-7000-8000-0000000000a1"],
        json_schema_extra={"format": "uuid"},
    ),
]


def known_id(text: str, what: str) -> UUID:
    """An id as sent, which records of this request name from here on.

    One that cannot be ours is answered like one that is not there: NotFound.
    """
    found = parse_id(text)
    if found is None:
        raise NotFound(what)
    bind_contextvars(**{f"{what}_id": str(found)})
    return found


def _urls(request: Request, public_url: str | None) -> Urls:
    """Links begin as configured, or as this request did; the front door has checked its Host."""
    if public_url is not None:
        return Urls(public_url.rstrip("/"))
    scope = request.scope
    return Urls(f"{scope['scheme']}://{request.headers['host']}{scope.get('root_path', '').rstrip('/')}")
