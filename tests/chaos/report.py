"""What a run found: one document for programs, one table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tests.cluster.invariants import Verdict

_SHOWN = 5
"""Findings of one invariant that the table shows; the document has them all."""
HOLDS, BROKEN = 0, 1
"""Exit codes."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How much happened."""

    accepted: int
    jobs: Mapping[str, int]
    """How many ended how: by status, an error by its code."""
    requests: int
    asked_again: int
    """Requests that got no answer, or a 503."""
    creates: int
    """Orders that the vendor took, and wants to be paid for."""
    rescued: int
    """Attempts whose worker lost its lease."""
    orphans: int
    """Objects that no row names: what an attempt stored that did not come to complete its job."""
    submit_p50: float
    """Milliseconds, of submits that were answered at the first time of asking."""
    submit_p99: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about a run."""

    seed: int
    minutes: float
    seconds: float
    """With starting, healing and draining."""
    faults: Mapping[str, int]
    figures: Figures
    verdicts: Sequence[Verdict]

    @property
    def exit_code(self) -> int:
        """Whether an invariant is broken, as a program says it."""
        return BROKEN if any(verdict.broken for verdict in self.verdicts) else HOLDS

    def as_document(self) -> dict[str, Any]:
        """JSON."""
        found = asdict(self)
        figures = found.pop("figures")
        verdicts = found.pop("verdicts")
        return {"holds": self.exit_code == HOLDS, **found, **figures, "invariants": verdicts}

    def as_table(self) -> RenderableType:
        """For people."""
        return Group(self._run(), self._faults(), self._invariants(), self._conclusion())

    def _run(self) -> Table:
        table = Table(title=f"{self.minutes:g} minutes of chaos, seed {self.seed}", show_header=False)
        figures = self.figures
        ends = ", ".join(f"{count} {end}" for end, count in figures.jobs.items())
        for name, value in (
            ("jobs accepted", figures.accepted),
            ("ended as", ends),
            ("requests", f"{figures.requests}, {figures.asked_again} of them asked again"),
            ("orders that the vendor took", figures.creates),
            ("attempts whose lease was lost", figures.rescued),
            ("objects that no row names", figures.orphans),
            ("submit, answered at once", f"{figures.submit_p50:.0f} ms p50, {figures.submit_p99:.0f} ms p99"),
            ("with starting and draining", f"{self.seconds:.0f} s"),
        ):
            table.add_row(name, str(value))
        return table

    def _faults(self) -> Table:
        table = Table("fault", "times", title=f"Faults: {sum(self.faults.values())}")
        for name, count in sorted(self.faults.items()):
            table.add_row(name, str(count))
        return table

    def _invariants(self) -> Table:
        table = Table("what must hold", "looked at", "broken", title="At the end")
        for verdict in self.verdicts:
            style = "red" if verdict.broken else "green"
            table.add_row(verdict.name, str(verdict.checked), Text(str(len(verdict.broken)), style))
        return table

    def _conclusion(self) -> Text:
        if self.exit_code == HOLDS:
            return Text("Nothing lost, nothing completed twice, nothing paid twice.", "bold green")
        found = [one for verdict in self.verdicts for one in verdict.broken[:_SHOWN]]
        return Text("\n".join(["Broken:", *found]), "bold red")
