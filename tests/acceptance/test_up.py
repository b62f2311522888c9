"""One command starts everything, and everything ends with it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from tests.acceptance.conftest import ROOT, StartUp, clean_environment, gone_within, processes_of

from fleek.local.postgres import PostgresServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

_SECOND_START_SECONDS = 6
"""Twice what is promised (3 s on a machine that does nothing else): a test runs beside others."""
_PROMPT = {"prompt": "a lighthouse at dawn"}


class TestStart:
    """What it says, and where it listens."""

    def test_one_json_line_says_that_everything_is_ready(self, start_up: StartUp, new_home: Path) -> None:
        up = start_up(new_home)

        assert up.facts == {
            "url": up.url,
            "docs_url": f"{up.url}/docs",
            "home": str(new_home),
            "pid": up.process.pid,
        }
        assert httpx2.get(f"{up.url}/readyz").status_code == 200
        assert httpx2.get(up.facts["docs_url"]).status_code == 200
        assert up.end() == (0, "")

    def test_a_person_reads_where_it_is_and_what_to_try(self, home: Path, tmp_path: Path) -> None:
        text = _on_a_terminal(home, tmp_path)

        url = re.search(r"API +(http://127\.0\.0\.1:\d+)", text)
        assert url is not None
        assert f"Docs   {url[1]}/docs" in text
        assert f"Data   {home}" in text
        assert re.search(r'fleek generate "a lighthouse at dawn" --output lighthouse\.png --url http', text)

    def test_a_second_start_is_quick_and_has_the_same_data(self, start_up: StartUp, home: Path) -> None:
        first = start_up(home)
        job = httpx2.post(f"{first.url}/v1/media/generate", json=_PROMPT).raise_for_status().json()
        first.end()

        second = start_up(home)

        assert httpx2.get(f"{second.url}/v1/media/jobs/{job['id']}").json()["prompt"] == _PROMPT["prompt"]
        assert second.ready_seconds < _SECOND_START_SECONDS, second.said

    def test_a_worker_makes_the_picture(self, start_up: StartUp, home: Path) -> None:
        up = start_up(home, "--slots", "2", workers=1)

        answer = httpx2.post(
            f"{up.url}/v1/media/generate", json=_PROMPT, headers={"Prefer": "wait=30"}, timeout=40
        )

        assert answer.status_code == 200
        assert answer.json()["status"] == "completed"

    def test_a_busy_port_means_the_next_free_one_and_is_said(self, start_up: StartUp, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            up = start_up(home, "--port", str(port))

        chosen = int(up.url.rpartition(":")[2])
        assert chosen > port
        assert f"Port {port} is busy; using {chosen}" in up.said

    def test_an_open_address_is_refused_before_anything_starts(
        self, start_up: StartUp, new_home: Path
    ) -> None:
        up = start_up(new_home, "--host", "0.0.0.0", ready=False)  # noqa: S104  refused

        assert up.process.wait(20) == 2
        assert "spend your money" in up.said
        assert "--insecure-no-auth" in up.said
        assert not new_home.exists()

    def test_whoever_insists_may_listen_everywhere(self, start_up: StartUp, home: Path) -> None:
        """Other machines name the host as they know it."""
        up = start_up(home, "--host", "0.0.0.0", "--insecure-no-auth")  # noqa: S104  for the length of this test

        answer = httpx2.get(f"{up.url}/readyz", headers={"Host": "pictures.example"})

        assert answer.status_code == 200

    def test_a_second_one_on_the_same_home_is_sent_to_the_first(self, start_up: StartUp, home: Path) -> None:
        first = start_up(home)

        second = start_up(home, ready=False)

        assert second.process.wait(20) == 1
        assert f"already running on {first.facts['home']}: {first.url}" in second.said
        assert httpx2.get(f"{first.url}/readyz").status_code == 200

    def test_servers_that_are_configured_are_used_instead_of_own_ones(
        self,
        start_up: StartUp,
        new_home: Path,
        create_database: Callable[[str], str],
        postgres: PostgresServer,
        redis_url: str,
    ) -> None:
        url = create_database("template0")
        up = start_up(new_home, environment={"FLEEK_DATABASE_URL": url, "FLEEK_REDIS_URL": redis_url})

        httpx2.post(f"{up.url}/v1/media/generate", json=_PROMPT).raise_for_status()

        assert postgres.query("SELECT count(*) FROM jobs", url.partition("?")[0].rpartition("/")[2]) == "1"
        assert not (new_home / "postgres").exists()
        assert not (new_home / "run" / "valkey").exists()

    def test_a_database_that_does_not_answer_ends_the_start_with_a_reason(
        self, start_up: StartUp, home: Path
    ) -> None:
        nowhere = "postgresql+asyncpg://fleek@127.0.0.1:1/fleek"

        up = start_up(home, ready=False, environment={"FLEEK_DATABASE_URL": nowhere})

        assert up.process.wait(60) == 3
        assert "error: The database's schema could not be brought up to date" in up.said

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")
    def test_a_home_that_the_servers_cannot_enter_is_named_with_the_remedy(
        self, start_up: StartUp, new_home: Path
    ) -> None:
        new_home.mkdir(mode=0o700)

        up = start_up(new_home, ready=False)

        assert up.process.wait(20) == 2
        assert f"may not enter {new_home}" in up.said
        assert processes_of(new_home) == []


class TestEnd:
    """No process outlives it, and no data is lost."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_ends_everything_within_ten_seconds(
        self, start_up: StartUp, home: Path, number: signal.Signals
    ) -> None:
        up = start_up(home, workers=2)
        begin = time.monotonic()

        code, _ = up.end(number)

        assert code == 0, up.said
        assert time.monotonic() - begin < 10
        assert processes_of(home) == []
        assert not (home / "run" / "up.json").exists()

    def test_a_running_job_is_given_back_within_ten_seconds(self, start_up: StartUp, home: Path) -> None:
        up = start_up(home, workers=1)
        slow = {**_PROMPT, "input": {"delay_seconds": 60}}
        job = httpx2.post(f"{up.url}/v1/media/generate", json=slow).raise_for_status().json()
        _wait_for_status(up.url, job["id"], "processing")
        begin = time.monotonic()

        code, _ = up.end()

        assert code == 0, up.said
        assert time.monotonic() - begin < 10
        assert processes_of(home) == []
        again = start_up(home)
        assert httpx2.get(f"{again.url}/v1/media/status/{job['id']}").json()["status"] == "in_queue"

    def test_a_killed_supervisor_leaves_no_process_and_all_data(self, start_up: StartUp, home: Path) -> None:
        up = start_up(home, workers=1)
        job = httpx2.post(f"{up.url}/v1/media/generate", json=_PROMPT).raise_for_status().json()
        up.process.kill()
        up.process.wait()

        assert gone_within(home, 5), processes_of(home)
        again = start_up(home)
        assert httpx2.get(f"{again.url}/v1/media/jobs/{job['id']}").json()["id"] == job["id"]

    def test_a_supervisor_that_is_killed_while_it_starts_leaves_no_process(
        self, start_up: StartUp, new_home: Path
    ) -> None:
        up = start_up(new_home, workers=1, ready=False)
        _wait_until(
            lambda: (new_home / "run" / "postgres.pid").exists() or (new_home / "run" / "initdb.pid").exists()
        )
        up.process.kill()
        up.process.wait()

        assert gone_within(new_home, 5), processes_of(new_home)
        assert httpx2.get(f"{start_up(new_home).url}/readyz").status_code == 200


class TestRestart:
    """A part that dies is started again, aloud."""

    @pytest.mark.parametrize("part", ["api", "postgres", "valkey", "worker-1"])
    def test_a_part_that_dies_comes_back(self, start_up: StartUp, home: Path, part: str) -> None:
        up = start_up(home, workers=1)
        before = _pid_of(home, part)

        os.kill(before, signal.SIGKILL)
        _wait_until(lambda: _pid_of(home, part) not in {0, before})

        _wait_until(lambda: httpx2.get(f"{up.url}/readyz", timeout=30).status_code == 200)
        assert f"{part} ended unexpectedly (SIGKILL); starting it again in 0.5 s" in up.said
        answer = httpx2.post(
            f"{up.url}/v1/media/generate",
            json={**_PROMPT, "input": {"delay_seconds": 0}},
            headers={"Prefer": "wait=40"},
            timeout=50,
        )
        assert answer.json()["status"] == "completed"


def _on_a_terminal(home: Path, folder: Path) -> str:
    """What stands on the terminal of a person who starts it, until it is ready."""
    master, slave = pty.openpty()
    command = [str(ROOT / "script" / "up"), "--home", str(home), "--port", "0", "--workers", "0"]
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=clean_environment()
    ) as process:
        os.close(slave)
        text = ""
        while "Ctrl-C stops everything" not in text:
            text += os.read(master, 65_536).decode()
        process.terminate()
        while process.poll() is None:
            _drain(master)
    os.close(master)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _drain(terminal: int) -> None:
    """Linux ends a terminal whose programs are gone with an error."""
    try:
        os.read(terminal, 65_536)
    except OSError:
        time.sleep(0.01)


def _pid_of(home: Path, part: str) -> int:
    try:
        return int(json.loads((home / "run" / f"{part}.pid").read_text())["pid"])
    except OSError:
        return 0


def _wait_for_status(url: str, job: str, status: str) -> None:
    _wait_until(lambda: httpx2.get(f"{url}/v1/media/status/{job}").json()["status"] == status)


def _wait_until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.02)
