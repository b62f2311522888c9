"""The commands that a developer types, as the guide prints them: each works on a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from fleek.db import migrate

ROOT = Path(__file__).parents[2]
SECONDS = 60
"""A bound against hangs, on a busy machine."""
DATED = re.compile(r"\d{8}_\d{4}_keep_the_weather\.py")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What Alembic writes into, and what a reload watches: a copy."""
    copied = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=copied)
    for name in ("alembic.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def environment(checkout: Path, create_database: Callable[[str], str], redis_url: str) -> Mapping[str, str]:
    # What runs is a copy: coverage would count it as code that nobody tests.
    ours = ("FLEEK_", "COVERAGE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return inherited | {
        "PYTHONPATH": str(checkout / "src"),
        "FLEEK_HOME": str(checkout / "home"),
        "FLEEK_DATABASE_URL": create_database("template0"),
        "FLEEK_REDIS_URL": redis_url,
    }


@pytest.fixture
def run(checkout: Path, environment: Mapping[str, str]) -> Run:
    def run_one(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    return run_one


def test_migrations_go_forward_one_step_back_and_forward_again(run: Run) -> None:
    results = [
        run("alembic", *words) for words in (["upgrade", "head"], ["downgrade", "-1"], ["upgrade", "head"])
    ]
    current = run("alembic", "current")

    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    assert current.stdout.startswith(migrate.head())


def test_a_migration_is_drafted_from_the_models_under_a_dated_name(run: Run, checkout: Path) -> None:
    run("alembic", "upgrade", "head")
    model = checkout / "src/fleek/events/models.py"
    model.write_text(model.read_text() + "    weather: Mapped[str | None] = mapped_column(Text)\n")

    drafted = run("alembic", "revision", "--autogenerate", "-m", "keep the weather")

    assert drafted.returncode == 0, drafted.stderr
    [draft] = [
        path
        for path in (checkout / "src/fleek/db/migrations/versions").iterdir()
        if DATED.fullmatch(path.name)
    ]
    written = draft.read_text()
    assert f'down_revision = "{migrate.head()}"' in written.replace("'", '"')
    assert "op.add_column('events', sa.Column('weather'" in written.replace('"', "'")
    assert "op.drop_column" in written
    assert run("alembic", "upgrade", "head").returncode == 0


@pytest.mark.slow
def test_the_api_starts_again_when_its_source_changes(
    run: Run, checkout: Path, environment: Mapping[str, str]
) -> None:
    assert run("alembic", "upgrade", "head").returncode == 0
    version = checkout / "src/fleek/api/health.py"
    with serving(checkout, environment) as url:
        before = get(f"{url}/openapi.json").text
        version.write_text(version.read_text().replace("The process lives. ", "The process is alive. "))
        wait_until(lambda: "The process is alive." in get(f"{url}/openapi.json").text)

    assert "The process lives." in before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None and not (ROOT / ".tools/bin/uv").exists(), reason="no uv here")
def test_uv_makes_an_environment_in_which_the_commands_work(checkout: Path) -> None:
    uv = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
    # Otherwise uv would take the environment that runs this test.
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}

    synced = subprocess.run(
        [uv, "sync"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    version = subprocess.run(
        [uv, "run", "fleek", "--version"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert synced.returncode == 0, synced.stderr
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", version.stdout), version.stderr


@contextmanager
def serving(checkout: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The URL of `uvicorn fleek.main:app --reload`, for as long as the block lasts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = ["uvicorn", "fleek.main:app", "--reload", "--reload-dir", "src", "--port", str(port)]
    log = checkout / "uvicorn.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", *command], cwd=checkout, env=environment, stdout=output, stderr=output
        ) as process,
    ):
        try:
            wait_until(lambda: get(f"http://127.0.0.1:{port}/livez").status_code == httpx2.codes.OK)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)


def get(url: str) -> httpx2.Response:
    """An answer, or an empty one while nobody gives one."""
    try:
        return httpx2.get(url, timeout=5)
    except httpx2.TransportError:
        return httpx2.Response(httpx2.codes.SERVICE_UNAVAILABLE)


def wait_until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.1)
