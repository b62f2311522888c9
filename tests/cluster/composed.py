"""Fleek as `docker-compose.yml` runs it, on servers of its own, without a container engine.

Every process has the environment that compose gives to its service, and every server the arguments; only
addresses and folders are others. PostgreSQL asks for its password over TCP, the broker and LocalStack listen
on TCP, and `migrate` and `storage-init` run side by side before the api and the worker start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from fleek.local.postgres import DATABASE, PostgresServer
from fleek.local.process import Program, spawn
from tests import compose
from tests.cluster.parts import ApiPart, WorkerPart
from tests.localstack import connect

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 120
"""A bound against hangs."""
_HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"


@dataclass(slots=True)
class Composed:
    """Everything that runs."""

    folder: Path
    environments: Mapping[str, dict[str, str]]
    """By the service of compose."""
    store: Any
    """boto3's client of LocalStack."""
    apis: list[ApiPart] = field(default_factory=list)
    workers: list[WorkerPart] = field(default_factory=list)

    @property
    def bucket(self) -> str:
        """Its name."""
        return urlsplit(self.environments["api"]["FLEEK_STORAGE_URL"]).netloc

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the database."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._query(sql)).result()

    async def _query(self, sql: str) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.environments["api"]["FLEEK_DATABASE_URL"])
        try:
            await connection.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads
            )
            return [dict(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    def objects(self) -> dict[str, datetime]:
        """When each output and variant was written, by its key."""
        pages = self.store.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix="media/")
        return {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", ())}

    def empty_bucket(self) -> None:
        """One LocalStack serves all tests, and they all have the bucket that compose names."""
        for key in self.objects():
            self.store.delete_object(Bucket=self.bucket, Key=key)

    def digests(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of each object, by its key."""

        def read(key: str) -> tuple[int, str]:
            content = self.store.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return len(content), hashlib.sha256(content).hexdigest()

        keys = list(self.objects())
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(keys, pool.map(read, keys), strict=True))


@contextmanager
def open_composed(
    broker: Path, localstack: str, dotenv: str, *, apis: int = 2, workers: int = 2
) -> Iterator[Composed]:
    """All of it, ready; gone at the end.

    `broker` is a program that takes the arguments of compose's redis, `dotenv` the content of `.env`.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="fleek-composed-", dir="/tmp"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / ".env").write_text(dotenv)
        ports = {"postgres": _free_port(), "redis": _free_port()}
        _start_broker(stack, broker, folder, ports["redis"])
        _start_postgres(stack, folder, ports["postgres"])
        names = ("migrate", "storage-init", "api", "worker")
        environments = {name: _environment(name, folder, ports, localstack) for name in names}
        _run_once(folder, environments)
        composed = Composed(folder, environments, connect(localstack))
        composed.empty_bucket()
        for number in range(1, apis + 1):
            part = ApiPart(f"api-{number}", environments["api"], folder / f"api-{number}.log")
            composed.apis.append(part)
        for number in range(1, workers + 1):
            # In compose each has a network of its own.
            own = environments["worker"] | {"FLEEK_WORKER_PORT": str(_free_port())}
            worker = WorkerPart(f"worker-{number}", own, folder / f"worker-{number}.log")
            composed.workers.append(worker)
        parts = (*composed.apis, *composed.workers)
        for part in parts:
            stack.callback(part.close)
            part.launch()
        for part in parts:
            part.wait_ready()
        yield composed


def _environment(service: str, folder: Path, ports: Mapping[str, int], localstack: str) -> dict[str, str]:
    """Compose's, with other addresses: nothing of a developer's own settings."""
    address = urlsplit(localstack).netloc
    places = {
        "@postgres:5432": f"@127.0.0.1:{ports['postgres']}",
        "//redis:6379": f"//127.0.0.1:{ports['redis']}",
        "//localstack:4566": f"//{address}",
        "//localhost:4566": f"//{address}",
        "/var/lib/fleek": str(folder / "home"),
        "0.0.0.0": "127.0.0.1",  # noqa: S104  what compose has, replaced
    }
    given = compose.environment_of(service, dotenv=folder / ".env")
    for name, value in given.items():
        for there, here in places.items():
            given[name] = given[name].replace(there, here) if there in value else given[name]
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLEEK_", "AWS_", "REPLICATE_", "SENTRY_"))
    }
    return plain | given


def _run_once(folder: Path, environments: Mapping[str, Mapping[str, str]]) -> None:
    """What compose runs before the rest, side by side; AssertionError with its words when it fails."""
    commands: Mapping[str, Sequence[str]] = {
        "migrate": [str(ROOT / "script" / "prestart")],
        "storage-init": [sys.executable, "-m", "fleek.cli.main", "storage", "init"],
    }
    running = {
        name: subprocess.Popen(
            command,
            env=environments[name],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, command in commands.items()
    }
    said = {name: process.communicate(timeout=START_SECONDS)[0] for name, process in running.items()}
    for name, process in running.items():
        assert process.returncode == 0, f"{name} ended with {process.returncode}: {said[name]}"


def _start_broker(stack: ExitStack, program: Path, folder: Path, port: int) -> None:
    _, *arguments = compose.services()["redis"]["command"]
    where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    process = spawn(
        Program(
            name="broker",
            command=[str(program), *arguments, *where],
            pidfile=folder / "broker.pid",
            log=folder / "broker.log",
        )
    )
    stack.callback(process.kill)
    _await_port(port, folder / "broker.log")


def _start_postgres(stack: ExitStack, folder: Path, port: int) -> None:
    """Made over its socket, then started as compose has it: over TCP, with a password."""
    definition = compose.services()["postgres"]
    given = definition["environment"]
    server = PostgresServer(
        data=folder / "postgres", socket_dir=folder / "run" / "postgres", log=folder / "logs" / "postgres.log"
    )
    server.start()
    server.query(f"ALTER ROLE {given['POSTGRES_USER']} PASSWORD '{given['POSTGRES_PASSWORD']}'")
    assert given["POSTGRES_DB"] == DATABASE
    server.stop()
    (folder / "postgres" / "pg_hba.conf").write_text(_HBA)
    _, *arguments = definition["command"]
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(folder / "run" / "postgres"),
        "fsync": "off",
    }
    process = spawn(
        Program(
            name="postgres",
            command=[
                str(server.programs / "postgres"),
                "-D",
                str(folder / "postgres"),
                *arguments,
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ],
            pidfile=folder / "run" / "postgres.pid",
            death_signal=signal.SIGINT,
            account=server._account,
            environment={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            log=folder / "logs" / "postgres.log",
        )
    )
    stack.callback(process.stop, ((signal.SIGQUIT, 2.0),))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _await_port(port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
