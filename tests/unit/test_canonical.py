"""Fingerprints: the same body has one, whatever the order of its keys; another body has another."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fleek.core.canonical import fingerprint

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
bodies = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=12,
)
quickly = settings(max_examples=50)


def shuffled(body: Any, order: random.Random) -> Any:
    """The same JSON value, with the keys of every object in another order."""
    if isinstance(body, dict):
        keys = list(body)
        order.shuffle(keys)
        return {key: shuffled(body[key], order) for key in keys}
    if isinstance(body, list):
        return [shuffled(item, order) for item in body]
    return body


@quickly
@given(bodies, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(body: Any, order: random.Random) -> None:
    assert fingerprint(shuffled(body, order)) == fingerprint(body)


@quickly
@given(bodies)
def test_white_space_and_escapes_of_the_text_do_not_matter(body: Any) -> None:
    spaced = json.dumps(body, indent=3, ensure_ascii=True)

    assert fingerprint(json.loads(spaced)) == fingerprint(body)


@quickly
@given(bodies, bodies)
def test_two_bodies_share_a_fingerprint_only_when_they_are_the_same_text(first: Any, second: Any) -> None:
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)

    assert (fingerprint(first) == fingerprint(second)) is same


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"n": 1}, {"n": 1.0}),
        ({"n": 1}, {"n": True}),
        ({"n": 1}, {"n": "1"}),
        ({"n": 1}, {}),
        ({"a": None}, {}),
        ([1, 2], [2, 1]),
        ({"a": {"b": 1}}, {"a": {}, "b": 1}),
        ("é", "e\u0301"),
        ({"ab": "c"}, {"a": "bc"}),
    ],
)
def test_different_bodies_have_different_fingerprints(first: Any, second: Any) -> None:
    assert fingerprint(first) != fingerprint(second)


def test_half_a_surrogate_pair_has_a_fingerprint_of_its_own() -> None:
    halves = [json.loads('{"prompt": "\\ud800"}'), json.loads('{"prompt": "\\udc00"}'), {"prompt": "?"}]

    assert len({fingerprint(body) for body in halves}) == 3


def test_a_fingerprint_is_a_sha_256_that_never_changes_between_releases() -> None:
    assert re.fullmatch("[0-9a-f]{64}", fingerprint({}))
    assert fingerprint({"prompt": "ä", "n": 2}) == (
        "782f007000a397c3f4dda1319067b29ea6475ac201ff68e9078ed94bed12b1d3"
    )
