"""Identifiers: UUIDv7 that sort by the time they were made."""

from __future__ import annotations

import time
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given, strategies as st

from fleek.core.ids import new_id, parse_id, uuid7

milliseconds = st.integers(0, 2**48 - 1)
randomness = st.integers(0, 2**74 - 1)


@given(milliseconds, randomness)
def test_an_id_has_the_layout_of_rfc_9562(at: int, random_bits: int) -> None:
    made = uuid7(at, random_bits)

    assert made.version == 7
    assert made.variant == RFC_4122
    assert made.int >> 80 == at


@given(milliseconds, randomness)
def test_every_random_bit_is_kept(at: int, random_bits: int) -> None:
    value = uuid7(at, random_bits).int

    assert (value >> 64 & 0xFFF) << 62 | value & (1 << 62) - 1 == random_bits


@given(st.integers(0, 2**48 - 2), randomness, randomness)
def test_a_later_id_sorts_behind_an_earlier_one(at: int, first: int, second: int) -> None:
    earlier, later = uuid7(at, first), uuid7(at + 1, second)

    assert earlier < later
    assert str(earlier) < str(later)
    assert earlier.bytes < later.bytes


def test_new_ids_carry_the_time_and_do_not_repeat() -> None:
    before = time.time_ns() // 1_000_000
    made = [new_id() for _ in range(1000)]
    after = time.time_ns() // 1_000_000

    assert len(set(made)) == 1000
    assert all(before <= one.int >> 80 <= after for one in made)


@given(milliseconds, randomness)
def test_an_id_is_read_as_it_was_written_in_either_case(at: int, random_bits: int) -> None:
    made = uuid7(at, random_bits)

    assert parse_id(str(made)) == made
    assert parse_id(str(made).upper()) == made


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "1",
        "../../etc/passwd",
        "x" * 10_000,
        "9b2d7f0a-4c1e-4f6b-8a3d-5e7c9b1f2a4d",
        "01920000-0000-7000-8000-00000000000",
        "0192000000007000800000000000000a",
        "{01920000-0000-7000-8000-000000000001}",
        "urn:uuid:01920000-0000-7000-8000-000000000001",
        " 01920000-0000-7000-8000-000000000001",
        "01920000-0000-7000-8000-00000000000g",
        "01920000-0000-7000-8000-0000_0000_01",
        "01920000-0000-7000-8000-00000000000\u0661",
        "\0",
    ],
)
def test_what_is_no_id_of_ours_is_none(sent: str) -> None:
    assert parse_id(sent) is None


@given(st.text())
def test_any_text_is_an_id_in_its_canonical_form_or_none(sent: str) -> None:
    parsed = parse_id(sent)

    assert parsed is None or (isinstance(parsed, UUID) and str(parsed) == sent.lower())
