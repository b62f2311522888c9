"""Valkey from the wheel, on a Unix socket, with nothing on disk: whatever it holds can be rebuilt."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from fleek.core.errors import Unavailable
from fleek.local.accounts import Account, make_folder, require_passage, server_account
from fleek.local.process import Escalation, Process, Program, spawn, stop_leftover
from fleek.local.programs import valkey_program

STOP: Escalation = ((signal.SIGTERM, 2.0),)
_POLL_SECONDS = 0.01
_PING_SECONDS = 1.0


@dataclass(slots=True)
class ValkeyServer:
    """The server behind one socket; `copies` is where its program is copied to if its account needs that."""

    socket: Path
    log: Path
    copies: Path
    process: Process | None = field(default=None, init=False)
    _account: Account | None = field(default=None, init=False, repr=False)

    def start(self, timeout: float = 10) -> None:
        """Prepare, launch and wait until it answers.

        Raises ConfigurationError for what the user can change, Unavailable when it does not come up in
        `timeout` seconds.
        """
        self.prepare()
        self.launch()
        self.wait_ready(timeout)

    def prepare(self) -> None:
        """Make its folders and stop a server that outlived its parent."""
        folder = self.socket.parent
        self._account = server_account(folder)
        for parent in (folder.parent, self.log.parent):
            make_folder(parent, mode=0o700 if self._account is None else 0o711)
        make_folder(folder, account=self._account)
        require_passage(self._account, folder)
        stop_leftover(self._pidfile, STOP)

    def launch(self) -> Process:
        """Start the server and return at once; call it where `spawn` may be called."""
        program = valkey_program(self._account, self.copies)
        self.process = spawn(
            Program(
                name="valkey",
                command=[str(program), *_arguments(self.socket)],
                pidfile=self._pidfile,
                death_signal=signal.SIGTERM,
                account=self._account,
                environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                log=self.log,
            )
        )
        return self.process

    def is_ready(self) -> bool:
        """Whether a server answers a ping on the socket."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PING_SECONDS)
            connection.connect(str(self.socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False

    def wait_ready(self, timeout: float = 10) -> None:
        """Return once it answers a ping; raises Unavailable after `timeout` seconds, or if it died."""
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if self.process is None or self.process.poll() is not None:
                message = f"Valkey ended while it started; its log is {self.log}"
                raise Unavailable(message)
            if time.monotonic() >= deadline:
                message = f"Valkey was not ready in {timeout:g} s; its log is {self.log}"
                raise Unavailable(message)
            time.sleep(_POLL_SECONDS)

    def stop(self, escalation: Escalation = STOP) -> None:
        """End the server; returns when it is gone."""
        if self.process is not None:
            self.process.stop(escalation)

    def url(self, database: int = 0) -> str:
        """The URL of one of its numbered databases."""
        return f"unix://{self.socket}?db={database}"

    @property
    def _pidfile(self) -> Path:
        return self.socket.parent.parent / "valkey.pid"


def _arguments(path: Path) -> list[str]:
    """Flags: no TCP, no snapshots, no log of commands, and an error rather than dropped keys when full."""
    flags = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "dir": str(path.parent),
    }
    return [word for name, value in flags.items() for word in (f"--{name}", value)]
