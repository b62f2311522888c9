"""Fleek as a user starts it: `script/up` as a process, in a home of its own, used over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
_READY_SECONDS = 60
_STOP_SECONDS = 10


@dataclass(slots=True)
class Up:
    """A `script/up` that was started, and what it said."""

    process: subprocess.Popen[str]
    errors: Path
    began: float
    facts: dict[str, Any]
    ready_seconds: float = 0

    @property
    def url(self) -> str:
        """The base of its API."""
        return str(self.facts["url"])

    @property
    def said(self) -> str:
        """Its standard error up to now."""
        return self.errors.read_text()

    def wait_ready(self) -> None:
        """Read the one line that says that everything is ready."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], _READY_SECONDS)
        line = self.process.stdout.readline() if readable else ""
        assert line, f"not ready: {self.said}"
        self.ready_seconds = time.monotonic() - self.began
        self.facts = json.loads(line)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Signal it, and wait for its end: the exit code, and what else came on standard output."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=_STOP_SECONDS + 5)
        return self.process.returncode, rest


StartUp = Callable[..., Up]


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A home that does not exist yet, in a folder that an unprivileged user may enter."""
    with _folder() as folder:
        yield folder / "home"


@pytest.fixture(scope="session")
def used_home() -> Iterator[Path]:
    """A home after its first start: made once, for tests to copy."""
    with _folder() as folder:
        up = _start(folder / "home", folder, ["--workers", "0"])
        up.wait_ready()
        code, _ = up.end()
        assert code == 0, up.said
        yield folder / "home"


@pytest.fixture
def home(used_home: Path) -> Iterator[Path]:
    """A home of a test's own, which was started before."""
    with _folder() as folder:
        subprocess.run(["cp", "-a", used_home, folder / "home"], check=True)
        yield folder / "home"


@pytest.fixture
def start_up(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartUp]:
    """A function that starts `script/up`: on the fixture `home` unless told, without workers unless told."""
    started: list[Up] = []

    def start(
        home: Path | None = None,
        *flags: str,
        workers: int = 0,
        ready: bool = True,
        environment: dict[str, str] | None = None,
    ) -> Up:
        folder = tmp_path / f"up-{len(started)}"
        folder.mkdir()
        home = home or request.getfixturevalue("home")
        up = _start(home, folder, ["--workers", str(workers), *flags], environment)
        started.append(up)
        if ready:
            up.wait_ready()
        return up

    yield start
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        up.process.communicate()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """What still runs in the folder at the end is killed: one failed test must not disturb the next."""
    folder = Path(tempfile.mkdtemp(prefix="fleek-home-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for pid in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


def _start(home: Path, folder: Path, flags: Sequence[str], environment: dict[str, str] | None = None) -> Up:
    command = [str(ROOT / "script" / "up"), "--home", str(home), "--port", "0", *flags]
    began = time.monotonic()
    with (folder / "up.err").open("w") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            env=clean_environment(environment),
        )
    return Up(process, folder / "up.err", began, facts={})


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Our environment without settings of Fleek: a developer's own must not decide what tests see."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
    return {**inherited, **(extra or {})}


def processes_of(folder: Path) -> list[int]:
    """Every living process that names the folder in its command line or environment."""
    needle = str(folder).encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            named = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if needle in named and not is_zombie:
                found.append(int(entry.name))
    return found


def gone_within(folder: Path, seconds: float) -> bool:
    """Whether the last process of a home ends in time."""
    deadline = time.monotonic() + seconds
    while processes_of(folder):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
