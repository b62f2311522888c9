"""Reports to Sentry over a real socket: what arrives, and that a Sentry in trouble does no harm."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.sentry_receiver import SentryReceiver, open_receiver

from fleek.core.errors import ConfigurationError
from fleek.observability.redaction import Redactor
from fleek.observability.sentry import Sentry, SentryOptions, send_test_error, start_sentry

PROMPT = "a lighthouse that nobody may know of"
SECRET = secrets.token_hex(16)
REDACTOR = Redactor([SECRET])
CLOSE = 8
"""Seconds that an end may take on a busy machine; it waits 2 of them for reports."""


@pytest.fixture
def receiver() -> Iterator[SentryReceiver]:
    with open_receiver() as receiver:
        yield receiver


def options(dsn: str, **changes: Any) -> SentryOptions:
    given: dict[str, Any] = {"process": "api", "release": "fleek@1.2.3", "environment": "staging"}
    return SentryOptions(dsn=dsn, **given | changes)


@contextmanager
def reporting(dsn: str, **changes: Any) -> Iterator[Sentry]:
    """Reports of this process."""
    sentry = start_sentry(options(dsn, **changes), REDACTOR)
    try:
        yield sentry
    finally:
        sentry.close()


def crash(number: int = 0, **facts: Any) -> None:
    """Log an error as a handler does, with a prompt in every place where one could be."""
    prompt = f"{PROMPT} {number}"
    try:
        int(prompt)
    except ValueError as error:
        error.add_note(prompt)
        record = {"event": f"crashed_{number}", "exc_info": error, "prompt": prompt, "key": SECRET, **facts}
        logging.getLogger("fleek.test").log(logging.ERROR, record)


def test_an_error_arrives_with_its_tags_and_without_prompts_and_secrets(receiver: SentryReceiver) -> None:
    headers = {"Authorization": f"Bearer {SECRET}", "Cookie": SECRET, "Idempotency-Key": PROMPT}
    url = "https://bucket.example.com/x?X-Amz-Signature=0123456789abcdef"
    with reporting(receiver.dsn):
        logging.getLogger("fleek.test").warning({"event": "before", "prompt": PROMPT, "request_id": "r1"})
        crash(
            request_id="r1",
            job_id="j1",
            attempt=3,
            model="demo",
            provider=f"demo-{SECRET}",
            headers=headers,
            url=url,
            input={"steps": PROMPT},
        )

    [event] = receiver.items()
    assert (event["release"], event["environment"], event["level"]) == ("fleek@1.2.3", "staging", "error")
    assert event["tags"] == {
        "process": "api",
        "event": "crashed_0",
        "request_id": "r1",
        "job_id": "j1",
        "attempt": "3",
        "model": "demo",
        "provider": "demo-[redacted]",
    }
    assert event["server_name"]
    [error] = event["exception"]["values"]
    assert error["type"] == "ValueError"
    assert error["stacktrace"]["frames"][-1]["function"] == "crash"
    assert "vars" not in error["stacktrace"]["frames"][-1]
    assert [crumb["message"] for crumb in event["breadcrumbs"]["values"]] == ["before"]
    for hidden in (PROMPT.encode(), SECRET.encode(), b'0123456789abcdef"', b"Idempotency", b"X-Amz"):
        assert hidden not in receiver.raw


def test_nothing_but_what_is_reported_is_ever_sent(receiver: SentryReceiver) -> None:
    with reporting(receiver.dsn, traces_sample_rate=0.0) as sentry:
        logging.getLogger("fleek.test").error({"event": "no_exception"})
        sentry.trace("http.server", "GET /v1/x", 0.1, is_ok=True)

    assert receiver.bodies == []


def test_a_share_of_durations_is_sent_where_it_is_wanted(receiver: SentryReceiver) -> None:
    with reporting(receiver.dsn, traces_sample_rate=1.0) as sentry:
        sentry.trace("http.server", "GET /v1/x", 0.25, is_ok=False, request_id="r1", prompt=PROMPT)

    [found] = receiver.items("transaction")
    assert (found["transaction"], found["tags"]) == ("GET /v1/x", {"process": "api", "request_id": "r1"})
    assert found["contexts"]["trace"]["status"] == "internal_error"
    assert PROMPT.encode() not in receiver.raw


def test_after_the_end_nothing_is_reported(receiver: SentryReceiver) -> None:
    with reporting(receiver.dsn):
        pass
    crash()

    assert receiver.bodies == []


@pytest.mark.parametrize("status", [400, 403, 413, 429, 500, 503])
def test_a_sentry_that_refuses_harms_nobody(receiver: SentryReceiver, status: int) -> None:
    receiver.status = status
    begin = time.monotonic()
    with reporting(receiver.dsn):
        crash()
        crash(1)

    assert receiver.bodies
    assert time.monotonic() - begin < CLOSE


def test_a_sentry_that_is_away_harms_nobody() -> None:
    with open_receiver() as receiver:
        dsn = receiver.dsn
    begin = time.monotonic()
    with reporting(dsn):
        for number in range(200):
            crash(number)

    assert time.monotonic() - begin < CLOSE


def test_a_sentry_that_is_slow_delays_neither_the_process_nor_its_end(receiver: SentryReceiver) -> None:
    receiver.delay = 15
    begin = time.monotonic()
    with reporting(receiver.dsn):
        for number in range(200):
            crash(number)
        logged = time.monotonic() - begin

    assert logged < CLOSE
    assert time.monotonic() - begin < 2 * CLOSE
    assert len(receiver.bodies) == 1


@pytest.mark.parametrize("dsn", ["https://sentry.example.com/1", "nonsense", "https://key@host/project"])
def test_a_dsn_that_is_none_stops_the_start(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^SENTRY_DSN: "):
        start_sentry(options(dsn), REDACTOR)


def test_a_dsn_is_not_shown() -> None:
    assert SECRET not in repr(options(f"https://{SECRET}@sentry.example.com/1"))


def test_a_test_error_says_that_it_was_accepted(receiver: SentryReceiver) -> None:
    sent = send_test_error(options(receiver.dsn), REDACTOR)

    [event] = receiver.items()
    assert sent.accepted
    assert sent.event_id == event["event_id"]
    assert sent.event_id in sent.detail
    assert event["tags"] == {"process": "api", "event": "test_error"}


@pytest.mark.parametrize("status", [403, 429, 500])
def test_a_test_error_says_what_came_back_instead(receiver: SentryReceiver, status: int) -> None:
    receiver.status = status
    sent = send_test_error(options(receiver.dsn), REDACTOR)

    assert not sent.accepted
    assert str(status) in sent.detail


def test_a_test_error_says_that_nobody_answers() -> None:
    with open_receiver() as receiver:
        dsn = receiver.dsn
    sent = send_test_error(options(dsn), REDACTOR)

    assert not sent.accepted
    assert "does not answer" in sent.detail
