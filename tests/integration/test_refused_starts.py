"""However Fleek is started, a wrong setting ends the start with one line that names it, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleek.local.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
FLEEK = (PYTHON, "-m", "fleek.cli.main")
UVICORN = (PYTHON, "-m", "uvicorn", "fleek.main:app", "--port", "0")
CELERY = (PYTHON, "-m", "celery", "-A", "fleek.tasks.celery", "worker")
WRONG, UVICORNS_OWN, UNREACHABLE = 2, 3, 3


def start(
    command: tuple[str, ...], folder: Path, timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with these settings and no others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("FLEEK_", "SENTRY_"))}
    return subprocess.run(
        command,
        cwd=folder,
        env=plain | {"FLEEK_HOME": str(folder / "home")} | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize(
    "command",
    [
        *(pytest.param((*FLEEK, name), id=name) for name in ("api", "worker", "up")),
        pytest.param((*FLEEK, "db", "upgrade"), id="db upgrade"),
        pytest.param((*FLEEK, "storage", "init"), id="storage init"),
        pytest.param(UVICORN, id="uvicorn"),
        pytest.param(CELERY, id="celery"),
    ],
)
def test_a_wrong_setting_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    ended = start(command, tmp_path, FLEEK_SLOTS="hunter2")

    assert ended.returncode == WRONG
    assert ended.stderr == "error: FLEEK_SLOTS: must be a whole number; such as 64\n"
    assert ended.stdout == ""


def test_alembic_is_told_the_same(tmp_path: Path) -> None:
    alembic = (PYTHON, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "current")
    ended = start(alembic, tmp_path, FLEEK_SLOTS="hunter2")

    assert (ended.returncode, ended.stderr) == (
        WRONG,
        "error: FLEEK_SLOTS: must be a whole number; such as 64\n",
    )


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        pytest.param("no_such_database", WRONG, 'refuses us: database "no_such_database" does', id="refused"),
        pytest.param(None, UNREACHABLE, "does not answer: ", id="away"),
    ],
)
def test_alembic_says_in_one_line_that_there_is_no_database(
    name: str | None, code: int, told: str, tmp_path: Path, postgres: PostgresServer
) -> None:
    url = postgres.url(name) if name else "postgresql://fleek:hunter2@127.0.0.1:1/fleek"
    alembic = (PYTHON, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), "upgrade", "head")
    ended = start(alembic, tmp_path, FLEEK_DATABASE_URL=url)

    assert ended.returncode == code
    assert ended.stderr.startswith(f"error: FLEEK_DATABASE_URL: the database {told}")
    assert ended.stderr.count("\n") == 1
    assert "hunter2" not in ended.stderr


def test_the_doctor_finds_it_and_ends_with_the_same_code(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FLEEK_SLOTS=hunter2\n")
    ended = start((*FLEEK, "doctor"), tmp_path)

    assert ended.returncode == WRONG
    assert ended.stdout.startswith(
        "fail  configuration  FLEEK_SLOTS (.env, line 1): must be a whole number; such as 64\n"
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param((*FLEEK, "api", "--port", "0"), WRONG, id="api"),
        pytest.param((*FLEEK, "worker"), WRONG, id="worker"),
        pytest.param(UVICORN, UVICORNS_OWN, id="uvicorn", marks=pytest.mark.slow),
        pytest.param(CELERY, WRONG, id="celery", marks=pytest.mark.slow),
    ],
)
def test_a_model_of_an_unknown_provider_names_those_that_are_installed(
    command: tuple[str, ...], code: int, tmp_path: Path, database_url: str, redis_url: str
) -> None:
    (tmp_path / "fleek.toml").write_text('[models."x"]\nprovider = "replicat"\n')
    servers = {"FLEEK_DATABASE_URL": database_url, "FLEEK_REDIS_URL": redis_url}
    ended = start(command, tmp_path, **servers)

    assert ended.returncode == code
    assert "models.x: no such provider: replicat; known: demo, replicate" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_dsn_that_is_none_stops_the_start(tmp_path: Path) -> None:
    ended = start((*FLEEK, "api"), tmp_path, SENTRY_DSN="https://hunter2@sentry.example.com/project")

    assert ended.returncode == WRONG
    assert ended.stderr.startswith(
        "error: SENTRY_DSN: must be a Sentry DSN that ends in a project's number; "
    )
    assert "hunter2" not in ended.stderr


def test_a_misspelt_variable_is_warned_of_and_stops_nothing(tmp_path: Path) -> None:
    # The store that nobody has ends the start after the warning.
    ended = start((*FLEEK, "worker"), tmp_path, FLEEK_SLOTZ="3", FLEEK_STORAGE_URL="ftp://example.com")

    assert '"event": "unknown_setting"' in ended.stderr
    assert '"variable": "FLEEK_SLOTZ", "did_you_mean": "FLEEK_SLOTS"' in ended.stderr
    assert "FLEEK_STORAGE_URL" in ended.stderr
