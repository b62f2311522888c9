"""`script/demo`: real prompts through a running Fleek, every picture checked, and a contact sheet of them.

Without `--url` it uses the Fleek that runs on this machine; when none does, it starts one in a temporary home
and stops it at the end. Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tests.prompts import sample

from benchmarks.contact_sheet import Tile, make_sheet
from benchmarks.gallery import Order, Picture, collect, find_faults, plan_orders
from fleek.cli.client import find_local_url
from fleek.cli.exits import CommandError

ROOT = Path(__file__).parent.parent
SEED = 7
COUNT = 50
SIZES = ((768, 512), (512, 768), (640, 640), (896, 512), (576, 704))
"""Landscape, portrait and square, in turn."""
_READY_SECONDS, _STOP_SECONDS = 120, 15
_FAILED, _UNREACHABLE, _INTERRUPTED = 1, 3, 130

_err = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Summary:
    """What `--json` prints."""

    url: str
    prompts: int
    categories: int
    seconds: float
    """From the first submit to the last downloaded byte."""
    size_bytes: int
    """Of all pictures."""
    sheet: str | None
    faults: Sequence[str]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(  # noqa: PLR0913  one parameter a flag
    *,
    url: Annotated[
        str | None, typer.Option(help="Base URL; unset: the Fleek that runs here, or one of its own")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the contact sheet goes")] = Path("contact-sheet.png"),
    count: Annotated[int, typer.Option(min=1, max=1632, help="Number of prompts")] = COUNT,
    seed: Annotated[int, typer.Option(min=0, help="Which prompts, and which pictures of them")] = SEED,
    delay: Annotated[
        float | None,
        typer.Option(min=0, max=60, help="Seconds that the demo model takes; unset: its own default"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON")] = False,
) -> None:
    """Send real prompts through a running Fleek, check every picture, and draw a contact sheet."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    given = {} if delay is None else {"delay_seconds": delay}
    orders = plan_orders(sample(count, seed), SIZES, seed, given)
    try:
        with _running_fleek(url) as base:
            summary = _run(base, orders, output)
    except httpx2.HTTPError as error:
        _err.print(f"error: Fleek did not answer as it should: {type(error).__name__}: {error}", markup=False)
        raise typer.Exit(_UNREACHABLE) from None
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None
    _tell(summary, as_json=as_json)
    if summary.faults:
        raise typer.Exit(_FAILED)


def _run(url: str, orders: Sequence[Order], output: Path) -> Summary:
    began = time.monotonic()
    pictures = _collect_visibly(url, orders)
    seconds = time.monotonic() - began
    faults = find_faults(pictures)
    return Summary(
        url=url,
        prompts=len(orders),
        categories=len({order.prompt.category for order in orders}),
        seconds=round(seconds, 3),
        size_bytes=sum(len(picture.content) for picture in pictures),
        sheet=None if faults else _write_sheet(pictures, output),
        faults=faults,
    )


def _collect_visibly(url: str, orders: Sequence[Order]) -> list[Picture]:
    columns = (TextColumn("Generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as progress:
        bar = progress.add_task("", total=len(orders))
        return asyncio.run(collect(url, orders, on_done=lambda: progress.advance(bar)))


def _write_sheet(pictures: Sequence[Picture], output: Path) -> str:
    tiles = [Tile(Image.open(io.BytesIO(one.content)), one.order.prompt.text) for one in pictures]
    output.parent.mkdir(parents=True, exist_ok=True)
    make_sheet(tiles).save(output, "PNG", optimize=True)
    return str(output)


def _tell(summary: Summary, *, as_json: bool) -> None:
    for fault in summary.faults:
        _err.print(f"fault: {fault}", markup=False, soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(asdict(summary)) + "\n")
        return
    verdict = f"{len(summary.faults)} faults" if summary.faults else "every picture as ordered"
    sys.stdout.write(
        f"{summary.prompts} prompts of {summary.categories} categories in {summary.seconds:.1f} s, "
        f"{summary.size_bytes / 1e6:.1f} MB: {verdict}\n"
    )
    if summary.sheet is not None:
        sys.stdout.write(f"{summary.sheet}\n")


@contextlib.contextmanager
def _running_fleek(url: str | None) -> Iterator[str]:
    """The base URL of the Fleek that was named, of the one that runs here, or of one for this block."""
    if url is None:
        with contextlib.suppress(CommandError):
            url = find_local_url()
    if url is not None:
        yield url.rstrip("/")
        return
    _err.print("No Fleek runs here; starting one in a temporary home")
    folder = Path(tempfile.mkdtemp(prefix="fleek-demo-"))
    # Root's PostgreSQL runs as another user, who must be able to enter.
    folder.chmod(0o755)
    try:
        with _started_fleek(folder) as base:
            yield base
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started_fleek(folder: Path) -> Iterator[str]:
    log = folder / "up.log"
    command = [str(ROOT / "script" / "up"), "--home", str(folder / "home"), "--port", "0"]
    with log.open("wb") as errors:
        # A process group of its own: Ctrl-C reaches it through us, once, after our own work has ended.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, process_group=0, env=_environment()
        )
    try:
        yield _wait_ready(process, log)["url"]
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """The one JSON line that `script/up` prints when everything is ready."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _READY_SECONDS)
    line = process.stdout.readline() if readable else b""
    if not line:
        _err.print(log.read_text(), markup=False)
        _err.print("error: Fleek did not start; the lines above say why")
        raise typer.Exit(_UNREACHABLE)
    facts: dict[str, Any] = json.loads(line)
    return facts


def _environment() -> dict[str, str]:
    """Settings of the user's own Fleek, such as a database, are not for a trial."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}


if __name__ == "__main__":
    app()
