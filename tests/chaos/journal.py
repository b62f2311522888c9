"""What the clients did and were told, on disk before anything follows from it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
"""`asked` is a request, `told` the status of its answer (None: none came), `saw` an event of a stream."""


class Journal:
    """A file of JSON lines, synced after each; one for all threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def write(self, **entry: Any) -> None:
        """Add a line; `at` is seconds since the start."""
        line = json.dumps({"at": round(time.monotonic() - self._began, 4), **entry})
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Nothing more will come."""
        with self._lock:
            self._file.close()


def read(path: Path) -> Iterator[Entry]:
    """Every entry that was written whole: a program that was killed may have begun one more."""
    text = path.read_text(encoding="utf-8")
    whole, _, _ = text.rpartition("\n")
    for line in whole.splitlines():
        yield json.loads(line)
