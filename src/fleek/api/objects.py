"""Bytes of an object store that has no URLs of its own: a disk, or memory. The signature is the key."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from fleek.api import examples, responses as docs
from fleek.api.deps import CallDep
from fleek.api.paths import OBJECT_KEY
from fleek.api.ranges import serve
from fleek.api.strict_json import StrictRoute
from fleek.core.errors import Gone, StorageUnavailable
from fleek.core.media import by_extension
from fleek.media.outputs import download_name
from fleek.media.service import Content
from fleek.storage.base import ObjectNotFoundError, ObjectStorage, StorageError

router = APIRouter(prefix="/v1/objects", tags=["media"], route_class=StrictRoute)


_ETAG_BYTES = 16


_PARAMETERS = {"parameters": [docs.EXPIRES, docs.SIGNATURE, docs.RANGE]}


@router.head(f"/{OBJECT_KEY}", include_in_schema=False, openapi_extra=_PARAMETERS)
@router.get(
    f"/{OBJECT_KEY}",
    operation_id="get_object",
    response_class=Response,
    responses=docs.get_object(),
    openapi_extra=_PARAMETERS,
)
async def get_object(
    request: Request,
    call: CallDep,
    key: Annotated[str, Path(description="Of the object", examples=[examples.OBJECT_KEY])],
) -> Response:
    """The bytes behind a signed URL; `GET /v1/media/content/{media_id}` gives one."""
    query = request.query_params
    now = datetime.now(UTC)
    call.context.signer.verify(key, query.get("expires", ""), query.get("signature", ""), now)
    return serve(request, await open_object(call.context.storage, key))


async def open_object(storage: ObjectStorage, key: str) -> Content:
    """What is known of an object before its first byte; raises Gone or StorageUnavailable."""
    try:
        info = await storage.head(key)
    except ObjectNotFoundError as error:
        raise Gone from error
    except StorageError as error:
        raise StorageUnavailable from error
    return Content(
        content_type=_content_type(key),
        size=info.size,
        etag=_tag(key),
        filename=download_name(key),
        chunks=lambda start, end: storage.get(key, start=start, end=end),
    )


def _content_type(key: str) -> str:
    """By the extension, which was chosen by the bytes: these stores keep no attributes."""
    extension = key.rpartition(".")[2]
    media_type = by_extension({"jpeg": "jpg"}.get(extension, extension))
    return media_type.content_type if media_type else "application/octet-stream"


def _tag(key: str) -> str:
    """A key is written once, so it stands for its bytes."""
    return f'"{hashlib.blake2b(key.encode(), digest_size=_ETAG_BYTES).hexdigest()}"'
