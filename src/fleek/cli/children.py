"""The processes of one `fleek up`, and how each of them is started."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fleek.cli.hosts import is_loopback
from fleek.cli.supervisor import Kept, Layer
from fleek.configuration.names import PREFIX
from fleek.local.postgres import PostgresServer
from fleek.local.process import Escalation, Process, Program, spawn, stop_leftover
from fleek.local.valkey import ValkeyServer
from fleek.settings import Settings

_WORKER_GRACE_SECONDS = 5
"""Seconds in which running jobs may end at a stop. Celery hears of it up to one second late, giving jobs back
takes a moment, then the servers stop: all of it must be over within 10."""
_LEAST_CONNECTIONS, _SPARE_CONNECTIONS = 200, 40
_LEFTOVER_STOP: Escalation = ((signal.SIGTERM, 2.0),)


@dataclass(slots=True)
class Children:
    """What runs under one supervisor. A server is None when the settings name another one."""

    settings: Settings
    listener: socket.socket
    workers: int
    environment: Mapping[str, str] = field(init=False, repr=False)
    postgres: PostgresServer | None = field(init=False)
    valkey: ValkeyServer | None = field(init=False)

    def __post_init__(self) -> None:
        """Children read the settings again, with what the flags decided on top."""
        self.environment = {**os.environ, **_overrides(self.settings, self.listener)}
        self.postgres = None if self.settings.database_url else self._postgres()
        self.valkey = None if self.settings.redis_url else self._valkey()

    def stop_leftovers(self) -> None:
        """End programs that outlived an earlier supervisor; the servers see to their own."""
        for pidfile in self.settings.local.run.glob("*.pid"):
            if pidfile.stem == "api" or pidfile.stem.startswith("worker-"):
                stop_leftover(pidfile, _LEFTOVER_STOP)

    def servers(self) -> list[Kept]:
        """The embedded servers: the quick one first, for the other may have to make its data."""
        kept = []
        if self.valkey is not None:
            kept.append(Kept("valkey", Layer.SERVER, self._start_valkey))
        if self.postgres is not None:
            stop, hurry = signal.SIGINT, signal.SIGQUIT
            kept.append(Kept("postgres", Layer.SERVER, self._start_postgres, stop, hurry))
        return kept

    async def servers_are_ready(self) -> bool:
        """Whether every embedded server accepts connections."""
        return all(server.is_ready() for server in (self.valkey, self.postgres) if server is not None)

    def migration(self) -> Process:
        """Brings the schema forward, and ends."""
        return self._start("migration", "db", "upgrade", log=self.migration_log)

    @property
    def migration_log(self) -> Path:
        """What the migration said."""
        return self.settings.local.logs / "migration.log"

    def api(self) -> Kept:
        """The api, on a socket that stays ours: clients wait while it is started again."""
        number = self.listener.fileno()
        return Kept(
            "api", Layer.PROGRAM, lambda: self._start("api", "api", "--fd", str(number), inherit=(number,))
        )

    def worker_processes(self) -> list[Kept]:
        """The workers."""
        return [self._worker(f"worker-{number}") for number in range(1, self.workers + 1)]

    def _worker(self, name: str) -> Kept:
        return Kept(name, Layer.PROGRAM, lambda: self._start(name, "worker"))

    def _start(
        self, name: str, *arguments: str, inherit: tuple[int, ...] = (), log: Path | None = None
    ) -> Process:
        """One of Fleek's own commands. Killed with the supervisor: by then the servers are going too."""
        return spawn(
            Program(
                name=name,
                command=[sys.executable, "-m", "fleek.cli.main", *arguments],
                pidfile=self.settings.local.run / f"{name}.pid",
                death_signal=signal.SIGKILL,
                environment=self.environment,
                inherit=inherit,
                log=log,
            )
        )

    def _start_postgres(self) -> Process:
        assert self.postgres is not None  # noqa: S101  `servers` offers it only then
        self.postgres.prepare()
        return self.postgres.launch()

    def _start_valkey(self) -> Process:
        assert self.valkey is not None  # noqa: S101  `servers` offers it only then
        self.valkey.prepare()
        return self.valkey.launch()

    def _postgres(self) -> PostgresServer:
        """With a connection for everyone: each process may use its whole pool."""
        pool = self.settings.database_pool_size + self.settings.database_max_overflow
        needed = pool * (1 + self.workers) + _SPARE_CONNECTIONS
        home = self.settings.local
        return PostgresServer(
            data=home.postgres_data,
            socket_dir=home.postgres_socket_dir,
            log=home.logs / "postgres.log",
            options={"max_connections": str(max(needed, _LEAST_CONNECTIONS))},
        )

    def _valkey(self) -> ValkeyServer:
        home = self.settings.local
        return ValkeyServer(home.valkey_socket, home.logs / "valkey.log", copies=home.path / "programs")


def _overrides(settings: Settings, listener: socket.socket) -> dict[str, str]:
    values = {
        "HOME": str(settings.home),
        "HOST": settings.host,
        "PORT": str(listener.getsockname()[1]),
        "SLOTS": str(settings.slots),
        # The api starts while the migrations run.
        "WAIT_FOR_SCHEMA": "true",
        "SHUTDOWN_GRACE": str(min(settings.shutdown_grace, _WORKER_GRACE_SECONDS)),
    }
    if not is_loopback(settings.host) and not settings.allowed_hosts:
        values["ALLOWED_HOSTS"] = "*"
    return {f"{PREFIX}{name}": value for name, value in values.items()}
