"""How a benchmark's figure is judged and shown."""

from __future__ import annotations

import io

import pytest
from benchmarks.report import Figure, as_document, as_table, beside
from rich.console import Console

RATE = Figure("submit", "requests", "/s")


@pytest.mark.parametrize(
    ("figure", "ratio", "is_met"),
    [
        (Figure("a", "rate at its target", "/s", 55, "bare", 100, target=0.55), 0.55, True),
        (Figure("a", "rate below its target", "/s", 54, "bare", 100, target=0.55), 0.54, False),
        (Figure("a", "time at its bound", "ms", 10, target=10), None, True),
        (Figure("a", "time beyond its bound", "ms", 10.1, target=10), None, False),
        (Figure("a", "no target", "ms", 10), None, None),
    ],
    ids=lambda value: value.what if isinstance(value, Figure) else "",
)
def test_a_rate_is_judged_by_its_ratio_and_a_time_by_itself(
    figure: Figure, ratio: float | None, is_met: bool | None
) -> None:
    assert (figure.ratio, figure.is_met) == (ratio, is_met)


def test_the_median_of_the_rounds_stands_beside_the_limits() -> None:
    figure = beside(RATE, [10, 90, 30], "a bare route", [60, 50, 1000], target=0.55)

    assert (figure.fleek, figure.limit, figure.ratio) == (30, 60, 0.5)
    assert figure.rounds == {"fleek": [10, 90, 30], "limit": [60, 50, 1000]}


def test_the_table_tells_figure_limit_ratio_and_target() -> None:
    stream = io.StringIO()

    Console(file=stream, width=120).print(
        as_table([beside(RATE, [3000], "a bare route", [5000], target=0.55)])
    )

    text = stream.getvalue()
    assert all(
        part in text for part in ("3,000 /s", "5,000 /s", "0.60", "≥ 0.55", "met", "beside a bare route")
    )


def test_the_document_holds_every_figure_with_its_verdict() -> None:
    document = as_document([beside(RATE, [3000], "a bare route", [5000], target=0.55)])

    (figure,) = document["figures"]
    assert (figure["ratio"], figure["is_met"], figure["limit_name"]) == (0.6, True, "a bare route")
    assert document["cpus"] >= 1
