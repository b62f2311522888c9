"""What a measurement found, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    fleek: float = 0.0
    limit_name: str | None = None
    limit: float | None = None
    target: float | None = None
    """Of the ratio to the limit, at least; where there is no limit, of the figure itself, at most."""
    cpu: float | None = None
    """Milliseconds of processor time that one operation takes of the process that is measured."""
    limit_cpu: float | None = None
    """The same of the limit's process."""
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
    figure: Figure, fleek: Sequence[float], limit_name: str, limit: Sequence[float], target: float | None
) -> Figure:
    """A figure whose value and limit are the medians of two series that were taken in turns."""
    return replace(
        figure,
        fleek=median(fleek),
        limit_name=limit_name,
        limit=median(limit),
        target=target,
        rounds={"fleek": fleek, "limit": limit},
    )


def as_table(figures: Sequence[Figure]) -> Table:
    """One line a figure, and one below it for the limit beside it and for the processor time."""
    table = Table(caption="Medians of rounds in turns. The ratio counts, not what this machine reaches.")
    table.add_column("row", no_wrap=True)
    table.add_column("measured")
    for heading in ("Fleek", "limit", "ratio", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        table.add_row(
            figure.row,
            figure.what if figure.limit_name is None else f"{figure.what}\n[dim]beside {figure.limit_name}",
            _value(figure.fleek, figure.unit, figure.cpu),
            _value(figure.limit, figure.unit, figure.limit_cpu),
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            _target(figure),
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


def _value(value: float | None, unit: str, cpu: float | None) -> str:
    if value is None:
        return ""
    return f"{_number(value)} {unit}" + (f"\n[dim]{cpu:.2f} ms CPU" if cpu else "")


def _target(figure: Figure) -> str:
    if figure.target is None:
        return ""
    text = f"≤ {_number(figure.target)} {figure.unit}" if figure.ratio is None else f"≥ {figure.target:.2f}"
    return f"[green]{text}\nmet" if figure.is_met else f"[yellow]{text}\nnot met"
