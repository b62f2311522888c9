"""`script/chaos`: kills every part of a Fleek at random while clients use it, and says what was lost."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from tests.chaos.faults import KINDS
from tests.chaos.progress import Progress
from tests.chaos.report import HOLDS, Report
from tests.chaos.run import Plan, run

_INTERRUPTED = 130
_STDOUT = Path("-")
_WIDTH = 120
"""Columns of the table where no terminal says how many there are."""
_LONGEST_MINUTES, _MOST_JOBS = 1440, 100_000


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all invariants hold, 1 when one is broken, 2 for wrong usage."""
    given = _parse(arguments)
    plan = Plan(given.seed, given.minutes * 60, given.jobs, given.faults)
    if given.list_faults:
        for fault in plan.faults():
            sys.stdout.write(f"{fault}\n")
        return HOLDS
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return _run(plan, given.json, keep=given.keep)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/chaos",
        description="Kill every part of Fleek at random while clients use it, then look for what was lost, "
        "completed twice or paid twice. Exit code 1: something was, and its evidence is kept.",
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed: the same faults and jobs (1)")
    parser.add_argument(
        "--minutes", type=_between(0.1, _LONGEST_MINUTES, float), default=1, help="length of the chaos (1)"
    )
    parser.add_argument(
        "--jobs", type=_between(1, _MOST_JOBS, int), default=120, help="submitted meanwhile (120)"
    )
    parser.add_argument(
        "--faults",
        type=_kinds,
        default=tuple(KINDS),
        metavar="KIND,..",
        help=f"only these: {', '.join(KINDS)}",
    )
    parser.add_argument("--list-faults", action="store_true", help="print the schedule of this seed and end")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=_STDOUT,
        metavar="FILE",
        help="the report as JSON: here, or in a file",
    )
    parser.add_argument("--keep", action="store_true", help="keep journal, ledger, rows and logs in any case")
    return parser.parse_args(arguments)


def _between(least: float, most: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            message = f"{text} is not between {least:g} and {most:g}"
            raise argparse.ArgumentTypeError(message)
        return value

    return number


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    unknown = sorted(set(names) - set(KINDS))
    if unknown or not names:
        message = f"no such fault: {', '.join(unknown) or text}; there are {', '.join(KINDS)}"
        raise argparse.ArgumentTypeError(message)
    return names


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Unwind, so that everything that was started is stopped; a second signal must not disturb that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run(plan: Plan, file: Path | None, *, keep: bool) -> int:
    """Run, and print what was found."""
    folder = Path(tempfile.mkdtemp(prefix="fleek-chaos-"))
    console = Console(stderr=True, highlight=False)
    is_needed = True
    try:
        with Progress(console) as progress:
            report = run(plan, folder, progress)
        _show(report, file)
        is_needed = keep or report.exit_code != HOLDS
    except KeyboardInterrupt:
        is_needed = keep
        raise
    finally:
        if is_needed:
            console.print(f"Journal, ledger, rows and logs are in {folder}")
        else:
            shutil.rmtree(folder)
    return report.exit_code


def _show(report: Report, file: Path | None) -> None:
    """The document alone; or a table, with the document in a file where one is named."""
    document = json.dumps(report.as_document(), indent=2) + "\n"
    if file == _STDOUT:
        sys.stdout.write(document)
        return
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(report.as_table())
    if file is not None:
        file.write_text(document)


if __name__ == "__main__":
    sys.exit(main())
