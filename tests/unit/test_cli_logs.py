"""`fleek jobs logs`: for people, for pipes and for programs, at once or as records come."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.raw_server import Answer, RawServer, problem, reply
from tests.terminal import Terminal

from fleek.cli.exits import ExitCode
from fleek.cli.main import execute

_ID = "01920000-0000-7000-8000-000000000001"
_LOGS = f"GET /v1/media/jobs/{_ID}/logs"
_STATUS = f"GET /v1/media/status/{_ID}"


def entry(number: int, event: str = "attempt_started", **overrides: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": number,
        "at": f"2026-11-20T12:00:0{number}.250Z",
        "level": "info",
        "event": event,
        "attempt": 1,
        "process": "worker-1",
        "request_id": None,
        "data": {"owner": "local", "model": "demo", "seconds": 1.5},
    }
    return fields | overrides


def page(*entries: dict[str, Any], more: bool = False) -> Answer:
    return reply({"items": entries, "next_after": entries[-1]["id"] if more else None})


def status(value: str) -> Answer:
    return reply({"id": _ID, "status": value})


LAST = entry(3, "attempt_finished", data={"status": "completed", "outcome": "completed"})


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as running:
        running.on(_LOGS, page(entry(1), entry(2, "outputs_stored"), LAST))
        running.on(_STATUS, status("completed"))
        yield running


def queries(server: RawServer) -> list[dict[str, str]]:
    """What the log was asked for, each time."""
    asked = server.requests_to(_LOGS)
    return [{name: value for name, [value] in parse_qs(urlsplit(one.path).query).items()} for one in asked]


def run(server: RawServer, *arguments: str) -> int:
    return execute(["jobs", "logs", _ID, "--url", server.url, *arguments])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def test_where_no_terminal_reads_it_a_record_is_a_line_of_columns(
    server: RawServer, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = entry(4, "a\x1b[31m", attempt=None, level="warning", data={"x": "tab\t and \x1b"})
    server.on(_LOGS, page(entry(1, data={"seconds": 1.5}), odd))

    assert run(server) == ExitCode.OK
    assert lines(capsys) == [
        '2026-11-20T12:00:01.250Z\tinfo\t1\tattempt_started\t{"seconds": 1.5}',
        '2026-11-20T12:00:04.250Z\twarning\t\ta\\x1b[31m\t{"x": "tab\\t and \\u001b"}',
    ]


def test_with_json_a_record_is_a_line_as_the_api_has_it(
    server: RawServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, "--json") == ExitCode.OK
    assert [json.loads(line) for line in lines(capsys)] == [entry(1), entry(2, "outputs_stored"), LAST]


def test_all_pages_are_read_and_shown_in_the_order_of_their_times(
    server: RawServer, capsys: pytest.CaptureFixture[str]
) -> None:
    late = entry(9, "late", at="2026-11-20T12:00:00.000Z")
    server.on(_LOGS, page(entry(1), entry(2), more=True), page(late))

    assert run(server) == ExitCode.OK
    assert [line.split("\t")[3] for line in lines(capsys)] == ["late", "attempt_started", "attempt_started"]
    assert [query["after"] for query in queries(server)] == ["0", "2"]


def test_filters_are_the_servers(server: RawServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "--level", "warning", "--attempt", "2") == ExitCode.OK

    assert queries(server) == [{"level": "warning", "attempt": "2", "after": "0", "limit": "500"}]
    assert len(lines(capsys)) == 3


def test_following_shows_each_record_once_and_ends_with_the_jobs_last(
    server: RawServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on(_STATUS, status("processing"), status("processing"), status("completed"))
    server.on(_LOGS, page(entry(1)), page(), page(LAST))
    began = time.monotonic()

    assert run(server, "-f") == ExitCode.OK
    assert [line.split("\t")[3] for line in lines(capsys)] == ["attempt_started", "attempt_finished"]
    assert [query["after"] for query in queries(server)] == ["0", "1", "1"]
    assert 1.5 < time.monotonic() - began < 30


def test_following_a_job_that_ended_without_a_last_record_ends_after_a_while(
    server: RawServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on(_STATUS, status("canceled"))
    server.on(_LOGS, page())
    began = time.monotonic()

    assert run(server, "--follow") == ExitCode.OK
    assert lines(capsys) == []
    assert 2 < time.monotonic() - began < 30


def test_a_job_that_failed_is_no_failure_of_its_log(
    server: RawServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on(_STATUS, status("error"))
    server.on(_LOGS, page(entry(1, "attempt_finished", level="warning", data={"status": "error"})))

    assert run(server, "-f") == ExitCode.OK
    assert len(lines(capsys)) == 1


@pytest.mark.parametrize("arguments", [[], ["-f"]])
def test_a_job_that_is_not_there_is_refused(
    server: RawServer, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    for route in (_LOGS, _STATUS):
        server.on(route, problem(404, "not_found", "There is no such job"))

    assert run(server, *arguments) == ExitCode.USAGE
    assert capsys.readouterr() == ("", "error: There is no such job\n")


def test_what_is_no_id_names_no_other_route(server: RawServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["jobs", "logs", "../models", "-f", "--url", server.url]) == ExitCode.USAGE
    assert "is not the id of a job" in capsys.readouterr().err
    assert server.received == []


def test_sigterm_ends_a_follower(server: RawServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.on(_STATUS, status("processing"))
    stopping = page(entry(1))

    def answer(connection: Any) -> None:
        stopping(connection)
        os.kill(os.getpid(), signal.SIGTERM)

    server.on(_LOGS, answer)

    assert run(server, "-f") == ExitCode.TERMINATED
    assert "Stopped reading" in capsys.readouterr().err


class TestTerminal:
    """Colours, and the time where the user is."""

    def show(self, server: RawServer, folder: Path, **environment: str) -> list[str]:
        program = "import sys; from fleek.cli.main import execute; sys.exit(execute(sys.argv[1:]))"
        command = [sys.executable, "-c", program, "jobs", "logs", _ID, "--url", server.url]
        with Terminal(command, folder, {**os.environ, "TZ": "UTC", **environment}) as terminal:
            assert terminal.wait() == ExitCode.OK
            return terminal.text.splitlines()

    def test_a_record_is_a_coloured_line(self, server: RawServer, tmp_path: Path) -> None:
        odd = entry(
            2,
            "attempt_finished",
            level="warning",
            data={"owner": "x", "provider": "p", "code": "timeout", "error": "a \x1b b", "none": None},
        )
        server.on(_LOGS, page(entry(1), odd))
        first, second = self.show(server, tmp_path)

        plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in (first, second)]
        assert plain == [
            "12:00:01.250 info     #1  attempt_started owner=local model=demo seconds=1.5",
            '12:00:02.250 warning  #1  attempt_finished code=timeout error="a \\u001b b"',
        ]
        assert "\x1b[32minfo" in first
        assert "\x1b[33mwarning" in second

    def test_without_colours_where_none_are_welcome(self, server: RawServer, tmp_path: Path) -> None:
        text = self.show(server, tmp_path, NO_COLOR="1")

        assert len(text) == 3
        assert "\x1b" not in "".join(text)
