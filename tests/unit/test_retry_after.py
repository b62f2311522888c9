"""Reading Retry-After: seconds and dates, whatever a server makes of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from fleek.core.retry import MAX_RETRY_AFTER, parse_retry_after

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 30 ", 30),
        ("1.5", 1.5),
        ("900", 900),
        ("901", 900),
        ("9" * 5000, 900),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30),
        ("Friday, 20-Nov-26 12:00:30 GMT", 30),
        ("Fri Nov 20 12:00:30 2026", 30),
        ("Fri, 20 Nov 2026 13:00:30 +0100", 30),
        ("Fri, 20 Nov 2026 11:59:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 900),
    ],
)
def test_seconds_and_dates_are_understood_and_clamped(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value",
    ["", "soon", "-5", "+5", "1e3", "inf", "nan", "٣", "1_000", "5s", "Fri, 99 Nov 2026 12:00:30 GMT"],
)
def test_what_is_neither_says_nothing(value: str) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ Nov \d+ \d+:\d+:\d+ [+-]\d+"))
def test_no_value_breaks_it_and_none_waits_too_long(value: str) -> None:
    wait = parse_retry_after(value, NOW)

    assert wait is None or timedelta(0) <= wait <= MAX_RETRY_AFTER
