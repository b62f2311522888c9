"""Many jobs with one command: which are meant, what became of each, and what ends it early."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.raw_server import Answer, RawServer, hang_up, problem, reply
from tests.terminal import Terminal

from fleek.cli.bulk import Bulk, Selection
from fleek.cli.client import Client, job_path
from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.main import execute
from fleek.cli.output import Output
from fleek.core.job import Status

_LIST = "GET /v1/media/jobs"
_CANCEL = ("jobs", "cancel", "--status", "in_queue")
_RETRY = ("jobs", "retry", "--status", "error")


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as running:
        yield running


def _id(number: int) -> str:
    return f"01920000-0000-7000-8000-{number:012}"


def _page(numbers: Sequence[int], status: str = "in_queue", cursor: str | None = None) -> Answer:
    items = [{"id": _id(number), "status": status} for number in numbers]
    return reply({"items": items, "next_cursor": cursor})


def _became(number: int, status: str) -> Answer:
    return reply({"id": _id(number), "status": status}, 202)


def _route(number: int, verb: str) -> str:
    return f"POST /v1/media/jobs/{_id(number)}/{verb}"


def _serve(server: RawServer, verb: str, status: str, count: int) -> None:
    """A server whose list holds jobs 1 to `count`, which all become `status`."""
    server.on(_LIST, _page(range(1, count + 1), "error" if verb == "retry" else "in_queue"))
    for number in range(1, count + 1):
        server.on(_route(number, verb), _became(number, status))


def _queries(server: RawServer) -> list[dict[str, list[str]]]:
    return [parse_qs(urlsplit(got.path).query, keep_blank_values=True) for got in server.requests_to(_LIST)]


def _changes(server: RawServer) -> int:
    return sum(got.method == "POST" for got in server.received)


class TestSelection:
    """Either one job is meant, or those that a filter finds."""

    def test_all_pages_are_read_before_the_first_job_is_changed(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "cancel", "canceled", 3)
        server.on(_LIST, _page([1, 2], cursor="next"), _page([3]))

        code = execute([*_CANCEL, "--model", "flux", "--yes", "--url", server.url])

        assert code == ExitCode.OK
        assert [got.method for got in server.received] == ["GET", "GET", "POST", "POST", "POST"]
        assert _queries(server) == [
            {"status": ["in_queue"], "model": ["flux"], "limit": ["100"]},
            {"status": ["in_queue"], "model": ["flux"], "limit": ["100"], "cursor": ["next"]},
        ]
        assert capsys.readouterr().out.splitlines() == [f"{_id(number)}\tcanceled" for number in (1, 2, 3)]

    def test_every_filter_reaches_the_server(self, server: RawServer) -> None:
        server.on(_LIST, _page([]))
        filters = {"--code": "timeout", "--q": "a boat", "--metadata": "order=1=2"}
        times = {"--created-after": "2026-11-20T12:00:00Z", "--created-before": "2026-11-21T12:00:00Z"}
        options = [part for pair in (filters | times).items() for part in pair]

        code = execute([*_RETRY, *options, "--limit", "7", "--url", server.url])

        assert code == ExitCode.OK
        assert _queries(server) == [
            {
                "status": ["error"],
                "code": ["timeout"],
                "q": ["a boat"],
                "metadata.order": ["1=2"],
                "created_after": ["2026-11-20T12:00:00Z"],
                "created_before": ["2026-11-21T12:00:00Z"],
                "limit": ["7"],
            }
        ]

    @pytest.mark.parametrize("verb", ["cancel", "retry"])
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "needs the id of a job, or a filter"),
            (("--limit", "3", "--yes"), "needs the id of a job, or a filter"),
            (("--dry-run",), "needs the id of a job, or a filter"),
            ((_id(1), "--status", "error"), "not both"),
            ((_id(1), "--code", "timeout"), "not both"),
            ((_id(1), "--limit", "1"), "not both"),
            ((_id(1), "--dry-run"), "not both"),
        ],
    )
    def test_either_one_job_or_a_filter_is_named(
        self,
        server: RawServer,
        capsys: pytest.CaptureFixture[str],
        verb: str,
        arguments: tuple[str, ...],
        said: str,
    ) -> None:
        code = execute(["jobs", verb, *arguments, "--url", server.url])

        assert code == ExitCode.USAGE
        assert said in capsys.readouterr().err
        assert server.received == []

    def test_an_empty_filter_is_left_to_the_server_to_refuse(self, server: RawServer) -> None:
        server.on(_LIST, problem(422, "invalid_request", "The query is not valid"))

        code = execute([*_CANCEL, "--model", "", "--yes", "--url", server.url])

        assert code == ExitCode.USAGE
        assert _queries(server)[0]["model"] == [""]
        assert _changes(server) == 0


class TestConsent:
    """Nothing is changed that nobody agreed to."""

    def test_without_a_terminal_it_must_be_said_that_it_is_meant(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "cancel", "canceled", 2)

        code = execute([*_CANCEL, "--url", server.url])

        said = capsys.readouterr()
        assert (code, said.out) == (ExitCode.USAGE, "")
        assert said.err.splitlines()[0] == "error: 2 jobs match, and nobody is there to be asked"
        assert "--yes" in said.err
        assert _changes(server) == 0

    def test_a_dry_run_only_lists(self, server: RawServer, capsys: pytest.CaptureFixture[str]) -> None:
        _serve(server, "retry", "in_queue", 2)

        codes = [execute([*_RETRY, "--dry-run", *more, "--url", server.url]) for more in ((), ("--json",))]

        out = capsys.readouterr().out
        lines = f"{_id(1)}\terror\n{_id(2)}\terror\n"
        assert codes == [ExitCode.OK, ExitCode.OK]
        assert out.startswith(lines)
        assert json.loads(out.removeprefix(lines)) == {
            "items": [{"id": _id(number), "status": "error", "error": None} for number in (1, 2)],
            "matched": 2,
            "changed": 0,
            "refused": 0,
        }
        assert _changes(server) == 0

    @pytest.mark.parametrize(
        ("typed", "exit_code", "changes"), [(b"y\n", 0, 2), (b"n\n", 1, 0), (b"\n", 1, 0)]
    )
    def test_on_a_terminal_it_asks_once(
        self, server: RawServer, tmp_path: Path, typed: bytes, exit_code: int, changes: int
    ) -> None:
        _serve(server, "cancel", "canceled", 2)
        command = [sys.executable, "-m", "fleek.cli.main", *_CANCEL, "--url", server.url]

        with Terminal(command, tmp_path, os.environ) as terminal:
            terminal.read_until("Cancel 2 jobs? [y/N]: ")
            terminal.type(typed)
            code = terminal.wait()

        assert (code, _changes(server)) == (exit_code, changes)
        assert ("2 of 2" in terminal.text) is bool(changes)


class TestOutcome:
    """Each job has its line, and none of them ends the others."""

    def test_a_refusal_is_a_line_and_the_others_go_on(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "retry", "in_queue", 3)
        server.on(_route(1, "retry"), problem(409, "would_pay_again", "It may be paid twice"))
        server.on(_route(2, "retry"), problem(404, "not_found", "No such job"))

        code = execute([*_RETRY, "--yes", "--url", server.url])

        said = capsys.readouterr()
        assert code == ExitCode.FAILED
        assert said.out.splitlines() == [
            f"{_id(1)}\trefused: would_pay_again",
            f"{_id(2)}\trefused: not_found",
            f"{_id(3)}\tin_queue",
        ]
        assert said.err.splitlines() == ["1 of 3 jobs: retry accepted", "error: 2 of 3 jobs refused"]

    def test_with_json_it_is_one_document(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "retry", "in_queue", 2)
        server.on(_route(1, "retry"), problem(409, "would_pay_again", "It may be paid twice"))

        code = execute([*_RETRY, "--yes", "--json", "--url", server.url])

        said = capsys.readouterr()
        refusal = {"code": "would_pay_again", "detail": "It may be paid twice"}
        assert code == ExitCode.FAILED
        assert json.loads(said.out) == {
            "items": [
                {"id": _id(1), "status": None, "error": refusal},
                {"id": _id(2), "status": "in_queue", "error": None},
            ],
            "matched": 2,
            "changed": 1,
            "refused": 1,
        }
        assert json.loads(said.err)["code"] == "refused"

    def test_every_retry_has_a_key_of_its_own_and_what_may_be_paid(self, server: RawServer) -> None:
        _serve(server, "retry", "in_queue", 5)

        execute([*_RETRY, "--max-paid-submissions", "2", "--yes", "--url", server.url])

        sent = [got for got in server.received if got.method == "POST"]
        assert [json.loads(got.body) for got in sent] == [{"max_paid_submissions": 2}] * 5
        assert len({got.headers["idempotency-key"] for got in sent}) == 5

    def test_jobs_that_had_ended_are_not_counted_as_changed(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "cancel", "canceled", 5)
        listed = ["in_queue", "canceled", "completed", "processing", "processing"]
        items = [{"id": _id(number), "status": status} for number, status in enumerate(listed, start=1)]
        server.on(_LIST, reply({"items": items, "next_cursor": None}))
        server.on(_route(3, "cancel"), _became(3, "completed"))
        server.on(_route(4, "cancel"), _became(4, "processing"))
        server.on(_route(5, "cancel"), _became(5, "completed"))

        execute(["jobs", "cancel", "--model", "flux", "--yes", "--json", "--url", server.url])

        counts: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert [item["status"] for item in counts.pop("items")] == [
            "canceled",
            "canceled",
            "completed",
            "processing",
            "completed",
        ]
        assert counts == {"matched": 5, "changed": 2, "refused": 0}

    def test_four_jobs_are_asked_at_the_same_time_and_no_more(self, server: RawServer) -> None:
        _serve(server, "cancel", "canceled", 8)
        lock, four_are_there = threading.Lock(), threading.Barrier(4)
        open_now: list[int] = []
        seen: list[int] = []

        def wait_for_the_others(number: int) -> Answer:
            def answer(connection: socket.socket) -> None:
                with lock:
                    open_now.append(number)
                    seen.append(len(open_now))
                four_are_there.wait(30)
                with lock:
                    open_now.remove(number)
                _became(number, "canceled")(connection)

            return answer

        for number in range(1, 9):
            server.on(_route(number, "cancel"), wait_for_the_others(number))

        code = execute([*_CANCEL, "--yes", "--url", server.url])

        assert code == ExitCode.OK
        assert max(seen) == 4


class TestStop:
    """A server that is gone and a signal end it, and what was done before is told."""

    def test_a_server_that_fails_ends_it_and_the_number_is_told(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "cancel", "canceled", 20)
        for number in range(3, 21):
            server.on(_route(number, "cancel"), problem(500, "internal_error", "A bug"))

        code = execute([*_CANCEL, "--yes", "--url", server.url])

        said = capsys.readouterr()
        assert code == ExitCode.UNREACHABLE
        assert said.out.splitlines() == [f"{_id(1)}\tcanceled", f"{_id(2)}\tcanceled"]
        assert said.err.splitlines()[0].endswith("error: A bug; 2 of 20 jobs were done")
        assert _changes(server) <= 6

    def test_with_json_what_was_done_is_still_a_document(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "cancel", "canceled", 2)
        server.on(_route(1, "cancel"), problem(500, "internal_error", "A bug"))

        code = execute([*_CANCEL, "--yes", "--json", "--url", server.url])

        said = capsys.readouterr()
        counts = {"matched": 2, "changed": 1, "refused": 0}
        error = json.loads(said.err)
        assert code == ExitCode.UNREACHABLE
        assert json.loads(said.out) == {
            "items": [{"id": _id(2), "status": "canceled", "error": None}],
            **counts,
        }
        assert {name: error[name] for name in counts} == counts
        assert (error["code"], error["exit_code"]) == ("internal_error", 3)

    def test_a_reply_that_never_comes_ends_it(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _serve(server, "cancel", "canceled", 2)
        server.on(_route(2, "cancel"), hang_up)
        client = Client(server.url, first_pause=0.01)
        cancel = Bulk(client, Output(), "cancel", lambda job_id: client.post(job_path(job_id, "cancel")).json)

        with pytest.raises(CommandError, match="1 of 2 jobs were done") as raised:
            cancel.run(Selection(status=Status.IN_QUEUE), dry_run=False, yes=True)

        assert raised.value.exit_code == ExitCode.UNREACHABLE
        assert capsys.readouterr().out == f"{_id(1)}\tcanceled\n"

    @pytest.mark.parametrize(
        ("number", "exit_code"),
        [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
    )
    def test_a_signal_ends_it_after_the_jobs_that_are_being_asked(
        self,
        server: RawServer,
        capsys: pytest.CaptureFixture[str],
        number: signal.Signals,
        exit_code: ExitCode,
    ) -> None:
        _serve(server, "cancel", "canceled", 20)

        def answer_after_a_signal(connection: socket.socket) -> None:
            os.kill(os.getpid(), number)
            time.sleep(1)
            _became(2, "canceled")(connection)

        server.on(_route(2, "cancel"), answer_after_a_signal)

        code = execute([*_CANCEL, "--yes", "--url", server.url])

        said, asked = capsys.readouterr(), _changes(server)
        assert code == exit_code
        assert asked < 20
        assert f"Interrupted; {asked} of 20 jobs were done" in said.err
        assert said.out.splitlines() == [f"{_id(job)}\tcanceled" for job in range(1, asked + 1)]
