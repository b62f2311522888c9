"""What a measurement found, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.table import Table

from fleek import __version__


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: what Fleek does, beside the limit that was measured in the same run."""

    row: str
    what: str
    unit: str
    fleek: float
    limit_name: str | None = None
    limit: float | None = None
    target: float | None = None
    """Of the ratio to the limit, at least; where there is no limit, of the figure itself, at most."""
    rounds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Every single measurement behind the medians."""

    @property
    def ratio(self) -> float | None:
        """Fleek's figure by the limit's."""
        return None if self.limit is None else self.fleek / self.limit

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.fleek <= self.target if self.ratio is None else self.ratio >= self.target

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of it."""
        return asdict(self) | {"ratio": self.ratio, "is_met": self.is_met}


def beside(
    row: str, what: str, unit: str, measured: Mapping[str, Sequence[float]], target: float | None
) -> Figure:
    """The figure of two interleaved series: Fleek's is named `fleek`, the other one is the limit."""
    (limit_name,) = (name for name in measured if name != "fleek")
    return Figure(
        row=row,
        what=what,
        unit=unit,
        fleek=median(measured["fleek"]),
        limit_name=limit_name,
        limit=median(measured[limit_name]),
        target=target,
        rounds=measured,
    )


def as_table(figures: Sequence[Figure]) -> Table:
    """One line a figure."""
    table = Table(
        caption="medians of interleaved rounds; the ratio is what counts, not this machine's figures"
    )
    for heading, justify in (
        ("row", "left"),
        ("measured", "left"),
        ("Fleek", "right"),
        ("limit", "right"),
        ("ratio", "right"),
        ("target", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify, no_wrap=heading != "measured")  # type: ignore[arg-type]  # literals in a loop
    for figure in figures:
        limit = "-" if figure.limit is None else f"{_number(figure.limit)} {figure.unit}"
        ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
        what = figure.what if figure.limit_name is None else f"{figure.what}\n[dim]beside {figure.limit_name}"
        table.add_row(
            figure.row,
            what,
            f"{_number(figure.fleek)} {figure.unit}",
            limit,
            ratio,
            _target(figure),
            _verdict(figure),
        )
    return table


def as_document(figures: Sequence[Figure]) -> dict[str, Any]:
    """The figures, and where they were taken."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "figures": [figure.as_json() for figure in figures],
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004  three digits are enough


def _target(figure: Figure) -> str:
    if figure.target is None:
        return "-"
    return f"≤ {_number(figure.target)} {figure.unit}" if figure.ratio is None else f"≥ {figure.target:.2f}"


def _verdict(figure: Figure) -> str:
    return {None: "", True: "[green]met", False: "[yellow]not met"}[figure.is_met]
