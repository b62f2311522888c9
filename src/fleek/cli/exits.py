"""How a command ends: its exit codes, and the one error that carries such a code and a hint."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from fleek.core.errors import ConfigurationError, FleekError, InvalidRequest, Unavailable


class ExitCode(IntEnum):
    """Documented in `docs/reference/cli.md`; scripts rely on them."""

    OK = 0
    FAILED = 1
    """The job failed or was canceled, its result could not be saved, or a check of the doctor failed."""
    USAGE = 2
    """The command or the request is wrong; trying again without a change is of no use."""
    UNREACHABLE = 3
    """Fleek, or a part of it, does not answer or answers with a server error."""
    BUG = 70
    """Something that nobody expected; the number is that of `EX_SOFTWARE` in sysexits.h."""
    TIMED_OUT = 124
    """`--timeout` passed; the job goes on."""
    INTERRUPTED = 130
    """Ctrl-C; the job goes on unless it was canceled."""
    TERMINATED = 143
    """SIGTERM; the job goes on."""


class CommandError(FleekError):
    """A command cannot do what it was asked for.

    `message` says what is wrong, `hint` what to do about it. `facts` are added to the problem that
    `--json` prints.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: ExitCode,
        code: str,
        hint: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.problem_code = code
        self.hint = hint
        self.facts = dict(facts or {})


def usage_error(message: str, hint: str | None = None) -> CommandError:
    """The command line asks for something that makes no sense."""
    return CommandError(message, exit_code=ExitCode.USAGE, code="usage", hint=hint)


def unreachable(message: str, hint: str | None = None) -> CommandError:
    """Fleek does not answer."""
    return CommandError(message, exit_code=ExitCode.UNREACHABLE, code="unreachable", hint=hint)


def as_command_error(error: FleekError) -> CommandError:
    """The exit code of every error that the rest of Fleek raises."""
    if isinstance(error, CommandError):
        return error
    exit_code = ExitCode.FAILED
    if isinstance(error, ConfigurationError | InvalidRequest):
        exit_code = ExitCode.USAGE
    elif isinstance(error, Unavailable):
        exit_code = ExitCode.UNREACHABLE
    return CommandError(error.message, exit_code=exit_code, code=error.code)
