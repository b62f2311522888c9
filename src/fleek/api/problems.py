"""RFC 9457 problem documents: the one place that maps errors to HTTP.

A problem's `type` and `code` are stable and `detail` is for people. None of them repeats what the
client sent, and none tells what happened inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fleek.core import errors
from fleek.core.errors import FleekError, InvalidRequest, Violation

_log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:fleek:problem:"

STATUS_OF: dict[type[FleekError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.MalformedRequest: HTTPStatus.BAD_REQUEST,
    errors.InvalidCursor: HTTPStatus.BAD_REQUEST,
    errors.InvalidIdempotencyKey: HTTPStatus.BAD_REQUEST,
    errors.IdempotencyMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.NotReady: HTTPStatus.CONFLICT,
    errors.IdempotencyInFlight: HTTPStatus.CONFLICT,
    errors.JobNotFinished: HTTPStatus.CONFLICT,
    errors.JobNotRetryable: HTTPStatus.CONFLICT,
    errors.WouldPayAgain: HTTPStatus.CONFLICT,
    errors.Gone: HTTPStatus.GONE,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DatabaseUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DatabaseReadOnly: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.SchemaOutdated: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StorageUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    # What follows never reaches a client on purpose: workers and the start handle these.
    errors.FleekError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ConfigurationError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.LeaseLost: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.OutputError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.OutputInvalid: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.OutputTooLarge: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ProviderError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Every class of `core.errors` has a row; a class that is defined elsewhere has its parent's."""

INTERNAL_ERROR = "internal_error"
_UNEXPECTED = "Something went wrong inside; the log has it under this request id"
_MAX_POINTER_PART = 100

_PROBLEM_EXAMPLE: dict[str, Any] = {
    "type": "urn:fleek:problem:not_found",
    "title": "Not found",
    "status": 404,
    "detail": "No such job",
    "code": "not_found",
    "request_id": "3f0f3c1e5a6b4c2d8e9f0a1b2c3d4e5f",
}


class ProblemError(BaseModel):
    """One broken rule."""

    pointer: str = Field(description="RFC 6901 pointer into the body, or the parameter's name")
    message: str


class Problem(BaseModel):
    """What went wrong, as RFC 9457 has it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PROBLEM_EXAMPLE]})

    type: str = Field(description="A URN that is stable for this kind of problem")
    title: str
    status: int
    detail: str = Field(description="For people; it may change")
    code: str = Field(description="The last part of `type`")
    request_id: str = Field(description="Also in the header `X-Request-ID` and in every log line")
    errors: list[ProblemError] = Field(default=[], description="The rules that the payload breaks")


class HttpProblem(Exception):
    """A problem that only HTTP has, such as a media type or a header; services never raise it."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})


def document(
    status: int, code: str, detail: str, request_id: str, violations: Iterable[Violation] = ()
) -> dict[str, Any]:
    """The problem as a JSON object."""
    found = {
        "type": TYPE_PREFIX + code,
        "title": code.replace("_", " ").capitalize(),
        "status": int(status),
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }
    listed = [{"pointer": violation.pointer, "message": violation.message} for violation in violations]
    return found | {"errors": listed} if listed else found


def status_of(error: FleekError) -> HTTPStatus:
    """The status of an error, by its class or the nearest parent that has a row."""
    return next(STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF)


def respond(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """A problem document as an answer."""
    return Response(to_json(body), body["status"], headers, MEDIA_TYPE)


def unexpected(request_id: str) -> Response:
    """The answer to a bug of ours: it tells nothing but where to look."""
    return respond(document(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL_ERROR, _UNEXPECTED, request_id))


async def answer_fleek_error(request: Request, error: FleekError) -> Response:
    """Turns what services raise into an answer."""
    status = status_of(error)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request_failed", code=error.code, exc_info=error)
        return unexpected(request_id_of(request))
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        # While a part is away every request ends here: its cause's name says enough.
        _log.warning("request_refused", code=error.code, cause=type(error.__cause__).__name__)
    violations = error.violations if isinstance(error, InvalidRequest) else ()
    body = document(status, error.code, error.message, request_id_of(request), violations)
    return respond(body, _retry_after(error))


async def answer_http_problem(request: Request, error: HttpProblem) -> Response:
    """Turns a problem of HTTP's own into an answer."""
    return respond(document(error.status, error.code, error.detail, request_id_of(request)), error.headers)


_ROUTING_CODES = {
    HTTPStatus.NOT_FOUND: ("not_found", "No such route"),
    HTTPStatus.METHOD_NOT_ALLOWED: ("method_not_allowed", "This route does not know that method"),
}


async def answer_http_exception(request: Request, error: HTTPException) -> Response:
    """Turns what the framework raises, such as for an unknown route, into an answer."""
    status = HTTPStatus(error.status_code)
    code, detail = _ROUTING_CODES.get(status, (status.phrase.lower().replace(" ", "_"), status.phrase))
    response = respond(document(status, code, detail, request_id_of(request)), error.headers)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


async def answer_validation_error(request: Request, error: RequestValidationError) -> Response:
    """Turns what pydantic found into an answer that says where and why, and never what was sent."""
    violations = tuple(_to_violation(found) for found in error.errors())
    detail = "The request does not fit; `errors` says where"
    status, request_id = HTTPStatus.UNPROCESSABLE_ENTITY, request_id_of(request)
    return respond(document(status, InvalidRequest.code, detail, request_id, violations))


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    FleekError: answer_fleek_error,
    HttpProblem: answer_http_problem,
    HTTPException: answer_http_exception,
    RequestValidationError: answer_validation_error,
}


def request_id_of(request: Request) -> str:
    """The id that the front door gave to this request."""
    return str(request.scope["state"]["request_id"])


def _retry_after(error: FleekError) -> dict[str, str]:
    seconds = getattr(error, "retry_after", None)
    return {"Retry-After": str(math.ceil(seconds.total_seconds()))} if seconds is not None else {}


def _allowed_methods(request: Request) -> list[str]:
    """Every method of every route with this path; the framework names those of the first one."""
    found: set[str] = set()
    for route in request.app.routes:
        regex, methods = getattr(route, "path_regex", None), getattr(route, "methods", None)
        if regex is not None and methods and regex.match(request.scope["path"]):
            found |= methods
    return sorted(found)


def _to_violation(error: Mapping[str, Any]) -> Violation:
    location: Sequence[Any] = error["loc"]
    if location[0] == "body":
        return Violation("".join(f"/{_escape(part)}" for part in location[1:]), message_of(error))
    return Violation(str(location[-1]), message_of(error))


def _escape(part: object) -> str:
    """One part of a pointer. A key that the client chose is cut, and kept printable."""
    text = str(part).replace("~", "~0").replace("/", "~1")
    shown = text if len(text) <= _MAX_POINTER_PART else text[:_MAX_POINTER_PART] + "…"
    return "".join(character if character.isprintable() else "�" for character in shown)


_SAFE_FACTS = frozenset(
    {
        "gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "actual_length", "field_type",
        "pattern", "expected", "class_name",
    }
)  # fmt: skip
"""What an error's context may hold and still be shown: facts about the rule. `actual_length` is a number."""


def message_of(error: Mapping[str, Any]) -> str:
    """Pydantic's message where it is about the rule alone, or the one that our validators raised."""
    context = error.get("ctx") or {}
    if error["type"] == "value_error" and isinstance(context.get("error"), ValueError):
        return str(context["error"])
    if context.keys() <= _SAFE_FACTS:
        return str(error["msg"])
    return "Input is not valid"
