"""What one machine, three and thirty can carry, computed from what one job costs each part.

`python -m benchmarks.capacity FIGURES` prints `docs/concepts/capacity.md` with the tables that follow from
the JSON that `script/bench --rows costs --json FIGURES` wrote; with `--write` the page itself is rewritten.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parent / "figures" / "costs.json"
PAGE = Path(__file__).parent.parent / "docs" / "concepts" / "capacity.md"
CORES = 4
"""Of each machine."""
LOAD = 0.6
"""How busy the processors may be on average: the rest is for peaks and for a machine that is lost."""
PROVIDER_SECONDS = 10
"""How long a provider takes for a job: what decides how many are in flight."""
SLOTS = 512
"""`fleek worker --slots`: a job that waits for its provider costs a worker next to nothing."""
BIG_CORES = 32
"""Of a database's machine that was chosen for thirty others."""
CONNECTIONS = 31
"""Of a process to PostgreSQL: pool size, overflow, and one that asks whether a silent server lives."""
_DAY = 86_400
_HEADS = ("machines", "jobs/s", "a day", "in flight", "api", "workers", "connections", "full first")


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of processor time that one job takes of each part, its clients' reads included."""

    api: float
    worker: float
    postgres: float
    valkey: float

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Costs:
        """Out of the JSON of `script/bench --rows costs`; raises KeyError where a part was not measured."""
        values = {figure["what"]: float(figure["fleek"]) for figure in document["figures"]}
        found = {
            part: value
            for what, value in values.items()
            for part in ("api", "worker", "PostgreSQL", "Valkey")
            if what.startswith(f"processor time of {part} ")
        }
        return cls(found["api"], found["worker"], found["PostgreSQL"], found["Valkey"])


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a number of machines carries."""

    machines: int
    layout: str
    jobs_per_second: float
    limit: str
    """The machines that are full first."""
    api_processes: int
    worker_processes: int

    @property
    def in_flight(self) -> int:
        """Jobs that are with their provider at once."""
        return round(self.jobs_per_second * PROVIDER_SECONDS)

    @property
    def connections(self) -> int:
        """To PostgreSQL, at most."""
        return (self.api_processes + self.worker_processes) * CONNECTIONS


def compute(costs: Costs, machines: int, database_cores: int = CORES) -> Capacity:
    """One machine holds everything; of several, one has PostgreSQL and Redis, the others api and workers.

    That the database's machine does twice as much with twice the cores is assumed, not measured.
    """
    budget = 1000 * CORES * LOAD
    shared, own = costs.postgres + costs.valkey, costs.api + costs.worker
    if machines == 1:
        return _capacity(1, "everything", budget / (shared + own), "that machine", costs)
    rates = {
        "the database's": 1000 * database_cores * LOAD / shared,
        "the others": (machines - 1) * budget / own,
    }
    limit, rate = min(rates.items(), key=lambda pair: pair[1])
    size = "" if database_cores == CORES else f" ({database_cores} cores)"
    layout = f"1 with PostgreSQL and Redis{size}, {machines - 1} with api and workers"
    return _capacity(machines, layout, rate, limit, costs)


def _capacity(machines: int, layout: str, rate: float, limit: str, costs: Costs) -> Capacity:
    """An api process and a worker process each use one core at most; a worker also has only so many slots."""
    busy = 1000 * LOAD
    workers = max(rate * costs.worker / busy, rate * PROVIDER_SECONDS / SLOTS)
    return Capacity(machines, layout, rate, limit, _whole(rate * costs.api / busy), _whole(workers))


def _whole(number: float) -> int:
    return max(1, -int(-number // 1))


def render(page: str, document: Mapping[str, Any]) -> str:
    """The page with the tables that these figures give, between its markers."""
    costs = Costs.read(document)
    plans = [(1, CORES), (3, CORES), (30, CORES), (30, BIG_CORES)]
    for name, text in (
        ("capacity", _table(_HEADS, map(_cells, (compute(costs, *plan) for plan in plans)))),
        ("costs", _table(("part", "one job costs"), _costs_of(document))),
    ):
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>{text}\n\g<2>", page, flags=re.DOTALL)
    return page


def _costs_of(document: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for figure in document["figures"]:
        if figure["row"] == "costs":
            yield figure["what"].partition(": ")[0], f"{figure['fleek']:.1f} {figure['unit']}"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(one: Capacity) -> tuple[str, ...]:
    return (
        f"{one.machines}: {one.layout}",
        f"{one.jobs_per_second:,.0f}",
        f"{one.jobs_per_second * _DAY / 1e6:,.1f} M",
        f"{one.in_flight:,}",
        f"{one.api_processes}",
        f"{one.worker_processes}",
        f"{one.connections:,}",
        one.limit,
    )


def main(arguments: Sequence[str]) -> None:
    """Print the page that the figures give, or write it."""
    files = [Path(argument) for argument in arguments if argument != "--write"]
    page = render(PAGE.read_text(), json.loads((files[0] if files else FIGURES).read_text()))
    if "--write" in arguments:
        PAGE.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
