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


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of a run."""

    seed: int
    minutes: float
    seconds: float
    """With starting, healing and draining."""
    faults: Mapping[str, int]
    jobs: Mapping[str, int]
    """How many ended how: by status, an error by its code."""
    accepted: int
    requests: int
    unanswered: int
    """Requests that got no answer, or a 503, and were repeated."""
    creates: int
    """Orders that the vendor took, and wants to be paid for."""
    rescued: int
    """Attempts whose worker lost its lease."""
    submit_p50: float
    submit_p99: float
    verdicts: Sequence[Verdict]

    @property
    def holds(self) -> bool:
        """Whether no invariant is broken."""
        return not any(verdict.broken for verdict in self.verdicts)

    def as_document(self) -> dict[str, Any]:
        """JSON."""
        return {"holds": self.holds, **asdict(self)}

    def as_table(self) -> RenderableType:
        """For people."""
        return Group(self._run(), self._faults(), self._invariants(), self._conclusion())

    def _run(self) -> Table:
        table = Table(title=f"{self.minutes:g} minutes of chaos, seed {self.seed}", show_header=False)
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.jobs.items()))
        for name, value in (
            ("jobs accepted", self.accepted),
            ("ended as", ends),
            ("requests", f"{self.requests}, {self.unanswered} of them asked again"),
            ("orders that the vendor took", self.creates),
            ("attempts whose lease was lost", self.rescued),
            ("submit, answered at once", f"{self.submit_p50:.0f} ms p50, {self.submit_p99:.0f} ms p99"),
        ):
            table.add_row(name, str(value))
        return table

    def _faults(self) -> Table:
        table = Table("fault", "times", title=f"{sum(self.faults.values())} faults")
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
        if self.holds:
            return Text("Nothing lost, nothing completed twice, nothing paid twice.", "bold green")
        found = [one for verdict in self.verdicts for one in verdict.broken[:_SHOWN]]
        return Text("\n".join(["Broken:", *found]), "bold red")
