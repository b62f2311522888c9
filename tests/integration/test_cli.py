"""`fleek db` and `fleek doctor`, against a real PostgreSQL, a real Valkey and a real disk."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from tests.factories import make_job

from fleek.cli.exits import ExitCode
from fleek.cli.main import execute
from fleek.db.migrate import head
from fleek.db.session import Database
from fleek.local.postgres import PostgresServer

NOWHERE = "postgresql+asyncpg://fleek:secret@127.0.0.1:1/fleek"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment whose only settings are a home and what the test adds."""
    for name in [name for name in os.environ if name.startswith("FLEEK_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("FLEEK_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


@pytest.fixture
def empty_database(create_database: Callable[[str], str], environment: pytest.MonkeyPatch) -> str:
    """A configured database that holds nothing."""
    url = create_database("template0")
    environment.setenv("FLEEK_DATABASE_URL", url)
    return url


class TestDb:
    """The schema goes up and down."""

    @pytest.mark.usefixtures("empty_database")
    def test_up_and_down_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(["db", "current"]) == ExitCode.OK
        assert capsys.readouterr() == (
            "",
            f"The schema is not at {head()}\nhint: `fleek db upgrade` brings it there\n",
        )

        assert execute(["db", "upgrade"]) == ExitCode.OK
        assert capsys.readouterr() == (f"{head()}\n", "Moved from an empty database\n")

        assert execute(["db", "upgrade"]) == ExitCode.OK
        assert capsys.readouterr() == (f"{head()}\n", "Nothing to do\n")

        assert execute(["db", "current"]) == ExitCode.OK
        assert capsys.readouterr() == (f"{head()}\n", "The schema is up to date\n")

        assert execute(["db", "downgrade", "base", "--yes"]) == ExitCode.OK
        assert capsys.readouterr() == ("\n", f"Moved from {head()}\n")

    def test_the_schema_of_a_later_release_is_left_as_it_is(
        self,
        database_url: str,
        postgres: PostgresServer,
        environment: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        environment.setenv("FLEEK_DATABASE_URL", database_url)
        newer = "UPDATE alembic_version SET version_num = 'of_next_year'"
        postgres.query(newer, str(make_url(database_url).database))

        assert execute(["db", "upgrade"]) == ExitCode.OK
        assert capsys.readouterr() == ("of_next_year\n", "Nothing to do\n")
        assert execute(["db", "current"]) == ExitCode.OK
        assert "of a later release than this one, which works with it" in capsys.readouterr().err
        execute(["doctor"])
        assert "ok    schema         at of_next_year, of a later release" in capsys.readouterr().out
        assert execute(["db", "upgrade", "of_never"]) == ExitCode.USAGE

    @pytest.mark.usefixtures("empty_database")
    def test_with_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in (["upgrade"], ["current"], ["downgrade", "--yes", "base"]):
            assert execute(["db", *command, "--json"]) == ExitCode.OK

        said = capsys.readouterr()
        decoder, text, documents = json.JSONDecoder(), said.out, []
        while text := text.lstrip():
            document, end = decoder.raw_decode(text)
            documents.append(document)
            text = text[end:]
        assert said.err == ""
        assert documents == [
            {"before": None, "revision": head()},
            {"revision": head(), "head": head(), "is_current": True},
            {"before": head(), "revision": None},
        ]

    @pytest.mark.usefixtures("empty_database")
    def test_an_unknown_revision_is_a_usage_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(["db", "upgrade", "nothing"]) == ExitCode.USAGE
        assert "error: Can't locate revision identified by 'nothing'\nhint: " in capsys.readouterr().err

    @pytest.mark.usefixtures("empty_database")
    def test_a_step_back_may_be_given_as_a_negative_number(self, capsys: pytest.CaptureFixture[str]) -> None:
        execute(["db", "upgrade"])

        assert execute(["db", "downgrade", "--yes", "-1"]) == ExitCode.OK
        assert f"Moved from {head()}" in capsys.readouterr().err

    def test_nobody_loses_data_without_having_been_asked(
        self, database_url: str, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        environment.setenv("FLEEK_DATABASE_URL", database_url)

        assert execute(["db", "downgrade", "base"]) == ExitCode.USAGE
        assert "--yes" in capsys.readouterr().err
        assert execute(["db", "current"]) == ExitCode.OK
        assert capsys.readouterr().out == f"{head()}\n"

    @pytest.mark.parametrize(
        ("typed", "exit_code", "said"), [(b"n\n", 1, "Nothing was changed"), (b"y\n", 0, "Moved from")]
    )
    def test_on_a_terminal_it_asks(
        self, database_url: str, environment: pytest.MonkeyPatch, typed: bytes, exit_code: int, said: str
    ) -> None:
        environment.setenv("FLEEK_DATABASE_URL", database_url)
        ours, theirs = pty.openpty()
        os.write(ours, typed)

        result = subprocess.run(
            [sys.executable, "-m", "fleek.cli.main", "db", "downgrade", "base"],
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
        )

        os.close(ours)
        os.close(theirs)
        assert result.returncode == exit_code
        assert "Going back to base deletes data for good. Go on?" in result.stderr
        assert said in result.stderr

    @pytest.mark.parametrize(
        ("url", "reason", "code"),
        [
            (NOWHERE, "The database does not answer: ", ExitCode.UNREACHABLE),
            (
                "postgresql+asyncpg://fleek@/missing?host={}",
                "FLEEK_DATABASE_URL: the database refuses us: database",
                ExitCode.USAGE,
            ),
            (
                "postgresql://fleek:secret@127.0.0.1:1/fleek?sslmode=verify-full",
                "FLEEK_DATABASE_URL: cannot be used: root certificate file",
                ExitCode.USAGE,
            ),
        ],
    )
    def test_a_database_that_is_away_or_refuses_ends_with_its_code_and_shows_no_secret(
        self,
        postgres: PostgresServer,
        environment: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        url: str,
        reason: str,
        code: ExitCode,
    ) -> None:
        environment.setenv("FLEEK_DATABASE_URL", url.format(postgres.socket_dir))
        # Where the root certificate is looked for.
        environment.setenv("HOME", "/nowhere")

        codes = [execute(["db", *words]) for words in (["current"], ["upgrade"])]

        said = capsys.readouterr().err
        assert codes == [code, code]
        assert said.count(f"error: {reason}") == 2
        assert "secret" not in said

    @pytest.mark.parametrize("url", ["garbage:secret", "postgresql+asyncpg://u:secret@h:port/x"])
    def test_what_is_no_url_is_a_usage_error(
        self, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
    ) -> None:
        environment.setenv("FLEEK_DATABASE_URL", url)

        assert execute(["db", "current"]) == ExitCode.USAGE
        assert "secret" not in capsys.readouterr().err


class TestDoctor:
    """Every check says what is wrong and what to do."""

    def _examine(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        """The checks by name; the exit code and `ok` agree with them."""
        code = execute(["doctor", "--json"])
        document = json.loads(capsys.readouterr().out)
        checks = {check["name"]: check for check in document["checks"]}
        is_well = all(check["status"] != "failed" for check in checks.values())
        # Where the configuration is wrong, nothing else could be looked at.
        failed = ExitCode.USAGE if list(checks) == ["configuration"] else ExitCode.FAILED
        assert (code, document["ok"]) == (ExitCode.OK if is_well else failed, is_well)
        assert all(
            bool(check["remedy"]) is (check["status"] in {"warning", "failed"}) for check in checks.values()
        )
        return checks

    @pytest.fixture
    def configured(
        self, environment: pytest.MonkeyPatch, database_url: str, redis_url: str
    ) -> pytest.MonkeyPatch:
        """Everything is there but a worker."""
        environment.setenv("FLEEK_DATABASE_URL", database_url)
        environment.setenv("FLEEK_REDIS_URL", redis_url)
        return environment

    @pytest.mark.usefixtures("configured")
    def test_all_is_well_with_a_worker(
        self,
        postgres: PostgresServer,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        command = [sys.executable, "-m", "fleek.cli.main", "worker"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
            try:
                _until_connected(postgres)
                checks = self._examine(capsys)
                assert execute(["doctor"]) == ExitCode.OK
            finally:
                worker.terminate()

        text = capsys.readouterr().out
        assert {check["status"] for check in checks.values()} == {"ok"}
        assert [line[:4] for line in text.splitlines()] == ["ok  "] * len(checks)
        assert checks["database"]["detail"].startswith("PostgreSQL 18")
        assert checks["models"]["detail"] == "demo"

    @pytest.mark.usefixtures("configured")
    def test_without_a_worker_the_last_check_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        checks = self._examine(capsys)

        assert [name for name, check in checks.items() if check["status"] != "ok"] == ["workers"]
        assert checks["workers"]["detail"] == "none is connected to the database"
        assert checks["workers"]["remedy"].startswith("fleek worker")

    @pytest.mark.usefixtures("configured")
    def test_a_queue_that_nobody_serves_is_named(
        self,
        database_url: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        now = datetime.now(UTC)
        asyncio.run(_make_job(database_url, queue="gpu", available_at=now - timedelta(minutes=2)))
        asyncio.run(_make_job(database_url, queue="fresh", available_at=now - timedelta(seconds=2)))

        checks = self._examine(capsys)

        assert checks["workers"]["detail"].startswith("due jobs wait and no worker takes them: gpu (12")
        assert checks["workers"]["remedy"] == "fleek worker --queues gpu"

    @pytest.mark.usefixtures("configured")
    def test_what_waits_for_an_operator_is_told_with_a_remedy(
        self, database_url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        long_ago = datetime.now(UTC) - timedelta(minutes=3)
        asyncio.run(_make_job(database_url, model="gone", available_at=long_ago))
        asyncio.run(_make_job(database_url, status="processing", lease_expires_at=long_ago))
        asyncio.run(_make_job(database_url, status="error", error_code="ambiguous_submission"))
        asyncio.run(
            _run(database_url, "INSERT INTO lane_state VALUES ('demo', 'demo', 'infinity', 'no ink')")
        )

        checks = self._examine(capsys)

        warned = {name: check["detail"] for name, check in checks.items() if check["status"] == "warning"}
        assert warned == {
            "queue": "this configuration has no such model: 1 of gone in default",
            "leases": warned["leases"],
            "pauses": "demo until resumed: no ink",
            "lost orders": "jobs of the last 7 days that may have been paid for without a result: 1",
        }
        assert warned["leases"].startswith("running jobs without a worker: 1, the first for 18")
        assert "fleek jobs ls --status error --code ambiguous_submission" in checks["lost orders"]["remedy"]

    @pytest.mark.usefixtures("configured")
    def test_a_queue_beside_those_of_the_workers_is_told(
        self, postgres: PostgresServer, database_url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asyncio.run(_make_job(database_url, queue="gpu"))
        command = [sys.executable, "-m", "fleek.cli.main", "worker", "--queues", "default,cpu"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
            try:
                _until_connected(postgres)
                checks = self._examine(capsys)
            finally:
                worker.terminate()

        assert checks["queue"]["detail"] == "no worker serves the queue of 1 of demo in gpu"
        assert checks["queue"]["remedy"] == "fleek worker --queues gpu"

    @pytest.mark.usefixtures("environment")
    def test_what_needs_a_database_is_skipped_without_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        began = time.monotonic()

        checks = self._examine(capsys)

        found = {name: check["status"] for name, check in checks.items()}
        assert found == {
            **dict.fromkeys(("configuration", "home", "secret key", "disk", "storage", "models"), "ok"),
            **dict.fromkeys(("database", "broker"), "failed"),
            **dict.fromkeys(
                ("schema", "clock", "queue", "leases", "pauses", "lost orders", "workers"), "skipped"
            ),
        }
        assert checks["database"]["detail"] == "no such file or directory"
        assert "script/up" in checks["database"]["remedy"]
        assert time.monotonic() - began < 10

    def test_a_server_that_is_silent_does_not_hang_it(
        self, configured: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            configured.setenv("FLEEK_DATABASE_URL", f"postgresql+asyncpg://u:secret@127.0.0.1:{port}/x")
            configured.setenv("FLEEK_REDIS_URL", f"redis://127.0.0.1:{port}")
            began = time.monotonic()

            checks = self._examine(capsys)

        assert checks["database"]["detail"] == "no answer within 5 s"
        assert checks["broker"]["status"] == "failed"
        assert time.monotonic() - began < 15

    @pytest.mark.parametrize(
        ("name", "value", "check", "status", "word"),
        [
            ("FLEEK_PORT", "many", "configuration", "failed", "FLEEK_PORT"),
            ("FLEEK_DATBASE_URL", "x", "configuration", "warning", "FLEEK_DATBASE_URL"),
            ("FLEEK_HOME", "{}/none", "home", "failed", "does not exist"),
            ("FLEEK_HOME", "{}/none", "storage", "failed", "which does not exist"),
            ("FLEEK_STORAGE_URL", "ftp://x", "storage", "failed", "FLEEK_STORAGE_URL"),
            ("FLEEK_STORAGE_URL", "file:///proc/nothing", "storage", "failed", ""),
            ("FLEEK_MODELS", '{"m": {"provider": "none"}}', "models", "failed", "no such provider"),
        ],
    )
    def test_a_wrong_setting_is_found(
        self,
        configured: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        name: str,
        value: str,
        check: str,
        status: str,
        word: str,
    ) -> None:
        configured.setenv(name, value.replace("{}", str(tmp_path)))

        found = self._examine(capsys)[check]

        assert found["status"] == status
        assert word in found["detail"]
        assert not (tmp_path / "none").exists()

    @pytest.mark.usefixtures("configured", "empty_database")
    def test_an_empty_database_is_told_from_an_old_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        checks = self._examine(capsys)

        assert (checks["schema"]["detail"], checks["schema"]["remedy"]) == (
            "the database is empty",
            "fleek db upgrade",
        )
        assert checks["workers"]["status"] == "skipped"

    @pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o644, "failed"), (0o640, "failed")])
    @pytest.mark.usefixtures("configured")
    def test_a_secret_that_others_can_read_is_found(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        mode: int,
        status: str,
    ) -> None:
        secret = tmp_path / "home" / "secret_key"
        secret.write_text("0" * 64)
        secret.chmod(mode)

        found = self._examine(capsys)["secret key"]

        assert found["status"] == status
        assert (found["remedy"] == f"chmod 600 {secret}") is (status == "failed")

    @pytest.mark.usefixtures("configured")
    def test_a_failed_check_has_its_remedy_below_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(["doctor"]) == ExitCode.FAILED

        *_, last, remedy = capsys.readouterr().out.splitlines()
        assert last.split()[:2] == ["fail", "workers"]
        assert remedy.strip() == "-> fleek worker (script/up starts one, too)"


class TestServe:
    """The parts one by one."""

    @pytest.mark.usefixtures("environment")
    def test_an_open_address_is_refused_with_the_reason(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(["api", "--host", "0.0.0.0"]) == ExitCode.USAGE  # noqa: S104  refused

        assert "asks nobody for a key yet" in capsys.readouterr().err

    @pytest.mark.usefixtures("environment")
    def test_a_wrong_log_level_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert execute(["worker", "--loglevel", "loud"]) == ExitCode.USAGE

        assert "FLEEK_LOG_LEVEL" in capsys.readouterr().err


async def _make_job(url: str, **facts: Any) -> None:
    database = Database(url)
    try:
        await make_job(database, **facts)
    finally:
        await database.aclose()


async def _run(url: str, statement: str) -> None:
    database = Database(url)
    try:
        await database.fetch_rowcount(text(statement))
    finally:
        await database.aclose()


def _until_connected(postgres: PostgresServer) -> None:
    """Wait for a worker's first connection."""
    question = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'fleek worker%'"
    deadline = time.monotonic() + 20
    while postgres.query(question) == "0":
        assert time.monotonic() < deadline
        time.sleep(0.05)
