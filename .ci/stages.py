"""Runs what a change must pass: the linters, then the tests; fails if they leave a process behind.

Each stage is bounded in time. On Linux this process adopts whatever a stage orphans, so nothing can hide.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = (("lint", 60), ("test", 830))
"""Scripts and the seconds that each may take."""
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_SECONDS = 10


def main() -> int:
    """The exit code: 0 when every stage passed and left nothing running."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    begin = time.monotonic()
    results = [run_stage(name, limit) for name, limit in STAGES]
    passed = all(results)
    report("all stages", passed=passed, seconds=time.monotonic() - begin)
    return 0 if passed else 1


def run_stage(name: str, limit: float) -> bool:
    """Run one script; whether it passed, in time, and left no process."""
    begin = time.monotonic()
    with subprocess.Popen([ROOT / "script" / name], cwd=ROOT, start_new_session=True) as stage:
        try:
            passed = stage.wait(limit) == 0
        except subprocess.TimeoutExpired:
            print(f"ci: {name} took longer than {limit} s", flush=True)
            os.killpg(stage.pid, signal.SIGKILL)
            passed = False
    leftovers = end_leftovers()
    for command in leftovers:
        print(f"ci: {name} left a process behind: {command}", flush=True)
    passed = passed and not leftovers
    report(name, passed=passed, seconds=time.monotonic() - begin)
    return passed


def end_leftovers() -> list[str]:
    """Give orphans a while to end, then kill the rest; the command lines of those that had to be."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while living_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    killed = []
    while children := living_children():
        for pid in children:
            killed.append(command_line(pid))
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    return killed


def living_children() -> list[int]:
    """Our children, adopted ones too, after collecting those that have ended."""
    if sys.platform != "linux":
        return []
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        return []
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def command_line(pid: int) -> str:
    """What a process was started as."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return f"process {pid}"


def report(name: str, *, passed: bool, seconds: float) -> None:
    """One line a stage."""
    print(f"ci: {name} {'passed' if passed else 'FAILED'} in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
