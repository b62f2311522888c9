"""Where a laptop's Fleek keeps what it owns: pure rules about paths, no I/O.

Every process derives the same sockets from the same home, so `fleek worker`, `alembic` and a
second terminal find a running `fleek up` with no configuration at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.-]+")
_LONGEST_RUN_PATH = 80
"""Bytes: a Unix socket's path may have 107, and PostgreSQL appends `/.s.PGSQL.5432.lock`."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one local Fleek, and the names inside it."""

    path: Path

    @property
    def run(self) -> Path:
        """Sockets and pidfiles.

        They move to a short plain path when the home's is too long for a socket, or has characters
        that mean something else in a URL.
        """
        inside = self.path / "run"
        if len(str(inside)) <= _LONGEST_RUN_PATH and _PLAIN_PATH.fullmatch(str(inside)):
            return inside
        digest = hashlib.sha256(str(self.path).encode()).hexdigest()[:16]
        return Path("/tmp") / f"fleek-{digest}"  # noqa: S108  checked for its owner when it is made

    @property
    def postgres_data(self) -> Path:
        """PostgreSQL's data directory."""
        return self.path / "postgres"

    @property
    def postgres_socket_dir(self) -> Path:
        """The folder of PostgreSQL's Unix socket."""
        return self.run / "postgres"

    @property
    def valkey_socket(self) -> Path:
        """Valkey's Unix socket."""
        return self.run / "valkey" / "valkey.sock"

    @property
    def media(self) -> Path:
        """The default object store."""
        return self.path / "media"

    @property
    def logs(self) -> Path:
        """Logs of the embedded servers."""
        return self.path / "logs"

    @property
    def secret_key_file(self) -> Path:
        """The generated signing key, mode 600."""
        return self.path / "secret_key"

    @property
    def state_file(self) -> Path:
        """What `fleek up` writes when it is ready: url, pid."""
        return self.run / "up.json"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the embedded PostgreSQL."""
        return f"postgresql+asyncpg://fleek@/fleek?host={self.postgres_socket_dir}"

    @property
    def redis_url(self) -> str:
        """URL of the embedded Valkey."""
        return f"unix://{self.valkey_socket}"

    @property
    def storage_url(self) -> str:
        """URL of the default object store."""
        return self.media.as_uri()


def default_home(environ: Mapping[str, str], *, user_home: Path, is_root: bool) -> Path:
    """`$XDG_DATA_HOME/fleek`; for root `/var/lib/fleek`.

    As root the embedded PostgreSQL runs as an unprivileged user, who may not enter root's home.
    """
    data_home = environ.get("XDG_DATA_HOME", "")
    if data_home and Path(data_home).is_absolute():
        return Path(data_home) / "fleek"
    if is_root:
        return Path("/var/lib/fleek")
    return user_home / ".local" / "share" / "fleek"
