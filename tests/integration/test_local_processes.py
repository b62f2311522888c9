"""Child processes that end with their parent, and the leftovers of parents that were killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleek.local.accounts import server_account
from fleek.local.process import Process, Program, spawn, started_at, stop_leftover

_TERM = ((signal.SIGTERM, 5.0),)
_needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux signals a child at its parent's end"
)
_needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

_PARENT = """
import signal, sys, time
from pathlib import Path
from fleek.local.process import Program, spawn
child = spawn(Program("child", sys.argv[2:], Path(sys.argv[1]), signal.SIGTERM))
print(child.pid, flush=True)
time.sleep(60)
"""
_IGNORES_SIGTERM = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)
_HAS_A_CHILD = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Start a Python program that logs into `tmp_path / "log"`; killed after the test."""
    started: list[Process] = []

    def start_program(code: str) -> Process:
        command = [sys.executable, "-c", code]
        started.append(spawn(Program("program", command, tmp_path / "program.pid", log=tmp_path / "log")))
        return started[-1]

    yield start_program
    for process in started:
        process.kill()


@_needs_linux
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """SIGKILL leaves the parent no chance to tell anybody."""
    command = [sys.executable, "-c", _PARENT, str(tmp_path / "child.pid"), "/bin/sleep", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert started_at(child) is not None
        parent.kill()

    assert _is_gone_within(child, seconds=5)


def test_stop_kills_a_child_that_ignores_the_signal(start: Callable[[str], Process], tmp_path: Path) -> None:
    process = start(_IGNORES_SIGTERM)
    _wait_for_log(tmp_path / "log")

    process.stop([(signal.SIGTERM, 0.2)])

    assert process.poll() == -signal.SIGKILL


def test_a_dead_child_takes_its_own_children_along(start: Callable[[str], Process], tmp_path: Path) -> None:
    process = start(_HAS_A_CHILD)
    grandchild = int(_wait_for_log(tmp_path / "log"))

    process.stop(_TERM)

    assert _is_gone_within(grandchild, seconds=5)


def test_the_pidfile_is_removed_with_the_child(start: Callable[[str], Process], tmp_path: Path) -> None:
    process = start("import time; time.sleep(60)")
    written = json.loads((tmp_path / "program.pid").read_text())

    process.stop(_TERM)

    assert written["pid"] == process.pid
    assert not (tmp_path / "program.pid").exists()


def test_a_leftover_is_stopped_by_its_pidfile(start: Callable[[str], Process], tmp_path: Path) -> None:
    """As at the next start, after a parent on a system that does not signal children."""
    process = start("import time; time.sleep(60)")

    found = stop_leftover(tmp_path / "program.pid", _TERM)

    assert found
    assert process.poll() == -signal.SIGTERM


def test_a_leftover_that_ignores_the_signal_is_killed(
    start: Callable[[str], Process], tmp_path: Path
) -> None:
    process = start(_IGNORES_SIGTERM)
    _wait_for_log(tmp_path / "log")

    found = stop_leftover(tmp_path / "program.pid", [(signal.SIGTERM, 0.2)])

    assert found
    assert process.poll() == -signal.SIGKILL


def test_a_number_that_belongs_to_another_program_now_is_not_signalled(
    start: Callable[[str], Process], tmp_path: Path
) -> None:
    process = start("import time; time.sleep(60)")
    pidfile = tmp_path / "stale.pid"
    pidfile.write_text(json.dumps({"pid": process.pid, "started": "an earlier boot:1"}))

    found = stop_leftover(pidfile, _TERM)

    assert not found
    assert process.poll() is None
    assert not pidfile.exists()


@pytest.mark.parametrize("content", [None, "", "12", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_pidfile_that_says_nothing_is_ignored(tmp_path: Path, content: str | None) -> None:
    pidfile = tmp_path / "odd.pid"
    if content is not None:
        pidfile.write_text(content)

    assert not stop_leftover(pidfile, _TERM)


def test_a_zombie_counts_as_gone() -> None:
    """A container's first process often never collects them, and nothing would end the wait."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        assert started_at(process.pid) is None


def test_a_program_that_does_not_exist_ends_as_a_shell_would_say(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawn(Program("missing", ["/no/such/program"], tmp_path / "missing.pid", log=log))

    assert process.wait(10)
    assert process.poll() == 127
    assert "/no/such/program" in log.read_text()


def test_a_child_reads_the_given_input_and_keeps_the_given_descriptors(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    code = f"import os, sys; os.write({writer}, sys.stdin.buffer.read())"
    command = [sys.executable, "-c", code]
    process = spawn(
        Program("child", command, tmp_path / "child.pid", inherit=[writer], standard_input=b"words")
    )
    os.close(writer)

    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"words"
    assert process.wait(10)
    assert process.poll() == 0


def test_a_log_that_grew_large_is_put_aside(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(11 * 1024 * 1024)
    process = spawn(Program("echo", ["/bin/echo", "new"], tmp_path / "echo.pid", log=log))

    assert process.wait(10)
    assert log.read_text() == "new\n"
    assert (tmp_path / "log.1").stat().st_size == 11 * 1024 * 1024


@_needs_root
def test_root_starts_servers_as_somebody_without_privileges(tmp_path: Path) -> None:
    log = tmp_path / "log"
    account = server_account(tmp_path / "data")
    process = spawn(Program("id", ["/usr/bin/id"], tmp_path / "id.pid", account=account, log=log))

    assert account is not None
    assert process.wait(10)
    assert log.read_text().startswith(f"uid={account.uid}({account.name}) gid={account.gid}")
    assert "root" not in log.read_text()


def _wait_for_log(log: Path) -> str:
    deadline = time.monotonic() + 10
    while not log.exists() or not log.read_text():
        assert time.monotonic() < deadline, "the program said nothing"
        time.sleep(0.01)
    return log.read_text()


def _is_gone_within(pid: int, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while started_at(pid) is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True
