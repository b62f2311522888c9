"""PostgreSQL from the wheel: one data directory, one Unix socket, no TCP, a child of this process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleek.core.errors import ConfigurationError, Unavailable
from fleek.local.accounts import Account, make_folder, require_passage, server_account
from fleek.local.process import Escalation, Process, Program, spawn, started_at, stop_leftover, stop_process
from fleek.local.programs import POSTGRES_MAJOR, postgres_programs

ROLE = "fleek"
DATABASE = "fleek"
PIDFILE = "postgres.pid"
"""Beside the folder of the socket."""
FAST_STOP: Escalation = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 2.0))
"""PostgreSQL's own words: SIGINT ends sessions and stops cleanly, SIGQUIT stops as a crash would."""
IMMEDIATE_STOP: Escalation = ((signal.SIGQUIT, 1.0),)

LAPTOP_OPTIONS: Mapping[str, str] = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "jit": "off",
    "io_method": "sync",
    "max_wal_size": "512MB",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}
"""Durable: fsync stays on. `io_method=sync` saves three idle processes."""

_POLL_SECONDS = 0.01
_QUERY_SECONDS = 20.0
_STATUS_LINE = 7
"""Of `postmaster.pid`, counted from 0: `ready` once connections are accepted, as `pg_ctl` reads it."""


@dataclass(slots=True)
class PostgresServer:
    """The server of one data directory. Nobody else may use the directory: the caller holds its home's lock.

    `options` are added to, and win over, `LAPTOP_OPTIONS`. `programs` is known after `prepare`.
    """

    data: Path
    socket_dir: Path
    log: Path
    options: Mapping[str, str] = field(default_factory=dict)
    process: Process | None = field(default=None, init=False)
    _account: Account | None = field(default=None, init=False, repr=False)
    programs: Path = field(default=Path(), init=False, repr=False)

    def start(self, timeout: float = 30) -> None:
        """Prepare, launch and wait until connections are accepted.

        Raises ConfigurationError for what the user can change, Unavailable when it does not come up in
        `timeout` seconds.
        """
        self.prepare()
        self.launch()
        self.wait_ready(timeout)

    def prepare(self) -> None:
        """Stop leftovers, and make the data directory on the first start (about half a second)."""
        self._account = server_account(self.data)
        for folder in (self.data.parent, self.socket_dir.parent, self.log.parent):
            make_folder(folder, mode=0o700 if self._account is None else 0o711)
        make_folder(self.socket_dir, account=self._account)
        require_passage(self._account, self.data.parent)
        require_passage(self._account, self.socket_dir)
        self.find_programs()
        self._stop_leftovers()
        if self.data.is_dir():
            self._check_data()
        else:
            self._initialise()

    def find_programs(self) -> None:
        """Enough for `query`, where another process has started the server."""
        self._account = server_account(self.data)
        self.programs = postgres_programs(self._account, self.data.parent / "programs")

    def launch(self) -> Process:
        """Start the server and return at once; call it where `spawn` may be called."""
        options = {
            **LAPTOP_OPTIONS,
            **self.options,
            "listen_addresses": "",
            "unix_socket_directories": _quoted(self.socket_dir),
            "unix_socket_permissions": "0700",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        self.process = spawn(
            Program(
                name="postgres",
                command=[str(self.programs / "postgres"), "-D", str(self.data), *settings],
                pidfile=self._pidfile,
                death_signal=signal.SIGINT,
                account=self._account,
                environment=_environment(),
                log=self.log,
            )
        )
        return self.process

    def is_ready(self) -> bool:
        """Whether our own child, not a predecessor, has written that it accepts connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        ours = self.process is not None and lines[:1] == [str(self.process.pid)]
        return ours and len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready"

    def wait_ready(self, timeout: float = 30) -> None:
        """Return once connections are accepted; raises Unavailable after `timeout` seconds, or if it died."""
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if self.process is None or self.process.poll() is not None:
                message = f"PostgreSQL ended while it started; its log is {self.log}"
                raise Unavailable(message)
            if time.monotonic() >= deadline:
                message = f"PostgreSQL was not ready in {timeout:g} s; its log is {self.log}"
                raise Unavailable(message)
            time.sleep(_POLL_SECONDS)

    def query(self, statement: str, database: str = DATABASE, *, timeout: float = _QUERY_SECONDS) -> str:
        """Run one statement through psql, in about 10 ms; its rows as text, columns divided by `|`.

        Raises Unavailable with PostgreSQL's own words when it fails, or after `timeout` seconds.
        """
        command = [str(self.programs / "psql"), "--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1"]
        connection = ["-h", str(self.socket_dir), "-U", ROLE, "-d", database, "-c", statement]
        try:
            result = subprocess.run(  # noqa: S603  our own program and words
                [*command, *connection],
                capture_output=True,
                text=True,
                check=False,
                env=_environment(),
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            message = f"PostgreSQL did not answer within {timeout:g} s; its log is {self.log}"
            raise Unavailable(message) from error
        if result.returncode != 0:
            raise Unavailable(result.stderr.strip())
        return result.stdout.strip()

    def stop(self, escalation: Escalation = FAST_STOP) -> None:
        """End every session and the server; returns when it is gone."""
        if self.process is not None:
            self.process.stop(escalation)

    def url(self, database: str = DATABASE) -> str:
        """SQLAlchemy's URL of one of its databases."""
        return f"postgresql+asyncpg://{ROLE}@/{database}?host={self.socket_dir}"

    @property
    def _pidfile(self) -> Path:
        return self.socket_dir.parent / PIDFILE

    def _check_data(self) -> None:
        """Raises ConfigurationError when this PostgreSQL cannot, or may not, read the directory."""
        owner = self._account.uid if self._account else os.geteuid()
        if self.data.stat().st_uid != owner:
            message = (
                f"{self.data} belongs to another user; start Fleek as that user, or choose another --home"
            )
            raise ConfigurationError(message)
        version_file = self.data / "PG_VERSION"
        version = version_file.read_text().strip() if version_file.is_file() else "none"
        if version != str(POSTGRES_MAJOR):
            message = (
                f"{self.data} was made by PostgreSQL {version} and this Fleek brings {POSTGRES_MAJOR}; "
                "export it with that version's pg_dump, or choose another --home"
            )
            raise ConfigurationError(message)

    def _initialise(self) -> None:
        """Make the directory beside and rename it: one that exists under its name is complete."""
        draft = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        make_folder(draft, account=self._account)
        self._run_once("initdb", *_initdb_arguments(draft))
        self._run_once(
            "postgres",
            "--single",
            "-F",
            "-D",
            str(draft),
            "postgres",
            standard_input=f"CREATE DATABASE {DATABASE}\n",
        )
        draft.replace(self.data)

    def _run_once(self, program: str, *arguments: str, standard_input: str = "") -> None:
        process = spawn(
            Program(
                name=program,
                command=[str(self.programs / program), *arguments],
                pidfile=self.socket_dir.parent / f"{program}.pid",
                account=self._account,
                environment=_environment(),
                log=self.log,
                standard_input=standard_input.encode(),
            )
        )
        try:
            process.wait(120)
        finally:
            process.kill()
        if process.poll() != 0:
            message = f"{program} failed; its output is in {self.log}"
            raise Unavailable(message)

    def _stop_leftovers(self) -> None:
        """End servers that outlived their parent, then drop a lock file whose number may be another's now.

        PostgreSQL keeps such a file after a power cut, and would refuse to start when another program of the
        same user happens to have the number in it.
        """
        stop_leftover(self._pidfile, FAST_STOP)
        for pid in _processes_of(self.data):
            started = started_at(pid)
            if started is not None:
                stop_process(pid, started, FAST_STOP)
        (self.data / "postmaster.pid").unlink(missing_ok=True)


def _initdb_arguments(data: Path) -> list[str]:
    """UTF-8 with PostgreSQL's own C.UTF-8, so that no locale of the system matters."""
    return [
        f"--pgdata={data}",
        f"--username={ROLE}",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--no-sync",
        "--no-instructions",
    ]


def _environment() -> dict[str, str]:
    """Nothing of ours: PG* variables would change what the programs do. TZ spares initdb a search."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _quoted(path: Path) -> str:
    """A path in PostgreSQL's comma-separated lists."""
    return '"{}"'.format(str(path).replace('"', '""'))


def _processes_of(data: Path) -> list[int]:
    """PostgreSQL processes, orphaned backends too, that work in a data directory."""
    if sys.platform != "linux":
        return _postmaster_of(data)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().startswith("postgres") and (folder / "cwd").samefile(data):
                found.append(int(folder.name))
    return found


def _postmaster_of(data: Path) -> list[int]:
    """The process in `postmaster.pid`, if its command line says that it serves this directory."""
    try:
        pid = int((data / "postmaster.pid").read_text().split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return []
    command = subprocess.run(  # noqa: S603  a fixed command
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return [pid] if str(data) in command.stdout else []
