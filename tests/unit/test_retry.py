"""How long a job waits: bounds that hold for every count and every jitter."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from fleek.core.errors import ProviderErrorKind as Kind
from fleek.core.retry import (
    BASE_DELAY,
    MAX_DELAY,
    MAX_RETRY_AFTER,
    MIN_DEFERRAL,
    backoff,
    deferral,
    lane_pause,
)

counts = st.integers(0, 10**9)
jitters = st.floats(min_value=0, max_value=1, exclude_max=True)
pauses = st.timedeltas(min_value=-timedelta(days=1), max_value=timedelta(days=30))
floors = st.timedeltas(min_value=timedelta(0), max_value=MAX_RETRY_AFTER)


@given(counts, jitters)
def test_a_backoff_lies_between_half_of_the_first_and_the_longest(failures: int, jitter: float) -> None:
    assert BASE_DELAY / 2 <= backoff(failures, jitter) <= MAX_DELAY


@given(st.integers(1, 1000), jitters)
def test_a_backoff_never_shrinks_with_another_failure(failures: int, jitter: float) -> None:
    assert backoff(failures, jitter) <= backoff(failures + 1, jitter)


@pytest.mark.parametrize(("failures", "most"), [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (10_000, 300)])
def test_a_backoff_doubles_up_to_five_minutes(failures: int, most: int) -> None:
    assert backoff(failures, 0.0) == timedelta(seconds=most) / 2
    assert backoff(failures, 1.0) == timedelta(seconds=most)


@given(counts, floors, jitters)
def test_a_deferral_is_never_shorter_than_asked_nor_than_a_second(
    deferrals: int, at_least: timedelta, jitter: float
) -> None:
    assert deferral(deferrals, at_least, jitter) >= max(at_least, MIN_DEFERRAL)


@given(counts, floors, jitters)
def test_a_deferral_is_bounded(deferrals: int, at_least: timedelta, jitter: float) -> None:
    assert deferral(deferrals, at_least, jitter) <= max(MAX_DELAY, max(at_least, MIN_DEFERRAL) * 1.1)


@given(st.integers(1, 1000), floors, jitters)
def test_a_deferral_never_shrinks_with_another_one(
    deferrals: int, at_least: timedelta, jitter: float
) -> None:
    assert deferral(deferrals, at_least, jitter) <= deferral(deferrals + 1, at_least, jitter)


@given(st.sampled_from(Kind), st.none() | pauses)
def test_a_lane_is_paused_for_a_second_at_least_and_a_quarter_of_an_hour_at_most(
    kind: Kind, retry_after: timedelta | None
) -> None:
    assert MIN_DEFERRAL <= lane_pause(kind, retry_after) <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("asked", "paused"),
    [
        (None, timedelta(seconds=5)),
        (timedelta(0), timedelta(seconds=1)),
        (timedelta(seconds=-3), timedelta(seconds=1)),
        (timedelta(seconds=37), timedelta(seconds=37)),
        (timedelta(hours=3), timedelta(minutes=15)),
    ],
)
def test_a_throttled_lane_waits_as_long_as_the_provider_asked(
    asked: timedelta | None, paused: timedelta
) -> None:
    assert lane_pause(Kind.THROTTLED, asked) == paused


@pytest.mark.parametrize("kind", [Kind.PERMANENT_AUTH, Kind.QUOTA_EXHAUSTED])
def test_a_refused_key_and_an_empty_account_pause_for_a_quarter_of_an_hour(kind: Kind) -> None:
    assert lane_pause(kind, timedelta(seconds=1)) == timedelta(minutes=15)
