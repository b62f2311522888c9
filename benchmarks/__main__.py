"""`script/bench`: Fleek's speed, each figure beside the limit of the same stack in the same run."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.content import measure_cache, measure_content
from benchmarks.costs import measure_costs
from benchmarks.report import Figure, as_document, as_table
from benchmarks.rows import ROWS as RATES, Effort
from benchmarks.stage import StageError, open_stage
from fleek.core.errors import FleekError

_INTERRUPTED = 130
_WIDTH = 120
"""Columns of the table where no terminal says how many there are."""


ROWS = {**RATES, "content": measure_content, "cache": measure_cache, "costs": measure_costs}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    rows: Annotated[str, typer.Option(help="Which rows, separated by commas")] = ",".join(ROWS),
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one measurement of a rate")] = 3.0,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of Fleek and of the limit, in turns")] = 5,
    jobs: Annotated[int, typer.Option(min=10, help="Jobs of one round of the pipeline")] = 2000,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file too")
    ] = None,
) -> None:
    """Measure Fleek beside the limits of its parts. Nothing else should run on the machine meanwhile."""
    wanted = rows.split(",")
    if unknown := [name for name in wanted if name not in ROWS]:
        message = f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}"
        raise typer.BadParameter(message, param_hint="--rows")
    # SIGTERM unwinds like Ctrl-C, so that everything that was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        figures = _measure(wanted, Effort(seconds, rounds, jobs))
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    except (StageError, FleekError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(as_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(as_document(figures), indent=2) + "\n")


def _measure(rows: list[str], effort: Effort) -> list[Figure]:
    """All figures of the rows; what is being measured is said on standard error."""
    figures: list[Figure] = []
    with Console(stderr=True).status("Starting PostgreSQL and Valkey") as status, open_stage() as stage:
        for row in rows:
            status.update(f"Measuring {row}")
            figures += ROWS[row](stage, effort)
    return figures


if __name__ == "__main__":
    app()
