"""Which kind of error an answer of Replicate is.

Of a create the question is whether it may have been accepted; of everything else, whether the order
behind it is still there. Only what Replicate itself says ends an order: a page of a proxy in between
must not make Fleek order again, and pay again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

from fleek.core.errors import ProviderError, ProviderErrorKind as Kind
from fleek.core.retry import parse_retry_after
from fleek.providers.http import Reply
from fleek.providers.replicate_config import TOKEN_VARIABLE

GONE = Kind.RESULT_EXPIRED
"""An order was accepted and is not known any more: it may be paid for, and is never repeated silently."""

_NEVER_BEGUN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.SERVICE_UNAVAILABLE})
"""Answers to a create that say that it was not taken: read too slowly, or too busy to begin."""

_REDIRECTS = 300
"""From this status on an answer is no success."""

_READ_OF_TEXT = 20_000
_LONGEST_EXCERPT = 300
_SHORTEST_PROMPT, _SHORTEST_VALUE = 4, 12
"""Characters from which on a prompt, or another value of the input, is recognisable in a message."""
_KEY = re.compile(r"bearer\s+\S+|\br8_\w+", re.IGNORECASE)
_WAIT = re.compile(r"(?:resets in|available in) ~?(\d+) ?s", re.IGNORECASE)
_REFUSED_CONTENT = re.compile(r"nsfw|flagged|content[ _-]?policy|moderation", re.IGNORECASE)


async def error_of_create(reply: Reply, given: Mapping[str, Any]) -> ProviderError:
    """What an answer to a create means that is no prediction; `given` is the input that was sent."""
    problem = await _problem(reply)
    if (error := await _refusal(reply, problem)) is not None:
        return error
    status, told = reply.status, excerpt(str(problem.get("detail", "")), given)
    if status in _NEVER_BEGUN:
        return ProviderError(Kind.TRANSIENT, f"Replicate is not available (status {status})")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status < _REDIRECTS or status == HTTPStatus.SEE_OTHER:
        message = f"Replicate's answer does not say whether it took the order (status {status})"
        return ProviderError(Kind.AMBIGUOUS, message)
    if status < HTTPStatus.BAD_REQUEST or (status == HTTPStatus.NOT_FOUND and not problem):
        message = f"No API of Replicate answers at base_url (status {status})"
        return ProviderError(Kind.PROVIDER_BUG, message)
    if status == HTTPStatus.NOT_FOUND:
        message = "Replicate has no such model; one that is not official needs a version: owner/name:version"
        return ProviderError(Kind.PERMANENT_INPUT, message)
    kind = Kind.PERMANENT_POLICY if _REFUSED_CONTENT.search(told) else Kind.PERMANENT_INPUT
    message = f"Replicate refuses the request (status {status})"
    return ProviderError(kind, f"{message}: {told}" if told else message)


async def error_of_question(reply: Reply) -> ProviderError:
    """What an answer to anything else means; no kind that it gives ends an order."""
    problem = await _problem(reply)
    if (error := await _refusal(reply, problem)) is not None:
        return error
    return ProviderError(Kind.TRANSIENT, f"Replicate does not answer sensibly (status {reply.status})")


async def says_unknown(reply: Reply) -> bool:
    """Whether it is Replicate itself that does not know the thing asked for."""
    return reply.status == HTTPStatus.NOT_FOUND and bool(await _problem(reply))


def excerpt(text: str, given: Mapping[str, Any]) -> str:
    """A short piece of foreign text in one line, without what the client sent and without keys."""
    text = _KEY.sub("…", text[:_READ_OF_TEXT])
    for value in sorted(_texts(given), key=len, reverse=True):
        text = text.replace(value, "…")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST_EXCERPT else line[: _LONGEST_EXCERPT - 1] + "…"


async def _refusal(reply: Reply, problem: Mapping[str, Any]) -> ProviderError | None:
    """What means the same wherever it is answered: our key, our account, our pace."""
    match reply.status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            message = f"Replicate refuses the token (status {reply.status}): check {TOKEN_VARIABLE}"
            return ProviderError(Kind.PERMANENT_AUTH, message)
        case HTTPStatus.PAYMENT_REQUIRED:
            return ProviderError(Kind.QUOTA_EXHAUSTED, "Replicate's account has no credit left")
        case HTTPStatus.TOO_MANY_REQUESTS:
            wait = _wait(reply, problem)
            return ProviderError(Kind.THROTTLED, "Replicate asks for a pause", retry_after=wait)
    return None


def _wait(reply: Reply, problem: Mapping[str, Any]) -> timedelta | None:
    """The longest pause that the header, the body's `retry_after` or its text asks for."""
    said = _WAIT.search(str(problem.get("detail", "")))
    asked = (reply.headers.get("retry-after"), problem.get("retry_after"), said and said[1])
    now = datetime.now(UTC)
    waits = [parse_retry_after(str(value), now) for value in asked if value is not None]
    return max((wait for wait in waits if wait is not None), default=None)


async def _problem(reply: Reply) -> Mapping[str, Any]:
    """Replicate's description of an error: an object with `detail`. Empty where somebody else answered."""
    found = await reply.json()
    return found if isinstance(found, dict) and "detail" in found else {}


def _texts(given: Mapping[str, Any]) -> Iterator[str]:
    """The texts of an input that could be recognised in a message."""
    prompt = given.get("prompt")
    if isinstance(prompt, str) and len(prompt) >= _SHORTEST_PROMPT:
        yield prompt
    waiting: list[object] = [given]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str) and len(item) >= _SHORTEST_VALUE:
            yield item
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
