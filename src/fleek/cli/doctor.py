"""`fleek doctor`: whether everything that Fleek needs is there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fleek.cli.exits import ExitCode
from fleek.cli.output import JsonOption, Output, clean, use_colour

if TYPE_CHECKING:
    from fleek.cli.findings import Finding

_MARKS = {
    "ok": ("ok", "green"),
    "warning": ("warn", "yellow"),
    "failed": ("fail", "red"),
    "skipped": ("skip", None),
}


def doctor(*, as_json: Annotated[bool, JsonOption] = False) -> None:
    """Check everything that Fleek needs, and say how to repair what is wrong.

    Uses the configuration of this environment. Exits with 1 when a check failed.
    """
    findings = _examine()
    is_well = not any(finding.verdict == "failed" for finding in findings)
    if as_json:
        checks = [
            {"name": found.name, "status": found.verdict, "detail": found.detail, "remedy": found.remedy}
            for found in findings
        ]
        Output(as_json).document({"ok": is_well, "checks": checks})
    else:
        for finding in findings:
            _print(finding)
    if not is_well:
        raise typer.Exit(ExitCode.FAILED)


def _examine() -> list[Finding]:
    import asyncio  # noqa: PLC0415  other commands start faster without all of this

    from fleek.cli import checks, findings  # noqa: PLC0415
    from fleek.core.errors import ConfigurationError  # noqa: PLC0415
    from fleek.settings import load_settings  # noqa: PLC0415

    try:
        settings = load_settings()
    except ConfigurationError as error:
        broken = findings.failed(error.message, "correct the environment, .env or fleek.toml")
        return [findings.Finding("configuration", broken.verdict, broken.detail, broken.remedy)]
    return asyncio.run(checks.examine(settings))


def _print(finding: Finding) -> None:
    mark, colour = _MARKS[finding.verdict]
    label = f"{mark:4}"
    if use_colour(sys.stdout) and colour is not None:
        label = typer.style(label, fg=colour)
    typer.echo(f"{label}  {finding.name:13}  {clean(finding.detail)}")
    if finding.remedy:
        typer.echo(f"{'':6}{'':13}  -> {clean(finding.remedy)}")
