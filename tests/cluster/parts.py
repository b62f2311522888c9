"""The processes of a cluster, each of which can be killed, frozen, told to end, and started again."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

START_SECONDS, STOP_SECONDS = 40, 40
"""Bounds against hangs, on a busy machine."""


class Part:
    """One process, with everything that it has ever said in one log."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = command
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    def launch(self, **environment: str) -> None:
        """Start it, with these additions to its environment; returns at once."""
        self._close_input()
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment | environment,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                cwd=self.log.parent,
            )

    @property
    def pid(self) -> int:
        """The number of the process that was started last."""
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """Below 0: the signal that ended it; None while it runs."""
        return self._running.poll()

    @property
    def said(self) -> str:
        """What the process that was started last has said."""
        with self.log.open("rb") as file:
            file.seek(self._said_before)
            return file.read().decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it has not ended."""
        self._running.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.send(signal.SIGKILL)
        self._running.wait()

    def freeze(self) -> None:
        """SIGSTOP: it does nothing, and does not know."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)

    def wait_end(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code, once it has ended by itself; TimeoutExpired when that takes too long."""
        return self._running.wait(seconds)

    def end(self) -> int:
        """SIGTERM, and wait."""
        self.send(signal.SIGTERM)
        return self.wait_end()

    def close(self) -> None:
        """Kill what runs, however it stands."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._close_input()

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def is_ready(self) -> bool:
        """Whether it does its work."""
        return True

    def start(self, **environment: str) -> None:
        """Launch it and wait until it works; AssertionError with its words when it does not."""
        self.launch(**environment)
        self.wait_ready()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Return once it does its work."""
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            assert self.exit_code is None, f"{self.name} ended with {self.exit_code}: {self.said}"
            assert time.monotonic() < deadline, f"{self.name} is not ready: {self.said}"
            time.sleep(0.02)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, f"{self.name} was never started"
        return self._process


class ApiPart(Part):
    """`fleek api`, on a port that it keeps over restarts."""

    def __init__(self, name: str, environment: Mapping[str, str], log: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        super().__init__(name, _fleek("api", "--port", str(port)), environment, log)
        self.url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        """Whether it answers at all; whether it is well is another question."""
        try:
            return httpx2.get(f"{self.url}/livez", timeout=2).status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False


class WorkerPart(Part):
    """`fleek worker`."""

    def __init__(self, name: str, environment: Mapping[str, str], log: Path, *flags: str) -> None:
        super().__init__(name, _fleek("worker", *flags), environment, log)

    def is_ready(self) -> bool:
        """Whether it claims."""
        return "worker_started" in self.said


class SpeakingPart(Part):
    """A helper of ours that says in one line on its standard output where it can be reached.

    It ends when its standard input does, which a killed test cannot prevent.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        root = Path(__file__).parent.parent.parent
        environment = dict(os.environ) | {"PYTHONPATH": str(root)}
        super().__init__(name, [sys.executable, *arguments], environment, log)
        self.line = ""

    def launch(self, **environment: str) -> None:
        """Start it and read its line."""
        with self.log.open("ab") as errors:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        self.line = self._process.stdout.readline().decode().strip() if readable else ""
        assert self.line, f"{self.name} did not start: {self.log.read_text()}"

    def close(self) -> None:
        """Kill it."""
        super().close()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()


class VendorPart(SpeakingPart):
    """The fake Replicate, with its ledger in a file. Never kill it: a vendor does not forget its orders."""

    def __init__(self, ledger: Path, log: Path, seed: int) -> None:
        arguments = ["-m", "tests.replicate_server", "--ledger", str(ledger), "--seed", str(seed)]
        super().__init__("vendor", arguments, log)
        self._ledger = ledger

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return str(json.loads(self.line)["base_url"]).removesuffix("/v1")

    @property
    def token(self) -> str:
        """The key that it accepts."""
        return str(json.loads(self.line)["token"])

    def on(self, route: str, **script: Any) -> None:
        """What happens to requests of a route: the arguments of `ReplicateServer.on`."""
        httpx2.post(f"{self.origin}/admin/rules", json={"on": route, **script}).raise_for_status()

    def forget_rules(self) -> None:
        """Behave again."""
        httpx2.delete(f"{self.origin}/admin/rules").raise_for_status()

    def change(self, prediction_id: str, **values: bool) -> None:
        """Such as `lost=True` or `expired=True`."""
        httpx2.post(f"{self.origin}/admin/predictions/{prediction_id}", json=values).raise_for_status()

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Every create that arrived; `id` is None for those that were refused and cost nothing."""
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        return [json.loads(line) for line in lines]


def _fleek(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fleek.cli.main", *arguments]
