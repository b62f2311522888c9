"""Cursors: what was signed is read back, and nothing else is."""

from __future__ import annotations

import base64
import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from fleek.core.cursor import CursorCodec, Position
from fleek.core.errors import InvalidCursor
from fleek.core.ids import uuid7

CODEC = CursorCodec(b"a secret of the tests")
SCOPE = "local:jobs:all"
POSITION = Position(datetime(2026, 11, 20, 12, 30, 15, 123_456, tzinfo=UTC), uuid7(1_764_000_000_000, 42))
CURSOR = CODEC.encode(POSITION, SCOPE)
ALPHABET = string.ascii_letters + string.digits + "-_"

positions = st.builds(
    Position,
    st.datetimes(timezones=st.just(UTC)),
    st.builds(uuid7, st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1)),
)


@given(positions, st.text())
def test_a_cursor_is_read_back_to_the_microsecond(position: Position, scope: str) -> None:
    cursor = CODEC.encode(position, scope)

    assert CODEC.decode(cursor, scope) == position
    assert set(cursor) <= set(ALPHABET)


def test_times_before_1970_and_of_other_zones_are_kept() -> None:
    at = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - timedelta(days=400)
    position = Position(at, POSITION.id)

    assert CODEC.decode(CODEC.encode(position, SCOPE), SCOPE) == position


@given(positions, st.text(), st.text())
def test_a_cursor_of_another_list_is_refused(position: Position, scope: str, other: str) -> None:
    cursor = CODEC.encode(position, scope)

    if scope != other:
        with pytest.raises(InvalidCursor):
            CODEC.decode(cursor, other)


def test_a_cursor_of_another_secret_is_refused() -> None:
    cursor = CursorCodec(b"another secret").encode(POSITION, SCOPE)

    with pytest.raises(InvalidCursor):
        CODEC.decode(cursor, SCOPE)


@pytest.mark.parametrize("at", range(41))
def test_any_flipped_byte_is_refused(at: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(CURSOR + "="))
    assert len(raw) == 41
    raw[at] ^= 1
    altered = base64.urlsafe_b64encode(raw).decode().rstrip("=")

    with pytest.raises(InvalidCursor):
        CODEC.decode(altered, SCOPE)


@pytest.mark.parametrize("at", range(len(CURSOR)))
def test_any_other_letter_is_refused(at: int) -> None:
    for letter in ALPHABET + "+/=":
        altered = CURSOR[:at] + letter + CURSOR[at + 1 :]
        if altered != CURSOR:
            with pytest.raises(InvalidCursor):
                CODEC.decode(altered, SCOPE)


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "=",
        "a",
        "%00",
        "%ff",
        CURSOR + "=",
        CURSOR + "A",
        CURSOR + "AAAA",
        CURSOR[:-1],
        CURSOR[:20],
        CURSOR + "\n",
        " " + CURSOR,
        "é" * 55,
        "\0" * 55,
        "\ud800" * 55,
        "A" * 100_000,
    ],
)
def test_what_is_no_cursor_is_refused(sent: str) -> None:
    with pytest.raises(InvalidCursor):
        CODEC.decode(sent, SCOPE)


@given(st.text())
def test_any_text_is_refused_and_never_crashes(sent: str) -> None:
    with pytest.raises(InvalidCursor):
        CODEC.decode(sent, SCOPE)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_a_cursor_of_another_version_is_refused(version: int) -> None:
    raw = base64.urlsafe_b64decode(CURSOR + "=")

    with pytest.raises(InvalidCursor):
        CODEC.decode(base64.urlsafe_b64encode(bytes([version]) + raw[1:]).decode().rstrip("="), SCOPE)
