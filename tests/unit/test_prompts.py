"""The sample of real prompts that demos, acceptance tests and benchmarks share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, strategies as st
from tests.prompts import Prompt, read_prompts, sample

CATEGORIES = {prompt.category for prompt in read_prompts()}
FIRST_OF_SEED_7 = (
    "a boy and a tiger",
    "parallel lines",
    "A soft beam of light shines down",
)


def test_the_table_is_read_whole() -> None:
    """Every line is one prompt, quotation marks are text, and what the writer typed is kept."""
    prompts = read_prompts()

    assert len(prompts) == 1632
    assert len(CATEGORIES) == 12
    assert prompts[0] == Prompt("bond", "Abstract")
    assert Prompt("the word 'START'", "Illustrations") in prompts
    assert sum('"' in prompt.text for prompt in prompts) > 10


@given(n=st.integers(12, 1632), seed=st.integers())
def test_every_category_appears(n: int, seed: int) -> None:
    """However the seed falls, a sample of a dozen or more leaves no category out."""
    assert {prompt.category for prompt in sample(n, seed)} == CATEGORIES


@given(n=st.integers(0, 480), seed=st.integers())
def test_categories_get_equal_shares_while_they_last(n: int, seed: int) -> None:
    """The large categories do not crowd out the small: up to the smallest's size, shares differ by one."""
    shares = Counter(prompt.category for prompt in sample(n, seed))

    assert max(shares.values(), default=0) - min(shares[name] for name in CATEGORIES) <= 1


@given(n=st.integers(0, 1632), seed=st.integers())
def test_no_prompt_is_drawn_twice(n: int, seed: int) -> None:
    """A sample has as many different prompts as were asked for."""
    assert len(set(sample(n, seed))) == n


def test_a_seed_gives_the_same_prompts_everywhere() -> None:
    """The first prompts of a known seed: the demo's pictures stay what they are."""
    assert tuple(prompt.text[:32] for prompt in sample(3, seed=7)) == FIRST_OF_SEED_7
    assert sample(50, seed=7)[:3] == sample(3, seed=7)
    assert sample(50, seed=7) != sample(50, seed=8)


@pytest.mark.parametrize("n", [-1, 1633])
def test_more_prompts_than_there_are_is_refused(n: int) -> None:
    """Rather than silently giving fewer."""
    with pytest.raises(ValueError, match="there are 1632 prompts"):
        sample(n, seed=7)
