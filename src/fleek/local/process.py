"""Child processes that end with their parent, and pidfiles for those that did not.

On Linux the kernel signals a child when the *thread* that started it ends: call `spawn` from the main thread,
or from one that lives as long as the child shall.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleek.local import launch
from fleek.local.accounts import Account

_POLL_SECONDS = 0.02
_ROTATE_BYTES = 10 * 1024 * 1024

Escalation = Sequence[tuple[signal.Signals, float]]
"""Signals to send one after the other, each with the seconds that its effect may take; SIGKILL follows."""


@dataclass(frozen=True, slots=True)
class Program:
    """What to start, and how it ends.

    `death_signal` is what it gets when this process dies; `log` takes its output (None: our standard
    error); `inherit` are file descriptors that it keeps; `standard_input` is what it can read, a few kB.
    """

    name: str
    command: Sequence[str]
    pidfile: Path
    death_signal: signal.Signals = signal.SIGKILL
    account: Account | None = None
    environment: Mapping[str, str] | None = None
    log: Path | None = None
    inherit: Sequence[int] = ()
    standard_input: bytes = b""


@dataclass(slots=True)
class Process:
    """A running child."""

    program: Program
    popen: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """The process id; it stays reserved until `poll` has seen the end."""
        return self.popen.pid

    def poll(self) -> int | None:
        """The exit code (below 0: the signal that ended it), or None while it runs."""
        ended_before = self.popen.returncode is not None
        code = self.popen.poll()
        if code is not None and not ended_before:
            self._kill_group()
            self.program.pidfile.unlink(missing_ok=True)
        return code

    def wait(self, seconds: float) -> bool:
        """Whether the process ended in time."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def send(self, number: signal.Signals) -> None:
        """Signal the child, if it has not ended."""
        if self.poll() is None:
            self.popen.send_signal(number)

    def stop(self, escalation: Escalation) -> None:
        """End the child, the gentle way first; returns when it is gone, with what is left of its group."""
        for number, seconds in escalation:
            self.send(number)
            if self.wait(seconds):
                break
        self.kill()

    def kill(self) -> None:
        """End the child and every process of its group now."""
        if self.poll() is None:
            self._kill_group()
            self.popen.wait()
            self.program.pidfile.unlink(missing_ok=True)

    def _kill_group(self) -> None:
        """Called while the number is ours, or was a moment ago: systems hand numbers out in turn."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def spawn(program: Program) -> Process:
    """Start a program in a process group of its own, so that a terminal's Ctrl-C reaches only its parent."""
    account = program.account
    output = _open_log(program.log)
    prefix = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(int(program.death_signal))]
    identity = [str(account.uid), str(account.gid)] if account else ["-1", "-1"]
    try:
        popen = subprocess.Popen(  # noqa: S603  the command is ours
            [*prefix, *identity, *program.command],
            stdin=subprocess.PIPE if program.standard_input else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if program.environment is None else dict(program.environment),
            cwd="/" if account else None,
            pass_fds=tuple(program.inherit),
            process_group=0,
        )
    finally:
        if program.log is not None:
            os.close(output)
    _write_pidfile(program.pidfile, popen.pid)
    if popen.stdin is not None:
        with contextlib.suppress(BrokenPipeError), popen.stdin:
            popen.stdin.write(program.standard_input)
    return Process(program, popen)


def stop_leftover(pidfile: Path, escalation: Escalation) -> bool:
    """End the process that an earlier, killed parent left behind; whether there was one.

    The pidfile holds the time at which the process started, so a number that the system has since given to
    another program is never signalled.
    """
    try:
        record = json.loads(pidfile.read_text())
        pid, started = int(record["pid"]), str(record["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    found = stop_process(pid, started, escalation)
    pidfile.unlink(missing_ok=True)
    return found


def stop_process(pid: int, started: str, escalation: Escalation) -> bool:
    """End a process that is not our child; whether it was there, with this start time."""
    if started_at(pid) != started:
        return False
    for number, seconds in [*escalation, (signal.SIGKILL, 5.0)]:
        _signal_if_same(pid, started, number)
        if _wait_gone(pid, started, seconds):
            break
    return True


def started_at(pid: int) -> str | None:
    """What tells a process from a later one with the same number; None when it is gone or a zombie."""
    return _started_at_linux(pid) if sys.platform == "linux" else _started_at_elsewhere(pid)


def _started_at_elsewhere(pid: int) -> str | None:
    found = subprocess.run(  # noqa: S603  a fixed command
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = found.stdout.strip().partition(" ")
    return started.strip() if state and not state.startswith("Z") else None


def _started_at_linux(pid: int) -> str | None:
    """Boot id and start time in clock ticks: fields 3 and 22 of `/proc/PID/stat`, proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else f"{boot}:{fields[19]}"


def _signal_if_same(pid: int, started: str, number: signal.Signals) -> None:
    """Signal a process unless its number has a new owner; on Linux without a gap between look and signal."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "linux":
            descriptor = os.pidfd_open(pid)
            try:
                if started_at(pid) == started:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)
        elif started_at(pid) == started:
            os.kill(pid, number)


def _wait_gone(pid: int, started: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while started_at(pid) == started:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _open_log(log: Path | None) -> int:
    """A descriptor to append to; a log that grew large becomes `NAME.1` first."""
    if log is None:
        return sys.__stderr__.fileno() if sys.__stderr__ else os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _ROTATE_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
    return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _write_pidfile(pidfile: Path, pid: int) -> None:
    """Written beside and renamed: a reader never sees half of it."""
    draft = pidfile.with_name(f"{pidfile.name}.new")
    draft.write_text(json.dumps({"pid": pid, "started": started_at(pid)}))
    draft.replace(pidfile)
