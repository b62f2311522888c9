"""Request headers that carry meaning: Idempotency-Key, Prefer, Last-Event-ID and the conditional ones."""

from __future__ import annotations

import re
from http import HTTPStatus

from fastapi import Request

from fleek.api.problems import HttpProblem
from fleek.core.canonical import fingerprint
from fleek.core.errors import InvalidIdempotencyKey
from fleek.jobs.changes import Idempotency

MAX_WAIT = 55
"""Seconds: proxies commonly cut a silent request after 60."""

_KEY = re.compile(r"[!-~]{1,255}")
_SECONDS = re.compile(r'"?([0-9]{1,3})"?')
_SEQUENCE = re.compile(r"[0-9]{1,10}")
_ENTITY_TAG = re.compile(r'(?:W/)?("[!#-~\x80-\xff]*")')


def idempotency_of(request: Request) -> Idempotency | None:
    """The request's key with the fingerprint of its body as sent; None where it has no key.

    Raises InvalidIdempotencyKey. Call it after the body was read.
    """
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) != 1 or _KEY.fullmatch(keys[0]) is None:
        raise InvalidIdempotencyKey
    return Idempotency(keys[0], fingerprint(request.state.json))


def replayed(is_replay: bool) -> dict[str, str]:
    """The header that says that a key was used before."""
    return {"Idempotency-Replayed": "true"} if is_replay else {}


def preferred_wait(request: Request) -> int | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), the first where several are given; None without one.

    Preferences that are not known are ignored, as the RFC asks. Raises HttpProblem 400 for a wait that
    is no number from 1 to MAX_WAIT.
    """
    for line in request.headers.getlist("prefer"):
        for preference in line.split(","):
            name, _, value = preference.partition(";")[0].partition("=")
            if name.strip().lower() == "wait":
                return _to_wait(value.strip())
    return None


def _to_wait(value: str) -> int:
    match = _SECONDS.fullmatch(value)
    if match is None or not 1 <= int(match[1]) <= MAX_WAIT:
        raise invalid_preference()
    return int(match[1])


def invalid_preference() -> HttpProblem:
    """The problem of a wait that is none."""
    detail = f"Prefer: wait takes whole seconds from 1 to {MAX_WAIT}"
    return HttpProblem(HTTPStatus.BAD_REQUEST, "invalid_preference", detail)


def last_event_id(request: Request) -> int:
    """The sequence after which a stream continues; 0 without the header. Raises HttpProblem 400."""
    value = request.headers.get("last-event-id")
    if value is None:
        return 0
    if _SEQUENCE.fullmatch(value) is None:
        raise invalid_last_event_id()
    return int(value)


def invalid_last_event_id() -> HttpProblem:
    """The problem of an id that no event of the stream has."""
    detail = "Last-Event-ID must be the id of an event of this stream"
    return HttpProblem(HTTPStatus.BAD_REQUEST, "invalid_last_event_id", detail)


def has_tag(request: Request, tag: str) -> bool:
    """Whether If-None-Match names this entity tag (weak comparison, RFC 9110 13.1.2), or any."""
    given = ", ".join(request.headers.getlist("if-none-match"))
    return given.strip() == "*" or tag in _ENTITY_TAG.findall(given)
