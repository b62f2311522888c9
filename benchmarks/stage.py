"""Everything a benchmark runs on: real servers from wheels, and Fleek's own processes beside the bare ones.

All of it lies in one temporary folder and ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import bare, blank
from benchmarks.load import Answers, Load
from fleek.db.migrate import upgrade
from fleek.local.postgres import IMMEDIATE_STOP, PostgresServer
from fleek.local.process import Escalation, Process, Program, spawn
from fleek.local.valkey import ValkeyServer

ROOT = Path(__file__).parent.parent
NO_SETTINGS: Mapping[str, str] = {}
_STOP: Escalation = ((signal.SIGTERM, 5.0),)
_READY_SECONDS = 30.0
_POLL_SECONDS = 0.01
_BACKLOG = 2048
_SHOWN_LINES = 20
_BARE_DATABASE = "bare"


class StageError(Exception):
    """A process of the benchmark did not do what it is for; the message holds the end of its log."""


@dataclass(slots=True)
class Server:
    """A process that answers HTTP on loopback."""

    process: Process
    port: int

    def cpu_seconds(self) -> float:
        """What the process has used of the processors, user and system; 0 where `/proc` does not tell."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
        except FileNotFoundError:
            return 0.0
        # Fields 14 and 15 of proc_pid_stat(5); the second one, a name in brackets, may hold spaces.
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Stage:
    """Starts what a measurement needs. Processes that are started here are stopped with the stage."""

    folder: Path
    postgres: PostgresServer
    valkey: ValkeyServer
    _names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def broker(self) -> str:
        """The broker in Celery's spelling, in a database that Fleek does not use."""
        return f"redis+socket://{self.valkey.socket}?virtual_host=1"

    @contextlib.contextmanager
    def fleek_api(self, settings: Mapping[str, str] = NO_SETTINGS) -> Iterator[Server]:
        """One api process, as `fleek up` starts it; `settings` are more of its environment."""
        with self._serving("fleek.cli.main", "api", "--fd", settings=settings) as server:
            yield server

    @contextlib.contextmanager
    def fleek_worker(self, *flags: str) -> Iterator[Process]:
        """One worker process, as `fleek up` starts it; it may still be starting when the block begins."""
        with self._running("fleek.cli.main", "worker", *flags) as process:
            yield process

    @contextlib.contextmanager
    def bare_api(self) -> Iterator[Server]:
        """The bare FastAPI routes on a table of their own."""
        dsn = self.postgres.url(_BARE_DATABASE).replace("+asyncpg", "")
        with self._serving("benchmarks.bare", after=(dsn, self.valkey.url())) as server:
            yield server

    @contextlib.contextmanager
    def echo(self) -> Iterator[Server]:
        """A server that costs next to nothing."""
        with self._serving("benchmarks.echo", ready_path=None) as server:
            yield server

    @contextlib.contextmanager
    def bucket(self, latency: float) -> Iterator[Server]:
        """What a bucket says of objects that exist, after `latency` seconds."""
        with self._serving("benchmarks.bucket", after=(str(latency),), ready_path=None) as server:
            yield server

    def forget(self) -> None:
        """Empty Fleek's tables and the broker: what one measurement leaves must not wait before the next."""
        self.postgres.query("TRUNCATE jobs CASCADE")
        self.forget_broker()

    def forget_broker(self) -> None:
        """Empty Valkey: the broker, and what Fleek remembers there."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.valkey.socket))
            connection.sendall(b"FLUSHALL\r\n")
            connection.recv(64)

    def run_celery(self, tasks: int, threads: int) -> float:
        """Queue no-op tasks, then run them in one worker process; tasks a second."""
        result = self.folder / f"noop-{next(self._names)}.json"
        self.run("benchmarks.noop", "publish", self.broker, str(tasks))
        with self._running(
            "benchmarks.noop", "work", self.broker, str(tasks), str(threads), str(result)
        ) as worker:
            self.until(result.exists, worker, "the no-op tasks have run", seconds=120)
        measured = json.loads(result.read_text())
        return float(measured["tasks"] / measured["seconds"])

    def load(self, load: Load) -> Answers:
        """Run the load generator in a process of its own."""
        number = next(self._names)
        specification, result = (self.folder / f"load-{number}.{kind}.json" for kind in ("in", "out"))
        specification.write_text(json.dumps(asdict(load)))
        self.run("benchmarks.load", str(specification), str(result))
        answers = Answers(**json.loads(result.read_text()))
        specification.unlink()
        result.unlink()
        return answers

    def run(self, module: str, *arguments: str, seconds: float = 600) -> None:
        """Run a module of ours to its end; raises StageError when that is not a success."""
        process = self._spawn(module, arguments)
        try:
            ended = process.wait(seconds)
        finally:
            process.kill()
        if not ended or process.poll() != 0:
            raise StageError(_end_of(process, f"{module} failed"))

    def until(
        self,
        question: Callable[[], bool],
        process: Process,
        what: str,
        *,
        seconds: float = _READY_SECONDS,
        every: float = _POLL_SECONDS,
    ) -> None:
        """Wait for a yes; raises StageError after `seconds`, or when the process ends meanwhile."""
        deadline = time.monotonic() + seconds
        while not question():
            if process.poll() is not None or time.monotonic() >= deadline:
                name = process.program.name
                raise StageError(_end_of(process, f"{name} ended, or {seconds:g} s passed, until {what}"))
            time.sleep(every)

    @contextlib.contextmanager
    def _serving(
        self,
        module: str,
        *before: str,
        after: Sequence[str] = (),
        ready_path: str | None = "/readyz",
        settings: Mapping[str, str] = NO_SETTINGS,
    ) -> Iterator[Server]:
        """A server on a socket that is bound here, so that its port is known and free."""
        with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
            port = int(listener.getsockname()[1])
            number = listener.fileno()
            arguments = (*before, str(number), *after)
            with self._running(module, *arguments, inherit=(number,), settings=settings) as process:
                if ready_path is not None:
                    url = f"http://127.0.0.1:{port}{ready_path}"
                    self.until(lambda: _answers(url), process, f"{url} answers")
                yield Server(process, port)

    @contextlib.contextmanager
    def _running(
        self,
        module: str,
        *arguments: str,
        inherit: Sequence[int] = (),
        settings: Mapping[str, str] = NO_SETTINGS,
    ) -> Iterator[Process]:
        process = self._spawn(module, arguments, inherit, settings)
        try:
            yield process
        except StageError as error:
            # Whatever failed, failed for want of this process: its log says more.
            if process.poll() is not None:
                raise StageError(_end_of(process, f"{error}\n{process.program.name} ended")) from error
            raise
        finally:
            process.stop(_STOP)

    def _spawn(
        self,
        module: str,
        arguments: Sequence[str],
        inherit: Sequence[int] = (),
        settings: Mapping[str, str] = NO_SETTINGS,
    ) -> Process:
        name = f"{module.rpartition('.')[2]}-{next(self._names)}"
        program = Program(
            name=name,
            command=[sys.executable, "-m", module, *arguments],
            pidfile=self.folder / "run" / f"{name}.pid",
            environment={**self._environment(), **settings},
            inherit=inherit,
            log=self.folder / "logs" / f"{name}.log",
        )
        return spawn(program)

    def _environment(self) -> dict[str, str]:
        """Fleek's settings as an operator would give them; nothing of the user's own Fleek."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        return inherited | {
            "PYTHONPATH": os.pathsep.join([str(self.folder / "packages"), str(ROOT)]),
            "FLEEK_HOME": str(self.folder / "home"),
            "FLEEK_DATABASE_URL": self.postgres.url(),
            "FLEEK_REDIS_URL": self.valkey.url(),
            "FLEEK_STORAGE_URL": (self.folder / "media").as_uri(),
            "FLEEK_MODELS__DEMO__PROVIDER": "demo",
            f"FLEEK_MODELS__{blank.NAME.upper()}__PROVIDER": blank.NAME,
        }


@contextlib.contextmanager
def open_stage() -> Iterator[Stage]:
    """The servers, a migrated database, and a folder for everything; all gone at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="fleek-bench-"))
    # Root's PostgreSQL runs as another user, who must be able to enter.
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name in ("home", "media", "logs", "run"):
            (folder / name).mkdir(mode=0o755)
        blank.install(folder / "packages")
        postgres = PostgresServer(
            folder / "postgres", folder / "run" / "postgres", folder / "logs" / "postgres.log"
        )
        valkey = ValkeyServer(
            folder / "run" / "valkey" / "valkey.sock", folder / "logs" / "valkey.log", folder / "programs"
        )
        # Registered first: a start that is interrupted has to be cleaned up too.
        stack.callback(postgres.stop, IMMEDIATE_STOP)
        stack.callback(valkey.stop)
        postgres.start()
        valkey.start()
        upgrade(postgres.url())
        postgres.query(f"CREATE DATABASE {_BARE_DATABASE}", "postgres")
        postgres.query(bare.TABLE, _BARE_DATABASE)
        yield Stage(folder, postgres, valkey)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310  our own URL
        return bool(response.status == 200)  # noqa: PLR2004  OK
    return False


def _end_of(process: Process, what: str) -> str:
    log = process.program.log
    lines = log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:] if log is not None else []
    return "\n".join([what, *lines])
