"""Which kind of error an answer of Replicate is: of a create, and of a question."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest

from fleek.core.errors import ProviderErrorKind as Kind
from fleek.providers.http import Reply
from fleek.providers.replicate_errors import error_of_create, error_of_question, excerpt, says_unknown

INPUT = {"prompt": "a secret lighthouse", "seed": 7}
HTML = "<h1>Bad Gateway</h1>"


def reply(status: int, body: Any = None, **headers: str) -> Reply:
    content = body if isinstance(body, str) else json.dumps({"detail": "Said."} if body is None else body)
    return Reply(
        status, httpx2.Headers({k.replace("_", "-"): v for k, v in headers.items()}), content.encode()
    )


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        # Whether the order was taken is not said: nobody may order again.
        (200, HTML, Kind.AMBIGUOUS),
        (201, "", Kind.AMBIGUOUS),
        (201, {"id": 7}, Kind.AMBIGUOUS),
        (202, '{"id": "abc', Kind.AMBIGUOUS),
        (303, "", Kind.AMBIGUOUS),
        (500, None, Kind.AMBIGUOUS),
        (502, HTML, Kind.AMBIGUOUS),
        (504, HTML, Kind.AMBIGUOUS),
        (524, HTML, Kind.AMBIGUOUS),
        # It was not taken, and may be next time.
        (408, HTML, Kind.TRANSIENT),
        (503, HTML, Kind.TRANSIENT),
        (503, None, Kind.TRANSIENT),
        (301, "", Kind.PROVIDER_BUG),
        (308, "", Kind.PROVIDER_BUG),
        (404, HTML, Kind.PROVIDER_BUG),
        # It never will be.
        (400, None, Kind.PERMANENT_INPUT),
        (400, HTML, Kind.PERMANENT_INPUT),
        (404, None, Kind.PERMANENT_INPUT),
        (405, None, Kind.PERMANENT_INPUT),
        (409, None, Kind.PERMANENT_INPUT),
        (413, HTML, Kind.PERMANENT_INPUT),
        (422, None, Kind.PERMANENT_INPUT),
        (422, {"detail": "The prompt was flagged by our content policy"}, Kind.PERMANENT_POLICY),
        # It is not about this order.
        (401, None, Kind.PERMANENT_AUTH),
        (403, HTML, Kind.PERMANENT_AUTH),
        (402, None, Kind.QUOTA_EXHAUSTED),
        (429, HTML, Kind.THROTTLED),
    ],
)
async def test_an_answer_to_a_create_has_its_kind(status: int, body: Any, kind: Kind) -> None:
    assert (await error_of_create(reply(status, body), INPUT)).kind is kind


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, HTML, Kind.TRANSIENT),
        (302, "", Kind.TRANSIENT),
        (400, None, Kind.TRANSIENT),
        (404, HTML, Kind.TRANSIENT),
        (405, None, Kind.TRANSIENT),
        (422, None, Kind.TRANSIENT),
        (500, None, Kind.TRANSIENT),
        (503, HTML, Kind.TRANSIENT),
        (401, None, Kind.PERMANENT_AUTH),
        (402, None, Kind.QUOTA_EXHAUSTED),
        (403, None, Kind.PERMANENT_AUTH),
        (429, None, Kind.THROTTLED),
    ],
)
async def test_no_answer_to_a_question_ends_an_order(status: int, body: Any, kind: Kind) -> None:
    assert (await error_of_question(reply(status, body))).kind is kind


@pytest.mark.parametrize(
    ("status", "body", "unknown"),
    [(404, None, True), (404, HTML, False), (404, {}, False), (404, [1], False), (410, None, False)],
)
async def test_only_replicate_itself_can_say_that_it_does_not_know(
    status: int, body: Any, unknown: bool
) -> None:
    assert await says_unknown(reply(status, body)) is unknown


REAL_429 = {
    "detail": "Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per "
    "minute with a burst of 1 requests while you have less than $5.0 in credit. "
    "Your rate limit resets in ~5s.",
    "status": 429,
    "retry_after": 5,
}


@pytest.mark.parametrize(
    ("body", "header", "seconds"),
    [
        (REAL_429, None, 5),
        ({"detail": "Request was throttled. Your rate limit resets in ~30s."}, None, 30),
        ({"detail": "Request was throttled. Expected available in 1 second."}, None, 1),
        ({"detail": "Request was throttled.", "retry_after": 2.5}, None, 2.5),
        ({"detail": "Request was throttled.", "retry_after": "4"}, None, 4),
        ({"detail": "Request was throttled."}, None, None),
        ({"detail": "Request was throttled.", "retry_after": -1}, None, None),
        ({"detail": "Request was throttled.", "retry_after": True}, None, None),
        ({"detail": ["not", "a", "text"], "retry_after": {"in": 5}}, None, None),
        (HTML, None, None),
        (HTML, "12", 12),
        (HTML, "soon", None),
        (HTML, "86400", 900),
        (REAL_429, "12", 12),
        (REAL_429, "0", 5),
    ],
)
async def test_a_429_waits_as_long_as_anything_in_it_asks_for(
    body: Any, header: str | None, seconds: float | None
) -> None:
    headers = {} if header is None else {"retry_after": header}

    error = await error_of_create(reply(429, body, **headers), INPUT)

    assert error.retry_after == (None if seconds is None else timedelta(seconds=seconds))


async def test_a_429_may_name_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)

    error = await error_of_question(reply(429, HTML, retry_after=date))

    assert error.retry_after is not None
    assert timedelta(seconds=55) < error.retry_after <= timedelta(seconds=60)


async def test_a_refusal_says_what_replicate_said_and_not_what_the_client_sent() -> None:
    body = {"detail": "- input.prompt: 'a secret lighthouse' is too short\n- input: steps is required"}

    message = (await error_of_create(reply(422, body), INPUT)).message

    assert message == (
        "Replicate refuses the request (status 422): "
        "- input.prompt: '…' is too short - input: steps is required"
    )


def test_a_short_value_of_the_input_does_not_tear_the_text_apart() -> None:
    assert excerpt("png is not a format", {"prompt": "not", "format": "png"}) == "png is not a format"
