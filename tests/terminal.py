"""A command on a terminal of its own, where keys can be pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class Terminal:
    """A command on a terminal of its own."""

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str],
        columns: int = 120,
    ) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(self._ours, (40, columns))
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
            # Ctrl-C reaches only the process group whose terminal it is typed on.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no other thread runs
        )
        os.close(theirs)
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, keys: bytes) -> None:
        """Press keys; Ctrl-C is 3, Ctrl-D is 4."""
        os.write(self._ours, keys)

    def read_until(self, text: str) -> None:
        """Read until this was printed."""
        deadline = time.monotonic() + 30
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text

    def wait(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + 30
        while self._read():
            assert time.monotonic() < deadline, self.text
        return self._process.wait(10)

    def _read(self) -> bool:
        """Read a little; false at the end."""
        readable, _, _ = select.select([self._ours], [], [], 0.1)
        if not readable:
            return True
        try:
            piece = os.read(self._ours, 65_536)
        except OSError:
            return False
        self.text += piece.decode(errors="replace")
        return bool(piece)
