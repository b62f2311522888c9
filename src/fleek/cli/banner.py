"""What `fleek up` says: one JSON line for a program that reads it, a few friendly lines for a person."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import typer

_PROMPT = '"a lighthouse at dawn"'


def say(message: str) -> None:
    """A line for whoever watches; a reader that went away stops nothing."""
    with contextlib.suppress(OSError):
        typer.echo(message, err=True)


def announce(url: str, home: Path, *, is_default_home: bool) -> None:
    """Tell that everything is ready: data on standard output, and nothing else ever goes there."""
    with contextlib.suppress(OSError):
        if sys.stdout.isatty():
            typer.echo(_friendly(url, home, is_default_home=is_default_home))
        else:
            facts = {"url": url, "docs_url": f"{url}/docs", "home": str(home), "pid": os.getpid()}
            typer.echo(json.dumps(facts))
            sys.stdout.flush()


def _friendly(url: str, home: Path, *, is_default_home: bool) -> str:
    """A command finds the Fleek of the default home by itself; of any other it needs the URL."""
    where = "" if is_default_home else f" --url {url}"
    return (
        f"\n  {typer.style('Fleek is running', bold=True)}\n\n"
        f"  API    {url}\n"
        f"  Docs   {url}/docs\n"
        f"  Data   {home}\n\n"
        "  Try this in another terminal:\n\n"
        f"    {_own_command()} generate {_PROMPT} --output lighthouse.png{where}\n\n"
        "  Ctrl-C stops everything; the data stays\n"
    )


def _own_command() -> str:
    """Fleek's own program as the user can type it, from the folder where this one was started."""
    program = Path(sys.executable).parent / "fleek"
    found = shutil.which("fleek")
    if found is not None and Path(found).resolve() == program.resolve():
        return "fleek"
    with contextlib.suppress(ValueError):
        return shlex.quote(str(program.relative_to(Path.cwd())))
    return shlex.quote(str(program))
