"""What the OpenAPI document says about answers: statuses, headers and examples of every route."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

from fleek.api import examples
from fleek.api.headers import MAX_WAIT, invalid_last_event_id, invalid_preference
from fleek.api.problems import MEDIA_TYPE, HttpProblem, document, status_of
from fleek.api.ranges import unsatisfiable
from fleek.api.strict_json import not_json, too_large, too_slow
from fleek.core import errors
from fleek.core.errors import FleekError, InvalidRequest, Violation
from fleek.core.events import EventKind
from fleek.jobs.schemas import JOB_EXAMPLES, JobOut
from fleek.media.schemas import MEDIA_EXAMPLE

Responses = dict[int | str, dict[str, Any]]

PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}
_REQUEST_ID = "3f0f3c1e5a6b4c2d8e9f0a1b2c3d4e5f"

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key and body again give the same job, for as long as the job is kept",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "example": "order-1234",
}
PREFER = {
    "name": "Prefer",
    "in": "header",
    "description": f"`wait=N`: answer when the job has ended, or after N seconds (1 to {MAX_WAIT})",
    "schema": {"type": "string"},
    "example": "wait=30",
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The `ETag` of the answer that you have",
    "schema": {"type": "string"},
    "example": '"5f3a9c0d1e2b4a6c8d0e1f2a"',
}
LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "description": "The id of the last event that you have",
    "schema": {"type": "string", "pattern": "^[0-9]{1,10}$"},
    "example": "2",
}
RANGE = {
    "name": "Range",
    "in": "header",
    "description": "One range of bytes; several are answered with the whole",
    "schema": {"type": "string"},
    "example": "bytes=0-1023",
}
EXPIRES = {
    "name": "expires",
    "in": "query",
    "required": True,
    "description": "Unix time in seconds",
    "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
    "example": "1795262400",
}
SIGNATURE = {
    "name": "signature",
    "in": "query",
    "required": True,
    "description": "Made for this object and this time",
    "schema": {"type": "string", "minLength": 1},
    "example": "6bWJ",
}

_LOCATION = {"Location": {"description": "URL of the job", "schema": {"type": "string", "format": "uri"}}}
_SIGNED = {"Location": {"description": "The signed URL", "schema": {"type": "string", "format": "uri"}}}
_REPLAYED = {
    "Idempotency-Replayed": {
        "description": "`true` where the key was used before",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
_APPLIED = {
    "Preference-Applied": {"description": "The preference that was followed", "schema": {"type": "string"}}
}
_ETAG = {"ETag": {"description": "Tag of this answer", "schema": {"type": "string"}}}
_NEXT = {"Link": {"description": '`rel="next"`, unless this is the end', "schema": {"type": "string"}}}
_CACHE = {"Cache-Control": {"description": "How long it may be kept", "schema": {"type": "string"}}}
_EVENT: dict[str, Any] = {
    "type": "object",
    "description": 'One event of the stream; `progress` has no id, and `{"progress": 0.4}` as its data',
    "properties": {
        "event": {"type": "string", "enum": [*EventKind, "progress"]},
        "id": {"type": "string", "pattern": "^[0-9]+$"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobEvent"},
        },
        "retry": {"type": "integer"},
    },
}
_DELETED: dict[str, Any] = {"description": "Deleted"}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}


def body(shown: dict[str, Any]) -> dict[str, Any]:
    """Examples of a request's body, by name."""
    named = {name: {"value": value} for name, value in shown.items()}
    return {"requestBody": {"content": {"application/json": {"examples": named}}}}


def found(description: str, shown: dict[str, Any], headers: dict[str, Any] | None = None) -> dict[str, Any]:
    """An answer with JSON, and examples of it by name."""
    named = {name: {"value": value} for name, value in shown.items()}
    response: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"examples": named}},
    }
    return response | {"headers": headers} if headers else response


def problems(*raised: FleekError | HttpProblem) -> Responses:
    """The problem documents that a route may answer with, by status; every one is an example."""
    responses: Responses = {}
    for error in raised:
        example = _example(error)
        response = responses.setdefault(
            example["status"],
            {
                "description": HTTPStatus(example["status"]).phrase,
                "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "examples": {}}},
            },
        )
        response["content"][MEDIA_TYPE]["examples"][example["code"]] = {"value": example}
        if getattr(error, "retry_after", None) is not None:
            response["headers"] = _RETRY_AFTER
    return responses


def _example(error: FleekError | HttpProblem) -> dict[str, Any]:
    if isinstance(error, HttpProblem):
        return document(error.status, error.code, error.detail, _REQUEST_ID)
    violations = error.violations if isinstance(error, InvalidRequest) else ()
    return document(status_of(error), error.code, error.message, _REQUEST_ID, violations)


_AWAY = errors.DatabaseUnavailable()
_UNREADY = (_AWAY, errors.DatabaseReadOnly(), errors.SchemaOutdated())
_NO_JOB = errors.NotFound("job")
_NO_MEDIA = errors.NotFound("media")
_BAD_BODY = (
    errors.MalformedRequest("The body is not JSON"),
    errors.InvalidIdempotencyKey(),
    too_slow(),
    too_large(),
    not_json(),
    errors.InvalidRequest(
        "The request does not fit; `errors` says where",
        (Violation("/prompt", "Field required"), Violation("/n", "Input should be less than or equal to 8")),
    ),
    errors.IdempotencyMismatch(),
    errors.IdempotencyInFlight(),
)
_BAD_QUERY = errors.InvalidRequest(
    "The query is not valid; `errors` says where", (Violation("limit", "must be a whole number"),)
)


def documented(answers: dict[int, dict[str, Any]], *raised: FleekError | HttpProblem) -> Responses:
    """All that a route answers with."""
    responses = problems(*raised)
    responses.update(answers.items())
    return responses


_BINARY: dict[str, Any] = {
    media_type: {"schema": {"type": "string", "format": "binary"}}
    for media_type in ("image/*", "video/*", "audio/*")
}


def generate() -> Responses:
    """`POST /v1/media/generate`."""
    headers = _LOCATION | _REPLAYED | _APPLIED
    ended = {name: JOB_EXAMPLES[name] for name in ("completed", "failed")}
    answers = {
        200: found("The job ended while the request waited", ended, headers) | {"model": JobOut},
        202: found("The job is stored", {"accepted": JOB_EXAMPLES["accepted"]}, headers),
    }
    return documented(answers, *_BAD_BODY, invalid_preference(), errors.NotFound("model"), _AWAY)


def get_job_status() -> Responses:
    """`GET /v1/media/status/{job_id}`."""
    answers = {
        200: found("How the job is", examples.STATUSES, _ETAG | _CACHE),
        304: {"description": "Nothing new", "headers": _ETAG | _CACHE},
    }
    return documented(answers, _NO_JOB, _BAD_QUERY, _AWAY)


def list_jobs() -> Responses:
    """`GET /v1/media/jobs`."""
    page = found("A page", examples.JOB_PAGES, _NEXT)
    return documented({200: page}, errors.InvalidCursor(), _BAD_QUERY, _AWAY)


def get_job() -> Responses:
    """`GET /v1/media/jobs/{job_id}`."""
    return documented({200: found("The job", JOB_EXAMPLES)}, _NO_JOB, _BAD_QUERY, _AWAY)


def delete_job() -> Responses:
    """`DELETE /v1/media/jobs/{job_id}`."""
    return documented({204: _DELETED}, _NO_JOB, errors.JobNotFinished(), _BAD_QUERY, _AWAY)


def cancel_job() -> Responses:
    """`POST /v1/media/jobs/{job_id}/cancel`."""
    shown = {"waiting": examples.CANCELED_JOB, "running": JOB_EXAMPLES["running"]}
    ended = found("The job had ended already", {"completed": JOB_EXAMPLES["completed"]})
    answers = {200: ended | {"model": JobOut}, 202: found("The cancel is stored", shown)}
    return documented(answers, _NO_JOB, _BAD_QUERY, _AWAY)


def retry_job() -> Responses:
    """`POST /v1/media/jobs/{job_id}/retry`."""
    retried = found("The job waits again", {"retried": examples.RETRIED_JOB}, _LOCATION | _REPLAYED)
    raised = (*_BAD_BODY, _NO_JOB, errors.JobNotRetryable(), errors.WouldPayAgain(), _AWAY)
    return documented({202: retried}, *raised)


def stream_job_events() -> Responses:
    """`GET /v1/media/jobs/{job_id}/events`."""
    content = {"text/event-stream": {"schema": _EVENT, "example": examples.EVENT_STREAM}}
    answers: dict[int, dict[str, Any]] = {
        200: {"description": "The stream", "content": content},
        204: {"description": "The job has ended, and you have all of its events"},
    }
    return documented(answers, invalid_last_event_id(), _NO_JOB, _BAD_QUERY, _AWAY)


def list_job_logs() -> Responses:
    """`GET /v1/media/jobs/{job_id}/logs`."""
    page = found("A page", examples.LOG_PAGES, _NEXT)
    return documented({200: page}, _NO_JOB, _BAD_QUERY, _AWAY)


def list_media() -> Responses:
    """`GET /v1/media`."""
    page = found("A page", examples.MEDIA_PAGES, _NEXT)
    raised = (errors.InvalidCursor(), _BAD_QUERY, _AWAY, errors.StorageUnavailable())
    return documented({200: page}, *raised)


def get_media() -> Responses:
    """`GET /v1/media/{media_id}`."""
    shown = {"stored": MEDIA_EXAMPLE, "waiting": examples.WAITING_MEDIA}
    return documented({200: found("The result", shown)}, _NO_MEDIA, errors.Gone(), _BAD_QUERY, _AWAY)


def delete_media() -> Responses:
    """`DELETE /v1/media/{media_id}`."""
    raised = (_NO_MEDIA, errors.JobNotFinished(), errors.Gone(), _BAD_QUERY, _AWAY)
    return documented({204: _DELETED}, *raised)


def get_media_content(signed_url: type[BaseModel]) -> Responses:
    """`GET /v1/media/content/{media_id}`."""
    as_json = found("With `redirect=false` or `proxy=true`", {"redirect_false": examples.SIGNED_URL}, _CACHE)
    as_json["content"] |= _BINARY
    answers = {
        200: as_json | {"model": signed_url},
        206: {"description": "A range, with `proxy=true`", "content": _BINARY},
        304: {"description": "You have it already, with `proxy=true`"},
        307: {"description": "Where the bytes are, for a while", "headers": _SIGNED | _CACHE},
    }
    no_variants = errors.InvalidRequest("Only PNG, JPEG and WebP pictures have variants")
    not_ready = errors.NotReady(timedelta(seconds=2))
    away = (_AWAY, errors.StorageUnavailable())
    gone = (_NO_MEDIA, errors.Gone(), unsatisfiable(482113))
    return documented(answers, not_ready, no_variants, *gone, *away)


def get_object() -> Responses:
    """`GET /v1/objects/{key}`."""
    answers: dict[int, dict[str, Any]] = {
        200: {"description": "The bytes", "content": _BINARY, "headers": _ETAG | _CACHE},
        206: {"description": "A range of the bytes", "content": _BINARY},
        304: {"description": "You have it already"},
    }
    raised = (errors.Forbidden(), errors.Gone(), unsatisfiable(482113), _BAD_QUERY)
    return documented(answers, *raised, errors.StorageUnavailable())


def list_models() -> Responses:
    """`GET /v1/models`."""
    items = {"items": list(examples.MODELS.values())}
    return documented({200: found("The models", {"two": items})}, _BAD_QUERY, _AWAY)


def get_model() -> Responses:
    """`GET /v1/models/{name}`."""
    return documented({200: found("The model", examples.MODELS)}, errors.NotFound("model"), _BAD_QUERY, _AWAY)


def pause_model() -> Responses:
    """`POST /v1/models/{name}/pause`."""
    paused = found("The model, paused", {"paused": examples.MODELS["available"] | examples.PAUSED})
    return documented({200: paused}, *_BAD_BODY, errors.NotFound("model"), _AWAY)


def resume_model() -> Responses:
    """`POST /v1/models/{name}/resume`."""
    resumed = found("The model", {"resumed": examples.MODELS["available"]})
    return documented({200: resumed}, *_BAD_BODY, errors.NotFound("model"), _AWAY)


def get_liveness() -> Responses:
    """`GET /livez`."""
    return documented({200: found("It lives", {"alive": examples.LIVE})}, _BAD_QUERY)


def get_readiness() -> Responses:
    """`GET /readyz` and `GET /health`."""
    return documented({200: found("It can serve", examples.READY)}, _BAD_QUERY, *_UNREADY)


def get_tools_status() -> Responses:
    """`GET /tools/status`."""
    return documented({200: found("It can serve", examples.TOOLS)}, _BAD_QUERY, *_UNREADY)


def get_celery_status() -> Responses:
    """`GET /tools/celery_status`."""
    return documented({200: found("Who answered", examples.CELERY)}, _BAD_QUERY, no_broker())


def get_info() -> Responses:
    """`GET /v1/info`."""
    return documented({200: found("What runs here", {"two_models": examples.INFO})}, _BAD_QUERY)


def no_broker() -> errors.Unavailable:
    """The error of a broker that is away, where nothing else can be told."""
    return errors.Unavailable("The broker does not answer; try again shortly")
