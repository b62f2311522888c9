"""`script/chaos`: kills every part of a Fleek at random while clients use it, and says what was lost."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tests.chaos.faults import KINDS
from tests.chaos.run import Plan, plan_of, run

_BROKEN, _INTERRUPTED = 1, 130
_WIDTH = 120
"""Columns of the table where no terminal says how many there are."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    *,
    seed: Annotated[int, typer.Option(help="The same seed: the same faults and jobs")] = 1,
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="Length of the chaos")] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=100_000, help="How many are submitted meanwhile")] = 120,
    faults: Annotated[str, typer.Option(help="Only these kinds, separated by commas")] = ",".join(KINDS),
    list_faults: Annotated[bool, typer.Option("--list-faults", help="Print the schedule and end")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the evidence in any case")] = False,
) -> None:
    """Kill every part of Fleek at random while clients use it, then look for what was lost or paid twice.

    Exits with 1 when an invariant is broken; the evidence is kept then, and its folder named.
    """
    kinds = [name for name in faults.split(",") if name]
    if unknown := sorted(set(kinds) - set(KINDS)):
        message = f"no such fault: {', '.join(unknown)}; there are {', '.join(KINDS)}"
        raise typer.BadParameter(message, param_hint="--faults")
    plan = Plan(seed, minutes * 60, jobs, kinds)
    if list_faults:
        for fault in plan_of(plan):
            typer.echo(f"{fault.at:8.2f}\t{fault.kind}\t{fault.target}\t{fault.seconds:g}\t{fault.arm}")
        return
    # SIGTERM unwinds like Ctrl-C, so that everything that was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        holds = _run(plan, as_json=as_json, keep=keep)
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    if not holds:
        raise typer.Exit(_BROKEN)


def _run(plan: Plan, *, as_json: bool, keep: bool) -> bool:
    """Run, and print what was found; whether all invariants hold."""
    folder = Path(tempfile.mkdtemp(prefix="fleek-chaos-"))
    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        try:
            report = run(plan, folder, status.update)
        except BaseException:
            console.print(f"The evidence so far is in {folder}")
            raise
    if as_json:
        typer.echo(json.dumps(report.as_document(), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(report.as_table())
    if keep or not report.holds:
        console.print(f"Journal, ledger, rows and logs are in {folder}")
    else:
        shutil.rmtree(folder)
    return report.holds


if __name__ == "__main__":
    app()
