"""What commands print: data on standard output, everything else on standard error.

Prompts and error messages come from other people, so nothing of theirs reaches a terminal before its
control characters are made visible: otherwise a prompt could move the cursor or forge a line.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

import typer

from fleek.cli.exits import CommandError, ExitCode

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: escape sequences begin with one of these
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # reorder what follows them on the line
    "\u2028\u2029"  # break the line
    "\ud800-\udfff]"  # halves of a character, which cannot be encoded
)
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_LEAST_LAST = 12
"""Characters that the last column of a table has at least."""
_STATUS_STYLES = {"completed": "green", "error": "red", "canceled": "yellow", "processing": "cyan"}

JsonOption = typer.Option("--json", help="Print JSON on stdout; errors are one JSON problem on stderr")


def clean(text: str) -> str:
    """The text on one line, with control characters as visible escapes, as Python writes them."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT_ESCAPES.get(character) or (f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}")  # noqa: PLR2004  the last code point that two digits can write


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON that is safe on a terminal too: characters that it could obey are written as escapes."""
    text = json.dumps(value, ensure_ascii=not _speaks_utf8(sys.stdout), indent=indent)
    # json escapes C0 by itself, so what is left to escape stands inside of strings.
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def _speaks_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def use_colour(stream: TextIO) -> bool:
    """Whether colours and moving bars are welcome there; NO_COLOR is https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True, slots=True)
class Output:
    """Where one command prints. With `as_json`, standard error stays empty unless the command fails."""

    as_json: bool = False

    def data(self, text: str) -> None:
        """One line of data, as it is: a path, an id."""
        typer.echo(text)

    def document(self, value: object) -> None:
        """One JSON document."""
        typer.echo(to_json(value, indent=2))

    def line(self, value: object) -> None:
        """One JSON document on one line, of many."""
        typer.echo(to_json(value))

    def note(self, message: str, hint: str | None = None) -> None:
        """Something worth knowing."""
        if not self.as_json:
            _say("", message, hint)

    def warn(self, message: str, hint: str | None = None) -> None:
        """Something that may surprise."""
        if not self.as_json:
            _say("warning", message, hint, typer.colors.YELLOW)

    def rows(self, titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table on a terminal; otherwise lines of tab-separated values, without the titles."""
        cleaned = [[clean(_text(cell)) for cell in row] for row in rows]
        if sys.stdout.isatty():
            _print_table(titles, cleaned)
        else:
            for row in cleaned:
                typer.echo("\t".join(row))

    def facts(self, facts: Mapping[str, object]) -> None:
        """Names and values; those without a value are left out on a terminal."""
        if sys.stdout.isatty():
            width = max((len(name) for name in facts), default=0)
            shown = ((name, _text(value)) for name, value in facts.items())
            lines = [f"{name:{width}}  {clean(value)}" for name, value in shown if value]
        else:
            lines = [f"{name}\t{clean(_text(value))}" for name, value in facts.items()]
        for line in lines:
            typer.echo(line)


def report(error: CommandError, *, as_json: bool) -> None:
    """Tell on standard error why the command failed."""
    if as_json:
        typer.echo(to_json(problem(error)), err=True)
        return
    # Whoever pressed Ctrl-C knows that it is no error.
    label = "" if error.exit_code in {ExitCode.INTERRUPTED, ExitCode.TERMINATED} else "error"
    _say(label, error.message, None, typer.colors.RED)
    for violation in error.facts.get("errors") or ():
        _say("", f"  {violation.get('pointer') or 'body'}: {violation.get('message')}", None)
    if error.hint:
        _say("hint", error.hint, None, typer.colors.CYAN)


def problem(error: CommandError) -> dict[str, Any]:
    """The error as a problem (RFC 9457); what a server said comes through, ours is added."""
    ours = {"detail": error.message, "code": error.problem_code}
    added = {"hint": error.hint, "exit_code": int(error.exit_code)}
    return {"type": "about:blank", "title": error.message, **ours, **error.facts, **added}


def _text(value: object) -> str:
    """A cell's text: nothing for None, JSON for what has parts."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return str(value)


def _shorten(cell: str, now: datetime) -> str:
    """A moment as its age: in 80 columns a table has no room for more. `now` is aware."""
    if _MOMENT.fullmatch(cell) is None:
        return cell
    seconds = max(int((now - datetime.fromisoformat(cell)).total_seconds()), 0)
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit} ago"
    return f"{seconds}s ago"


def _say(label: str, message: str, hint: str | None, colour: str | None = None) -> None:
    prefix = ""
    if label:
        prefix = f"{label}: "
        if use_colour(sys.stderr):
            prefix = typer.style(prefix, fg=colour, bold=True)
    typer.echo(f"{prefix}{clean(message)}", err=True)
    if hint:
        _say("hint", hint, None, typer.colors.CYAN)


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  rich costs 0.1 s, and pipes need none of it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    now = datetime.now(UTC)
    shown = [[_shorten(cell, now) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(titles, *shown, strict=True)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, width in zip(titles[:-1], widths[:-1], strict=True):
        table.add_column(title, no_wrap=True, min_width=width)
    table.add_column(titles[-1], no_wrap=True, min_width=_LEAST_LAST)
    for row in shown:
        # Text objects hold no markup: a prompt such as `[red]` is printed as it is.
        table.add_row(*(Text(cell, style=_STATUS_STYLES.get(cell, "")) for cell in row))
    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    # Half an id is of no use: a terminal that is too narrow breaks the lines instead.
    console.width = max(console.width, sum(widths[:-1]) + 2 * len(widths) + _LEAST_LAST)
    console.print(table)
