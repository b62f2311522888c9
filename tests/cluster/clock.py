"""Wall clocks that are wrong, and jump, in one process and everything that it starts.

A small library, compiled here and loaded before the C library, moves the wall clock for the whole process:
for Python, for extensions, and for PostgreSQL. Monotonic clocks go on as they are, as when someone sets
a clock. It needs Linux and a C compiler.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

CAN_SHIFT = sys.platform == "linux" and shutil.which("cc") is not None


class Clock:
    """One clock, which any number of processes can have."""

    def __init__(self, folder: Path, shift: timedelta = timedelta(0)) -> None:
        """Compile the library into a new folder, which every user can read."""
        folder.mkdir(mode=0o755)
        self._library = folder / "clock.so"
        self._file = folder / "shift"
        self._file.write_bytes(bytes(8))
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", self._library, source], check=True)
        self.set(shift)

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes that are to have this clock."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_SHIFT": str(self._file)}

    def set(self, shift: timedelta) -> None:
        """How far it is ahead from now on, in every process that has it."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", shift // timedelta(microseconds=1)))

    def wrap(self, programs: Path, name: str, folder: Path) -> Path:
        """A folder with a program of this name, which is the one in `programs` with this clock."""
        folder.mkdir(mode=0o755)
        words = [f"export {variable}='{value}'" for variable, value in self.environment.items()]
        script = folder / name
        script.write_text("\n".join(["#!/bin/sh", *words, f"exec '{programs / name}' \"$@\"", ""]))
        script.chmod(0o755)
        return folder
