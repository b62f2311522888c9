"""What a worker answers when it is asked how it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest

from fleek.db.revisions import Revisions
from fleek.db.schema import Schema, SchemaState
from fleek.db.session import Database
from fleek.tasks.vitals import Vitals

SECOND = timedelta(seconds=1)


@dataclass
class Looking:
    """A dispatcher, as far as its vitals go."""

    is_answered: bool = True
    is_stopping: bool = False
    silence: float = 0.5


@dataclass
class Renewing:
    """A lease keeper, likewise."""

    is_answered: bool = True


def vitals(
    dispatcher: Looking | None = None,
    keeper: Renewing | None = None,
    state: SchemaState = SchemaState.CURRENT,
    interval: timedelta = SECOND,
) -> Vitals:
    schema = Schema(Database("postgresql+asyncpg://nobody@127.0.0.1:1/none"), Revisions(frozenset(), None))
    schema.state = state
    return Vitals(schema, dispatcher or Looking(), keeper or Renewing(), interval)


def test_one_that_looks_and_is_answered_is_live_and_ready() -> None:
    well = vitals()

    assert (well.why_not_live(), well.why_not_ready()) == (None, None)


@pytest.mark.parametrize(
    ("silence", "interval", "is_live"),
    [
        (100, SECOND, True),
        (122, SECOND, False),
        (3600, timedelta(hours=1), True),
        (3600, timedelta(minutes=1), False),
    ],
)
def test_it_lives_as_long_as_it_looks_at_the_queue(
    silence: float, interval: timedelta, *, is_live: bool
) -> None:
    reason = vitals(Looking(silence=silence), interval=interval).why_not_live()

    assert (reason is None) is is_live
    assert reason is None or f"{silence} s ago" in reason


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (vitals(Looking(is_stopping=True)), "stops"),
        (vitals(Looking(is_answered=False)), "database does not answer"),
        (vitals(keeper=Renewing(is_answered=False)), "database does not answer"),
        (vitals(state=SchemaState.UNKNOWN), "database does not answer"),
        (vitals(state=SchemaState.OLDER), "fleek db upgrade"),
        (vitals(state=SchemaState.EMPTY), "fleek db upgrade"),
    ],
)
def test_one_that_claims_nothing_lives_and_is_not_ready(asked: Vitals, reason: str) -> None:
    assert asked.why_not_live() is None
    assert reason in (asked.why_not_ready() or "")


def test_the_schema_of_a_later_release_is_as_good_as_its_own() -> None:
    assert vitals(state=SchemaState.NEWER).why_not_ready() is None
