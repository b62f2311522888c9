"""The command line. Server code is imported inside of commands only: `fleek --help` must not wait for it."""

from __future__ import annotations

import atexit
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from fleek import __version__
from fleek.cli import db, jobs, models, storage
from fleek.cli.backup import backup, restore
from fleek.cli.doctor import doctor
from fleek.cli.exits import CommandError, ExitCode, as_command_error
from fleek.cli.generate import generate
from fleek.cli.health import health
from fleek.cli.output import report
from fleek.cli.prune import prune
from fleek.cli.serve import api, worker
from fleek.cli.up import up
from fleek.core.errors import FleekError

_EPILOG = """
Data goes to stdout, everything else to stderr. With --json stdout is JSON, and an error is one JSON
problem (RFC 9457) on stderr with its `exit_code` and a `hint`.

Exit codes: 0 ok, 1 the job failed, 2 usage or a refused request, 3 Fleek does not answer,
124 --timeout passed, 130 interrupted.
"""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ORDER = (
    "generate",
    "jobs",
    "models",
    "up",
    "doctor",
    "api",
    "worker",
    "health",
    "db",
    "storage",
    "prune",
    "backup",
    "restore",
)


class InOrder(TyperGroup):
    """Lists the commands by how often they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401  the parser's own, private type
        """The names, in the order of the help."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    name="fleek",
    cls=InOrder,
    help="One durable HTTP API in front of any media-generation model",
    epilog=_EPILOG,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command()(generate)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.command()(up)
app.command()(api)
app.command()(worker)
app.command()(health)
app.add_typer(db.app, name="db")
app.add_typer(storage.app, name="storage")
app.command()(prune)
app.command()(backup)
app.command()(restore)
app.command()(doctor)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    """Print the version, or the help where nothing else is asked for."""
    if show_version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run() -> None:
    """The program `fleek`."""
    _open_closed_streams()
    if any(Path(name).exists() for name in (".env", ".env.local")):
        _export_shared_names()
    try:
        code = execute(sys.argv[1:])
    except SystemExit as ended:
        # The server's own, and the parser's where the reader of a pipe is gone: always a number.
        code = ended.code if isinstance(ended.code, int) else int(ExitCode.FAILED)
    _end(code)


def _open_closed_streams() -> None:
    """Python has None for what the caller has closed (`>&-`), which nothing can be written to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  until the end


def _export_shared_names() -> None:
    from fleek.configuration.dotenv import export_shared_names  # noqa: PLC0415  most folders have no such file

    # One that cannot be read is told by the commands that read settings, and concerns no others.
    with suppress(FleekError):
        export_shared_names(os.environ)


def _end(code: int) -> NoReturn:
    """Exit as usual, but for taking the interpreter down.

    A thread of obstore may just be letting go of its last Python object: until Python 3.14 that aborts a
    process whose interpreter is going down, and a command that has done its work ends with 134.
    """
    atexit._run_exitfuncs()  # noqa: SLF001  os._exit does not run them, and nothing public does
    arrived = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    os._exit(code if all(arrived) else code or int(ExitCode.FAILED))


def _flush(stream: TextIO) -> bool:
    """Whether everything has been written, or was not wanted: the reader is gone, or it was closed."""
    try:
        stream.flush()
    except (BrokenPipeError, ValueError):
        return True
    except OSError:
        return False
    return True


def execute(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Never shows a traceback, unless FLEEK_DEBUG is set."""
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_encode(stream)
    try:
        code = app(arguments, prog_name="fleek", standalone_mode=False)
    except Exception as error:  # noqa: BLE001  whatever it is, the user gets one line
        failure = _as_command_error(error)
        if os.environ.get("FLEEK_DEBUG"):
            traceback.print_exc()
        # Where that cannot be told either, the exit code still says it.
        with suppress(OSError):
            report(failure, as_json=_wants_json(arguments))
        return int(failure.exit_code)
    return code if isinstance(code, int) else int(ExitCode.OK)


def _as_command_error(error: Exception) -> CommandError:
    if isinstance(error, FleekError):
        return as_command_error(error)
    if isinstance(error, Abort):
        return CommandError("Interrupted", exit_code=ExitCode.INTERRUPTED, code="interrupted")
    if isinstance(error, TyperException):
        return _as_usage_error(error)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        # Commands that save files have words of their own.
        message = f"Cannot write the output: {error.strerror}"
        return CommandError(message, exit_code=ExitCode.FAILED, code="output_lost", hint="Make room for it")
    message = f"Something that nobody expected happened: {type(error).__name__}: {error}"
    hint = "FLEEK_DEBUG=1 shows where; please report it"
    return CommandError(message, exit_code=ExitCode.BUG, code="internal_error", hint=hint)


def _as_usage_error(error: TyperException) -> CommandError:
    """What the parser found, in the voice of the other messages."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "fleek"
    message = error.format_message().strip().removesuffix(".")
    return CommandError(
        message, exit_code=ExitCode.USAGE, code="usage", hint=f"`{command} --help` shows what it takes"
    )


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` stands among the options; the parser may have failed before it came to it."""
    options = list(arguments)
    if "--" in options:
        options = options[: options.index("--")]
    return "--json" in options


def _never_fail_to_encode(stream: TextIO) -> None:
    """A prompt in any script must not end the command in a terminal that knows only another one."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    run()
