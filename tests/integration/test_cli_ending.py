"""How the program `fleek` ends: with everything written that can be, and an exit code that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleek import __version__

_SECONDS = 60
"""A bound against hangs."""
_FULL = Path("/dev/full")
_TO_FULL_DISK = pytest.mark.skipif(not _FULL.exists(), reason="this system has no /dev/full")


def run_in_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a shell makes of `fleek` in the command; where something is kept that it prints, in text."""
    called = f'fleek() {{ "{sys.executable}" -m fleek.cli.main "$@"; }}; {command}'
    return subprocess.run(
        ["/bin/sh", "-c", called],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            "FLEEK_HOME": str(folder / "home"),
            "FLEEK_STORAGE_URL": "memory://",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )


@_TO_FULL_DISK
@pytest.mark.parametrize("command", ["--version", "--help", "storage init"])
def test_output_that_finds_no_room_is_a_failure_that_is_named(command: str, tmp_path: Path) -> None:
    ended = run_in_shell(f"fleek {command} > /dev/full", tmp_path)

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: Cannot write the output: No space left on device\nhint: Make room for it\n"
    )


@_TO_FULL_DISK
def test_a_message_that_finds_no_room_leaves_the_exit_code(tmp_path: Path) -> None:
    assert run_in_shell("fleek no-such-command 2> /dev/full", tmp_path).returncode == 2


@_TO_FULL_DISK
def test_output_that_was_held_back_and_finds_no_room_is_a_failure(tmp_path: Path) -> None:
    """As a library's, which leaves the flushing to the end."""
    program = (
        "import atexit; from fleek.cli import main; atexit.register(print, 'held back'); "
        "main.execute = lambda arguments: 0; main.run()"
    )
    (tmp_path / "program.py").write_text(program)
    command = f'"{sys.executable}" program.py'

    assert run_in_shell(f"{command} > /dev/full", tmp_path).returncode == 1
    assert run_in_shell(command, tmp_path).stdout == "held back\n"


@pytest.mark.parametrize(
    ("command", "code"), [("--version", 0), ("storage init --json", 0), ("no-such-command", 2)]
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_changes_nothing_but_what_is_seen(
    command: str, code: int, closed: str, tmp_path: Path
) -> None:
    ended = run_in_shell(f"fleek {command} {closed}", tmp_path)

    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


def test_a_reader_that_has_left_ends_the_command_without_a_word(tmp_path: Path) -> None:
    command = "{ sleep 0.5; fleek --help; echo $? > code; } | true"
    ended = run_in_shell(command, tmp_path)

    assert (tmp_path / "code").read_text() == "1\n"
    assert ended.stderr == ""


def test_everything_goes_through_a_pipe(tmp_path: Path) -> None:
    ended = run_in_shell("fleek --version | cat; fleek storage init --json | cat", tmp_path)
    version, _, document = ended.stdout.partition("\n")

    assert version == __version__
    assert json.loads(document) == {"url": "memory://", "created": False}


def test_what_was_registered_for_the_end_is_done(tmp_path: Path) -> None:
    """Sentry's last envelopes are sent so, and coverage written."""
    program = "import atexit; from fleek.cli.main import run; atexit.register(print, 'done'); run()"
    (tmp_path / "program.py").write_text(program)
    ended = run_in_shell(f'"{sys.executable}" program.py --version', tmp_path)

    assert (ended.returncode, ended.stdout) == (0, f"{__version__}\ndone\n")
