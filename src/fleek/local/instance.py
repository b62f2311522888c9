"""One `fleek up` a home: its folders, the lock that it holds, and the file by which others find it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fleek.core.errors import ConfigurationError, Conflict
from fleek.core.home import Home
from fleek.local.accounts import make_folder

_LOCK_SECONDS = 0.5
"""A client that looks whether Fleek runs holds the lock for an instant: try a little longer than that."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A Fleek that is ready, as `run/up.json` describes it."""

    url: str
    pid: int
    version: str


def prepare_home(home: Home) -> None:
    """Make the home's own folders. Raises ConfigurationError where that is impossible or not safe."""
    is_root = os.geteuid() == 0
    make_folder(home.path, mode=0o711 if is_root else 0o700)
    make_folder(home.run, mode=0o711 if is_root else 0o700)
    make_folder(home.logs)
    status = home.run.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        message = f"{home.run} is not a folder that only we can write to; remove it, or choose another --home"
        raise ConfigurationError(message)


@contextlib.contextmanager
def hold_home(home: Home) -> Iterator[None]:
    """Own the home until the block ends, or this process does; raises Conflict when another one owns it.

    The lock belongs to the process: children do not inherit it, so it falls with its holder, however that
    ends.
    """
    descriptor = os.open(_lock_file(home), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(descriptor, fcntl.LOCK_EX, _LOCK_SECONDS):
            raise Conflict(_taken(home))
        home.state_file.unlink(missing_ok=True)
        yield
        home.state_file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def publish_instance(home: Home, instance: Instance) -> None:
    """Tell others where this Fleek is; a reader never sees half of the file."""
    draft = home.state_file.with_suffix(".new")
    draft.write_text(json.dumps(asdict(instance)))
    draft.replace(home.state_file)


def find_instance(home: Home) -> Instance | None:
    """The Fleek that runs on this home and is ready, or None."""
    try:
        descriptor = os.open(_lock_file(home), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _lock(descriptor, fcntl.LOCK_SH, 0) else _read(home.state_file)
    finally:
        os.close(descriptor)


def _lock_file(home: Home) -> Path:
    return home.path / "up.lock"


def _lock(descriptor: int, kind: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _read(state_file: Path) -> Instance | None:
    try:
        record = json.loads(state_file.read_text())
        return Instance(url=str(record["url"]), pid=int(record["pid"]), version=str(record["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _taken(home: Home) -> str:
    found = _read(home.state_file)
    if found is None:
        return f"Another Fleek is starting or stopping on {home.path}; wait for it, or choose another --home"
    return f"Fleek is already running on {home.path}: {found.url} (process {found.pid})"
