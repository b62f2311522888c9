"""A database as one file, and back: PostgreSQL's own `pg_dump` and `pg_restore`, from the wheel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from fleek.core.errors import Unavailable
from fleek.local.postgres import DATABASE, ROLE, PostgresServer

_LONGEST_SECONDS = 86_400.0
_PLAIN = ("--no-owner", "--no-privileges")
_DUMP = (
    "pg_dump",
    "--format=custom",
    # A migration that runs is waited for; one that hangs is not.
    "--lock-wait-timeout=30s",
    *_PLAIN,
)
_RESTORE = ("pg_restore", "--single-transaction", "--exit-on-error", *_PLAIN)


def dump(server: PostgresServer, target: IO[bytes]) -> None:
    """Write what a running server holds at one moment into a file; raises Unavailable with its words."""
    _run(server, _DUMP, output=target)


def load(server: PostgresServer, source: Path) -> None:
    """Fill the empty database of a running server, or leave it empty; raises Unavailable with its words."""
    _run(server, (*_RESTORE, str(source)))


def _run(server: PostgresServer, command: Sequence[str], output: IO[bytes] | None = None) -> None:
    connection = [
        f"--host={server.socket_dir}",
        f"--username={ROLE}",
        f"--dbname={DATABASE}",
        "--no-password",
    ]
    program, *arguments = command
    result = subprocess.run(  # noqa: S603  our own program and words
        [str(server.programs / program), *connection, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        # Nothing of ours: PG* variables would change what the programs do.
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        timeout=_LONGEST_SECONDS,
    )
    if result.returncode != 0:
        raise Unavailable(f"{program} failed: {result.stderr.decode(errors='replace').strip()}")
