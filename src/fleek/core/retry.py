"""How long to wait before the next attempt. Retries live at one layer, the job, and nowhere else."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from fleek.core.errors import ProviderErrorKind

BASE_DELAY = timedelta(seconds=1)
MAX_DELAY = timedelta(minutes=5)
MIN_DEFERRAL = timedelta(seconds=1)
MAX_RETRY_AFTER = timedelta(minutes=15)
"""A provider that asks for longer is asked again after this long."""

_PAUSE_UNTIL_FIXED = timedelta(minutes=15)
_PAUSE_WHEN_THROTTLED = timedelta(seconds=5)
_JITTER_OF_RETRY_AFTER = 0.1
_SECONDS = re.compile(r"\d+(\.\d+)?", re.ASCII)


def _exponential(count: int) -> timedelta:
    """1 s, 2 s, 4 s, ... up to the cap; `count` is 1 for the first."""
    doublings = min(max(count, 1) - 1, 20)
    return min(BASE_DELAY * (1 << doublings), MAX_DELAY)


def backoff(failures: int, jitter: float) -> timedelta:
    """The pause after the `failures`-th counted failure: between half of the exponential and all of it.

    "Equal jitter" rather than "full": it spreads a crowd as well, and never collapses to about zero.
    """
    full = _exponential(failures)
    return full / 2 + full / 2 * jitter


def deferral(deferrals: int, at_least: timedelta, jitter: float) -> timedelta:
    """The pause of the `deferrals`-th deferral: it grows, and is never shorter than `at_least`.

    What a provider asked for is a floor, so the jitter is added on top of it.
    """
    floor = max(at_least, MIN_DEFERRAL)
    spread = max(floor * _JITTER_OF_RETRY_AFTER, backoff(deferrals, jitter) - floor)
    return floor + spread * jitter


def lane_pause(kind: ProviderErrorKind, retry_after: timedelta | None) -> timedelta:
    """How long no job of this model is claimed after a 429, a refused key or an empty account."""
    if kind is ProviderErrorKind.THROTTLED:
        asked = retry_after if retry_after is not None else _PAUSE_WHEN_THROTTLED
        return min(max(asked, MIN_DEFERRAL), MAX_RETRY_AFTER)
    return _PAUSE_UNTIL_FIXED


def parse_retry_after(value: str, now: datetime) -> timedelta | None:
    """The wait that a `Retry-After` asks for, from 0 to 15 minutes; None for what cannot be understood.

    It is a number of seconds or an HTTP date (RFC 9110, section 10.2.3); `now` is aware.
    """
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return timedelta(seconds=min(float(text), MAX_RETRY_AFTER.total_seconds()))
    try:
        date = parsedate_to_datetime(text)
        wait = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(wait, timedelta(0)), MAX_RETRY_AFTER)
