"""A history leads to one status."""

from __future__ import annotations

import itertools

from hypothesis import given, strategies as st

from fleek.core.events import STATUS_AFTER, TERMINAL_EVENTS, EventKind, fold
from fleek.core.job import TERMINAL, TRANSITIONS, Status

NEXT = {
    status: [
        kind
        for kind, after in STATUS_AFTER.items()
        if after in TRANSITIONS[status] or status == after == Status.PROCESSING
    ]
    for status in Status
}


@st.composite
def histories(draw: st.DrawFn) -> list[EventKind]:
    """Any walk through the table of legal transitions."""
    kinds = [EventKind.ACCEPTED]
    for _ in range(draw(st.integers(0, 30))):
        following = NEXT[STATUS_AFTER[kinds[-1]]]
        if not following:
            break
        kinds.append(draw(st.sampled_from(following)))
    return kinds


def test_nothing_happened_to_a_job_that_does_not_exist() -> None:
    assert fold([]) is None


@given(histories())
def test_the_status_is_that_of_the_last_event(kinds: list[EventKind]) -> None:
    assert fold(kinds) is STATUS_AFTER[kinds[-1]]
    assert fold(iter(kinds)) is fold(kinds)


@given(histories())
def test_a_legal_history_completes_at_most_once_and_then_ends(kinds: list[EventKind]) -> None:
    assert kinds.count(EventKind.COMPLETED) <= 1
    assert EventKind.COMPLETED not in kinds[:-1]


@given(histories())
def test_a_job_leaves_a_terminal_status_only_when_its_client_retries(kinds: list[EventKind]) -> None:
    for before, after in itertools.pairwise(kinds):
        if before in TERMINAL_EVENTS:
            assert STATUS_AFTER[after] is Status.IN_QUEUE


def test_every_kind_leads_to_a_status_and_terminal_kinds_to_terminal_ones() -> None:
    assert set(STATUS_AFTER) == set(EventKind)
    assert {kind for kind, status in STATUS_AFTER.items() if status in TERMINAL} == TERMINAL_EVENTS
