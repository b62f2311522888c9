"""`script/chaos` as a user runs it: for a minute parts die, and nothing is lost, done twice or paid twice."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.acceptance.conftest import ROOT, clean_environment, gone_within, processes_of

SEED = "3656"
"""Its minute has, among others, every part killed, a worker frozen, replies lost and an order trapped."""
RUN_SECONDS, STOP_SECONDS = 420, 60
"""Bounds against hangs, on a busy machine."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the program puts its temporary folders; an unprivileged user may enter it."""
    path = Path(tempfile.mkdtemp(prefix="fleek-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    path.rmdir()


@contextmanager
def chaos(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(ROOT / "script" / "chaos"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment({"TMPDIR": str(folder)}),
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=STOP_SECONDS)


def test_a_minute_of_chaos_breaks_no_promise_and_leaves_nothing(folder: Path) -> None:
    with chaos(folder, "--seed", SEED, "--minutes", "1", "--jobs", "120", "--json") as process:
        said, errors = process.communicate(timeout=RUN_SECONDS)

    assert process.returncode == 0, f"{errors}\n{said}"
    report = json.loads(said)
    assert (report["holds"], report["accepted"]) == (True, 120)
    assert sum(report["jobs"].values()) == 120
    assert sum(report["faults"].values()) >= 10
    checked = {row["name"]: row["checked"] for row in report["invariants"] if not row["broken"]}
    assert len(checked) == len(report["invariants"]) >= 19
    assert all(checked.values()), checked
    assert (processes_of(folder), list(folder.iterdir())) == ([], [])


def test_a_run_that_is_interrupted_stops_all_that_it_started(folder: Path) -> None:
    """And leaves no folder either, since nobody asked to keep one."""
    with chaos(folder, "--seed", SEED, "--minutes", "5", "--jobs", "600") as process:
        journal = wait_for_journal(folder)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=STOP_SECONDS)

    assert process.returncode == 130, errors
    assert journal
    assert gone_within(folder, STOP_SECONDS)
    assert list(folder.iterdir()) == []


def test_a_schedule_is_shown_without_starting_anything(folder: Path) -> None:
    shown = []
    for _ in range(2):
        with chaos(folder, "--seed", "7", "--minutes", "10", "--list-faults") as process:
            shown.append(process.communicate(timeout=STOP_SECONDS)[0])

    assert shown[0] == shown[1]
    assert len(shown[0].splitlines()) > 100


def test_an_unknown_fault_is_wrong_usage(folder: Path) -> None:
    with chaos(folder, "--faults", "kill_worker,earthquake") as process:
        _, errors = process.communicate(timeout=STOP_SECONDS)

    assert process.returncode == 2
    assert "no such fault: earthquake" in errors


def wait_for_journal(folder: Path) -> bool:
    """Whether clients have begun."""
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        if any(path.stat().st_size for path in folder.glob("*/journal.jsonl")):
            return True
        time.sleep(0.1)
    return False
