"""Real prompts: PartiPrompts, 1,632 of them in 12 categories (google-research/parti, Apache-2.0).

    for prompt in sample(50, seed=7): ...

The table lies in `tests/data`, its licence beside it. Standard library only, so that programs outside of the
tests can use it too.
"""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path

_TABLE = Path(__file__).parent / "data" / "PartiPrompts.tsv"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What somebody asks for; `text` is as it was written, with stray spaces and all."""

    text: str
    category: str


@cache
def read_prompts() -> tuple[Prompt, ...]:
    """All prompts, in the order of the table."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return tuple(Prompt(row["Prompt"], row["Category"]) for row in rows)


def sample(n: int, seed: int) -> list[Prompt]:
    """`n` different prompts, dealt from the categories in turn: as evenly as their sizes allow.

    The same `n` and `seed` give the same prompts on every machine. Raises ValueError when the table has
    fewer than `n`.
    """
    prompts = read_prompts()
    if not 0 <= n <= len(prompts):
        message = f"there are {len(prompts)} prompts, not {n}"
        raise ValueError(message)
    chance = random.Random(seed)  # noqa: S311  a sample, no secret
    piles = defaultdict(list)
    for prompt in prompts:
        piles[prompt.category].append(prompt)
    shuffled = [chance.sample(pile, len(pile)) for pile in chance.sample(list(piles.values()), len(piles))]
    rounds = zip_longest(*shuffled)
    return [prompt for one in rounds for prompt in one if prompt is not None][:n]
