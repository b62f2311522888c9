"""Which log records are reported to Sentry, how often, and what of them leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from fleek.core.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    LeaseLost,
    ProviderError,
    ProviderErrorKind,
)
from fleek.observability.reports import WITHHELD, Limiter, Report, Reporter, without_quotes

PROMPT = "a lighthouse that nobody may know of"


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sent(clock: Clock) -> Iterator[list[Report]]:
    """What a reporter on the logger `fleek.test` has sent."""
    reports: list[Report] = []
    reporter = Reporter(reports.append, Limiter(clock))
    logger = logging.getLogger("fleek.test")
    logger.addHandler(reporter)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield reports
    logger.removeHandler(reporter)
    logger.propagate = True


def log(level: int, event: str, error: BaseException | bool | None = None, **facts: Any) -> None:
    """A record as structlog hands it to the standard library."""
    bound = {"exc_info": error} if error is not None else {}
    logging.getLogger("fleek.test").log(level, {"event": event, **facts, **bound})


@pytest.mark.parametrize(
    ("level", "event", "facts", "error"),
    [
        (logging.ERROR, "request_crashed", {}, RuntimeError(PROMPT)),
        (logging.ERROR, "attempt_crashed", {"job_id": "1"}, KeyError(PROMPT)),
        (logging.CRITICAL, "worker_loop_failed", {}, LeaseLost()),
        (logging.INFO, "attempt_ended", {"reason": "ambiguous_submission"}, None),
    ],
)
def test_what_nobody_expected_is_reported(
    sent: list[Report], level: int, event: str, facts: dict[str, str], error: Exception | None
) -> None:
    log(level, event, error, **facts)

    [report] = sent
    assert (report.name, report.facts.get("job_id")) == (event, facts.get("job_id"))
    assert report.level == ("warning" if error is None else "error")
    assert (report.error is not None) == (error is not None)


@pytest.mark.parametrize(
    ("level", "event", "facts", "error"),
    [
        (logging.ERROR, "api_refused", {}, ConfigurationError("FLEEK_SLOTS: ...")),
        (logging.ERROR, "claim_crashed", {}, DatabaseUnavailable()),
        (logging.ERROR, "stopped", {}, KeyboardInterrupt()),
        (logging.ERROR, "library_message", {}, None),
        (logging.WARNING, "claim_failed", {}, ValueError()),
        (logging.INFO, "attempt_ended", {"reason": "failed"}, None),
    ],
)
def test_what_is_expected_is_not(
    sent: list[Report], level: int, event: str, facts: dict[str, str], error: BaseException | None
) -> None:
    log(level, event, error, **facts)

    assert sent == []


def test_the_current_exception_is_found(sent: list[Report]) -> None:
    try:
        int(PROMPT)
    except ValueError:
        log(logging.ERROR, "crashed", True)  # noqa: FBT003  as structlog passes it
        logging.getLogger("fleek.test").exception("as libraries log")

    assert [report.error and report.error[0] for report in sent] == [ValueError, ValueError]
    assert [report.name for report in sent] == ["crashed", "fleek.test record"]


def test_an_outage_is_one_report_a_minute_that_counts_the_others(sent: list[Report], clock: Clock) -> None:
    for _ in range(61):
        log(logging.ERROR, "claim_crashed", OSError())
        clock.now += 1
    log(logging.ERROR, "claim_crashed", ValueError())

    assert [(report.error and report.error[0], report.suppressed) for report in sent] == [
        (OSError, 0),
        (OSError, 59),
        (ValueError, 0),
    ]


def test_many_kinds_of_errors_are_bounded_too(clock: Clock) -> None:
    limiter = Limiter(clock)
    admitted = [limiter.admit(f"kind {number}") for number in range(1000)]
    clock.now += 61

    assert admitted.count(0) == 30
    assert limiter.admit("kind 999") == 1


def test_a_report_has_the_last_records_of_its_own_job_and_request(sent: list[Report]) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        log(logging.INFO, "of_the_request", prompt=PROMPT)
    log(logging.INFO, "of_another_job", job_id="2")
    log(logging.INFO, "of_none")
    for number in range(200):
        log(logging.INFO, "of_the_job", job_id="1", attempt=number)
    log(logging.ERROR, "attempt_crashed", ValueError(), job_id="1")

    [report] = sent
    assert {crumb["message"] for crumb in report.crumbs} == {"of_the_job"}
    assert len(report.crumbs) == 20
    assert report.crumbs[-1]["data"] == {"job_id": "1", "attempt": "199"}


def test_a_report_of_a_request_has_the_requests_own_records(sent: list[Report]) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r2"):
        log(logging.INFO, "of_another")
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        log(logging.INFO, "of_the_request", prompt=PROMPT)
        log(logging.INFO, "of_no_job")
        log(logging.ERROR, "request_crashed", ValueError())

    [report] = sent
    assert [crumb["message"] for crumb in report.crumbs] == ["of_the_request", "of_no_job"]
    assert PROMPT not in str(report.crumbs)


def test_a_report_that_cannot_be_sent_does_not_break_what_it_tells_about(clock: Clock) -> None:
    def fail(_: Report) -> None:
        raise RuntimeError

    reporter = Reporter(fail, Limiter(clock))
    record = logging.LogRecord(
        "fleek", logging.ERROR, "", 0, {"event": "x", "exc_info": ValueError()}, (), None
    )

    assert reporter.handle(record)


def _from(error: BaseException) -> dict[str, Any]:
    module = type(error).__module__
    return {
        "type": type(error).__name__,
        "module": None if module == "builtins" else module,
        "value": str(error),
    }


@pytest.mark.parametrize(
    "error",
    [
        ValueError(PROMPT),
        KeyError(PROMPT),
        RuntimeError(PROMPT),
        OSError(2, PROMPT),
        UnicodeDecodeError("utf-8", b"x", 0, 1, PROMPT),
        structlog.DropEvent(PROMPT),
        ProviderError(ProviderErrorKind.TIMEOUT, PROMPT),
    ],
)
def test_words_that_may_quote_a_prompt_are_withheld(error: Exception) -> None:
    event = without_quotes({"exception": {"values": [_from(error)]}})

    assert [value["value"] for value in event["exception"]["values"]] == [WITHHELD]


@pytest.mark.parametrize("error", [AttributeError("'NoneType' object has no attribute 'x'"), LeaseLost()])
def test_words_about_code_are_kept(error: Exception) -> None:
    event = without_quotes({"exception": {"values": [_from(error)]}})

    assert [value["value"] for value in event["exception"]["values"]] == [str(error)]


@pytest.mark.parametrize("name", ["sentry_sdk.errors", "urllib3.connectionpool"])
def test_the_reporting_does_not_report_itself(name: str, sent: list[Report], clock: Clock) -> None:
    send: Callable[[Report], None] = sent.append
    record = logging.LogRecord(name, logging.ERROR, "", 0, "x", (), (ValueError, ValueError(), None))
    Reporter(send, Limiter(clock)).handle(record)

    assert sent == []
