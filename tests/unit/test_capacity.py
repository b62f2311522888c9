"""The page about capacity says what follows from the measured figures."""

from __future__ import annotations

import json
import re

import pytest
from benchmarks import capacity
from benchmarks.capacity import Costs, compute, render

EVEN = Costs(api=2, worker=1, postgres=0.9, valkey=0.1)


def test_the_page_has_the_tables_that_its_figures_give() -> None:
    page = capacity.PAGE.read_text()

    assert render(page, json.loads(capacity.FIGURES.read_text())) == page
    assert len(re.findall(r"^\| \d+: ", page, re.MULTILINE)) == 4


def test_what_the_page_says_it_assumes_is_what_is_computed_with() -> None:
    page = capacity.PAGE.read_text()

    assert f"Machines of {capacity.CORES} cores that are {capacity.LOAD:.0%}".replace("%", " %") in page
    assert f"A provider takes {capacity.PROVIDER_SECONDS} s" in page
    assert f"`--slots {capacity.SLOTS}`" in page


@pytest.mark.parametrize(
    ("machines", "cores", "rate", "limit"),
    [
        (1, 4, 600, "that machine"),
        (2, 4, 800, "the others"),
        (4, 4, 2400, "the database's"),
        (30, 4, 2400, "the database's"),
        (30, 32, 19_200, "the database's"),
        (3, 32, 1600, "the others"),
    ],
)
def test_the_part_that_is_full_first_decides(machines: int, cores: int, rate: float, limit: str) -> None:
    found = compute(EVEN, machines, cores)

    assert found.jobs_per_second == pytest.approx(rate)
    assert found.limit == limit


def test_workers_are_as_many_as_their_cores_or_their_slots_ask_for() -> None:
    by_slots, by_cores = compute(EVEN, 1), compute(Costs(2, 100, 0.9, 0.1), 1)

    assert by_slots.in_flight == 6000
    assert by_slots.worker_processes == 12
    assert by_cores.worker_processes == 4
    assert by_slots.connections == (by_slots.api_processes + 12) * capacity.CONNECTIONS


def test_figures_that_miss_a_part_are_refused() -> None:
    document = {
        "figures": [{"row": "costs", "what": "processor time of api for one job", "fleek": 1, "unit": "ms"}]
    }

    with pytest.raises(KeyError, match="worker"):
        Costs.read(document)
