"""What the clients ask for: real prompts, and now and then an order that goes wrong at the vendor."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.cluster import FREE, PAID
from tests.prompts import read_prompts

_PAID_SHARE, _CANCEL_SHARE, _RETRY_SHARE = 0.7, 0.08, 0.5
_LOOKS = {"once": 0.65, "long poll": 0.2, "stream": 0.15}
_SCRIPTS: Sequence[tuple[float, dict[str, Any]]] = (
    (0.40, {"seconds": 0.3}),
    (0.25, {"seconds": 2}),
    (0.13, {"seconds": 6}),
    (0.06, {"end": "failed"}),
    (0.05, {"end": "failed", "error": "NSFW content detected"}),
    (0.03, {"file": "missing"}),
    (0.03, {"file": "html"}),
    (0.03, {"file": "truncated"}),
    (0.02, {"output": "object"}),
)
"""How the vendor's orders go, and how often."""
_FREE_SCRIPTS: Sequence[tuple[float, dict[str, Any]]] = (
    (0.30, {"delay_seconds": 0}),
    (0.25, {"delay_seconds": 0.2}),
    (0.20, {"delay_seconds": 1}),
    (0.15, {"delay_seconds": 4}),
    (0.10, {"delay_seconds": 0.1, "fail_times": 1}),
)
"""The same of the model that costs nothing."""


@dataclass(frozen=True, slots=True)
class Errand:
    """One job, and what its client does about it."""

    number: int
    at: float
    """Seconds after the start."""
    body: Mapping[str, Any]
    key: str
    api: int
    cancel_after: float | None
    """Seconds after it was accepted."""
    looks: str
    """How its client follows it: `once`, by `long poll`, or as a `stream` of events."""
    retries: bool
    """Whether its client asks once more where it ended in error."""


def plan_errands(seed: int, jobs: int, seconds: float, apis: int) -> list[Errand]:
    """As many jobs, spread over the time; the same for the same arguments."""
    chance = random.Random(f"errands {seed}")  # noqa: S311  chance, no secret
    return [_errand(chance, number, number * seconds / jobs, seed, apis) for number in range(jobs)]


def _errand(chance: random.Random, number: int, at: float, seed: int, apis: int) -> Errand:
    [looks] = chance.choices(list(_LOOKS), list(_LOOKS.values()))
    return Errand(
        number=number,
        at=at,
        body=_body(chance, number),
        key=f"chaos-{seed}-{number}",
        api=chance.randrange(apis),
        cancel_after=chance.uniform(0, 8) if chance.random() < _CANCEL_SHARE else None,
        looks=looks,
        retries=chance.random() < _RETRY_SHARE,
    )


def _body(chance: random.Random, number: int) -> dict[str, Any]:
    # The number makes each prompt its own: the vendor's ledger knows jobs only by what they asked for.
    prompt = f"{chance.choice(read_prompts()).text.strip()} (no. {number})"
    body: dict[str, Any] = {"prompt": prompt, "n": chance.choice((1, 1, 1, 2))}
    if chance.random() >= _PAID_SHARE:
        return body | {"model": FREE, "width": 64, "height": 64, "input": _draw(chance, _FREE_SCRIPTS)}
    return body | {"model": PAID, "input": {"fake": _draw(chance, _SCRIPTS)}}


def _draw(chance: random.Random, scripts: Sequence[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    [(_, script)] = chance.choices(scripts, [weight for weight, _ in scripts])
    return script
