"""Routes of generating and of results: generate, the light status, media and their bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from fleek.api import examples, responses as docs
from fleek.api.answers import answer
from fleek.api.deps import CallDep, MediaId, known_id
from fleek.api.lists import METADATA_PARAMETER, ListQueryDep
from fleek.api.paths import MEDIA_ID
from fleek.api.ranges import serve
from fleek.api.strict_json import StrictRoute
from fleek.core.media import VARIANT_PATTERN, parse_variant
from fleek.media.repository import MediaFilter
from fleek.media.schemas import MediaOut, MediaPage

_MEDIA = "media"
_MARGIN = 30
"""Seconds that a redirect's URL stays valid after the last cache has dropped the redirect."""


router = APIRouter(prefix="/v1/media", tags=["media"], route_class=StrictRoute)


def _only_true_or_false(text: object) -> object:
    """Pydantic would take `on`, `y` and `1` as well."""
    if text in ("true", "false") or isinstance(text, bool):
        return text
    message = "must be true or false"
    raise ValueError(message)


_Flag = Annotated[bool, BeforeValidator(_only_true_or_false)]


class SignedUrlOut(BaseModel):
    """Where the bytes are, for a while."""

    model_config = ConfigDict(title="SignedUrl", json_schema_extra={"examples": [examples.SIGNED_URL]})

    url: str = Field(description="Answers with the bytes to whoever holds it")
    expires_at: datetime


@router.get(
    "",
    operation_id="list_media",
    response_model=MediaPage,
    responses=docs.list_media(),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
async def list_media(
    call: CallDep,
    query: ListQueryDep,
    include: Annotated[
        Literal["signed_url"] | None, Query(description="`signed_url`: sign the URL of every stored result")
    ] = None,
) -> Response:
    """A page of your results, newest first, those that are still to come included.

    `status`, `model`, `q` and `metadata` are those of the results' jobs.
    """
    page = await call.context.media.list(
        call.owner,
        MediaFilter(**query.filters),
        call.urls,
        cursor=query.cursor,
        limit=query.limit,
        sign=include is not None,
    )
    return answer(page, headers=query.next_link(f"{call.urls.base}{router.prefix}", page.next_cursor))


@router.get(
    "/content/{media_id}",
    operation_id="get_media_content",
    status_code=307,
    response_class=Response,
    responses=docs.get_media_content(SignedUrlOut),
)
async def get_media_content(  # noqa: PLR0913  one argument a parameter
    request: Request,
    call: CallDep,
    media_id: MediaId,
    *,
    variant: Annotated[
        Annotated[str, StringConstraints(pattern=VARIANT_PATTERN)] | None,
        Query(description="A smaller copy, made when it is first asked for", examples=["w512.webp"]),
    ] = None,
    redirect: Annotated[_Flag, Query(description="`false`: the URL as JSON, not as a redirect")] = True,
    proxy: Annotated[
        _Flag, Query(description="`true`: the bytes, through this API; `redirect` is not looked at")
    ] = False,
) -> Response:
    """The bytes of a result: a redirect to a short-lived URL, that URL, or the bytes themselves."""
    known = known_id(media_id, _MEDIA)
    wanted = parse_variant(variant) if variant else None
    if proxy:
        return serve(request, await call.context.media.open(call.owner, known, wanted))
    signed = await call.context.media.content_url(call.owner, known, wanted)
    url = call.urls.absolute(signed.url)
    headers = {"Cache-Control": f"private, max-age={_cacheable_seconds(signed.expires_at)}"}
    if redirect:
        return Response(status_code=HTTPStatus.TEMPORARY_REDIRECT, headers={"Location": url} | headers)
    return answer(SignedUrlOut(url=url, expires_at=signed.expires_at), headers=headers)


@router.get(f"/{MEDIA_ID}", operation_id="get_media", response_model=MediaOut, responses=docs.get_media())
async def get_media(call: CallDep, media_id: MediaId) -> Response:
    """One result. What is about its bytes is null until they are stored."""
    return answer(await call.context.media.get(call.owner, known_id(media_id, _MEDIA), call.urls))


@router.delete(f"/{MEDIA_ID}", operation_id="delete_media", status_code=204, responses=docs.delete_media())
async def delete_media(call: CallDep, media_id: MediaId) -> Response:
    """Delete one result and its bytes; asking for it is 410 from then on."""
    await call.context.media.delete(call.owner, known_id(media_id, _MEDIA))
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _cacheable_seconds(expires_at: datetime) -> int:
    """So long that whoever takes the redirect from a cache has still time to follow it."""
    return max(0, int((expires_at - datetime.now(UTC)).total_seconds()) - _MARGIN)
