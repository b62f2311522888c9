"""`fleek doctor`: whether everything that Fleek needs is there."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from fleek.cli.exits import ExitCode
from fleek.cli.output import JsonOption, Output, clean, use_colour
from fleek.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fleek.cli.findings import Finding

_MARKS = {
    "ok": ("ok", "green"),
    "warning": ("warn", "yellow"),
    "failed": ("fail", "red"),
    "skipped": ("skip", None),
}


def doctor(
    *,
    test_error: Annotated[
        bool, typer.Option("--test-error", help="Check nothing; report one test error to Sentry")
    ] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Check everything that Fleek needs, and say how to repair what is wrong.

    Uses the configuration of this environment. Exits with 1 when a check failed, and with 2 when it is the
    configuration that is wrong.
    """
    if test_error:
        findings = [_test_error()]
        _tell(findings, as_json=as_json)
        return
    try:
        findings = _examine()
    except ConfigurationError as error:
        _tell([_broken(error)], as_json=as_json, exit_code=ExitCode.USAGE)
        return
    _tell(findings, as_json=as_json)


def _tell(findings: list[Finding], *, as_json: bool, exit_code: ExitCode = ExitCode.FAILED) -> None:
    """Print what was found; raises Exit with the code when something failed."""
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
        raise typer.Exit(exit_code)


def _test_error() -> Finding:
    from fleek.cli.findings import failed, ok  # noqa: PLC0415  other commands start faster without all of this
    from fleek.reporting import send_test_report  # noqa: PLC0415
    from fleek.settings import load_settings  # noqa: PLC0415

    sent = send_test_report(load_settings())
    found = (
        ok(sent.detail) if sent.accepted else failed(sent.detail, "check SENTRY_DSN, and the way to its host")
    )
    return replace(found, name="error report")


def _broken(error: ConfigurationError) -> Finding:
    from fleek.cli.findings import failed  # noqa: PLC0415  see above

    return replace(failed(error.message, "correct it where it was given"), name="configuration")


def _examine() -> list[Finding]:
    import asyncio  # noqa: PLC0415  other commands start faster without all of this

    from fleek.cli import checks  # noqa: PLC0415
    from fleek.settings import load_settings  # noqa: PLC0415

    return asyncio.run(checks.examine(load_settings()))


def _print(finding: Finding) -> None:
    mark, colour = _MARKS[finding.verdict]
    label = f"{mark:4}"
    if use_colour(sys.stdout) and colour is not None:
        label = typer.style(label, fg=colour)
    typer.echo(f"{label}  {finding.name:13}  {clean(finding.detail)}")
    if finding.remedy:
        typer.echo(f"{'':6}{'':13}  -> {clean(finding.remedy)}")
