"""Serving stored bytes: byte ranges and conditions of RFC 9110, streamed and never held whole."""

from __future__ import annotations

import re
from http import HTTPStatus

from fastapi import Request
from starlette.responses import Response

from fleek.api.answers import ClosingStream
from fleek.api.headers import has_tag
from fleek.api.problems import HttpProblem
from fleek.media.service import Content

_SINGLE_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))", re.IGNORECASE)
_YEAR = 31_536_000
IMMUTABLE = f"private, max-age={_YEAR}, immutable"
"""Stored media never change: no key is written twice."""
_SANDBOX = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"


def serve(request: Request, stored: Content, cache_control: str = IMMUTABLE) -> Response:
    """200, 206 or 304, for GET and HEAD; raises HttpProblem 416 for a range behind the end."""
    headers = {
        "ETag": stored.etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": cache_control,
        "Content-Disposition": f'inline; filename="{stored.filename}"',
        "Content-Security-Policy": _SANDBOX,
    }
    if has_tag(request, stored.etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    found = _range_of(request, stored)
    start, end = found or (0, stored.size)
    status = HTTPStatus.PARTIAL_CONTENT if found else HTTPStatus.OK
    if found:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=stored.content_type)
    return ClosingStream(stored.chunks(start, end), status, headers, stored.content_type)


def _range_of(request: Request, stored: Content) -> tuple[int, int] | None:
    """The one range that was asked for; None for the whole, also where several are (RFC 9110 14.2)."""
    match = _SINGLE_RANGE.fullmatch(request.headers.get("range", "").strip())
    condition = request.headers.get("if-range")
    if match is None or request.method != "GET" or condition not in (None, stored.etag):
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, stored.size - int(suffix)), stored.size
    else:
        start, end = int(first), min(int(last) + 1, stored.size) if last else stored.size
        if last and int(last) < start:
            return None
    if start >= stored.size:
        raise unsatisfiable(stored.size)
    return start, end


def unsatisfiable(size: int) -> HttpProblem:
    """The problem of a range that begins behind the last byte."""
    detail = "The range begins behind the end of the media"
    headers = {"Content-Range": f"bytes */{size}"}
    return HttpProblem(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "range_not_satisfiable", detail, headers=headers
    )
