"""Waiting for a job over connections that break, and for jobs that do not end well."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.raw_server import Answer, RawServer, event, hang_up, problem, reply, stream
from tests.terminal import Terminal

from fleek.cli.client import Client
from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.feed import Change, Finished, JobFeed
from fleek.cli.main import execute

_ID = "01920000-0000-7000-8000-000000000001"
_EVENTS = f"GET /v1/media/jobs/{_ID}/events"
_STATUS = f"GET /v1/media/status/{_ID}"
_JOB = f"GET /v1/media/jobs/{_ID}"
_GENERATE = "POST /v1/media/generate"


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as running:
        running.on(_GENERATE, reply(_job("in_queue"), 202))
        running.on(_EVENTS, stream(event("accepted", 1), event("completed", 3)))
        running.on(_JOB, reply(_job("completed")))
        yield running


def _job(status: str, **more: Any) -> dict[str, Any]:
    return {"id": _ID, "status": status, "prompt": "x", "n": 1, "media": [], "error": None, **more}


def _signaling(number: signal.Signals, *pieces: str) -> Answer:
    """Send the pieces of a stream, then a signal to the client: to us."""

    def answer(connection: socket.socket) -> None:
        stream(*pieces)(connection)
        os.kill(os.getpid(), number)
        time.sleep(1)

    return answer


def _follow(server: RawServer, patience: float = 60) -> list[Change | Finished]:
    """Everything that a feed brings, to its end."""
    seen: list[Change | Finished] = []
    with JobFeed(Client(server.url, first_pause=0.01), _ID, patience=patience) as feed:
        while not seen or not isinstance(seen[-1], Finished):
            news = feed.next(20)
            assert news is not None
            seen.append(news)
    return seen


def _kinds(seen: list[Change | Finished]) -> list[str]:
    return [news.kind for news in seen if isinstance(news, Change)]


class TestFeed:
    """Events come once and in order, whatever happens to the connections."""

    def test_a_stream_brings_changes_and_then_the_whole_job(self, server: RawServer) -> None:
        progress = event("progress", progress=0.5)
        server.on(_EVENTS, stream(event("accepted", 1, a=1), progress, event("completed", 2)))

        seen = _follow(server)

        assert seen == [
            Change("accepted", {"a": 1}, 1),
            Change("progress", {"progress": 0.5}, None),
            Change("completed", {}, 2),
            Finished(_job("completed")),
        ]

    def test_a_broken_stream_goes_on_after_the_last_event(self, server: RawServer) -> None:
        server.on(
            _EVENTS,
            stream(event("accepted", 1), event("claimed", 2), event("progress", progress=0.1)),
            hang_up,
            stream(event("completed", 3)),
        )

        seen = _follow(server)

        named = [got.headers.get("last-event-id") for got in server.requests_to(_EVENTS)]
        assert _kinds(seen) == ["accepted", "claimed", "progress", "completed"]
        assert named == [None, "2", "2"]

    def test_an_end_that_a_client_has_undone_by_a_retry_is_not_the_end(self, server: RawServer) -> None:
        server.on(_EVENTS, stream(event("failed", 2), event("retried", 3), event("completed", 5)))
        server.on(_JOB, reply(_job("processing")), reply(_job("completed")))

        seen = _follow(server)

        assert _kinds(seen) == ["failed", "retried", "completed"]

    @pytest.mark.parametrize(
        "streams",
        [
            pytest.param([hang_up], id="nothing comes"),
            pytest.param([stream()], id="an empty stream"),
            pytest.param([reply(b"<p>hi</p>", content_type="text/html")], id="a page"),
            pytest.param([problem(405, "method_not_allowed", "No")], id="a refusal"),
            pytest.param([stream(event("accepted", 1)), hang_up], id="one event, then nothing"),
        ],
    )
    def test_where_no_stream_gets_through_the_status_is_asked_for(
        self, server: RawServer, streams: list[Any]
    ) -> None:
        server.on(_EVENTS, *streams)
        running, done = {"status": "processing", "progress": 0.5}, {"status": "completed"}
        server.on(_STATUS, reply(running, etag='"a"'), reply(b"", 304), hang_up, reply(done, etag='"b"'))

        seen = _follow(server)

        asked = [
            (got.path.partition("?")[2], got.headers.get("if-none-match"))
            for got in server.requests_to(_STATUS)
        ]
        assert asked == [("", None), *[("wait=10", '"a"')] * 3]
        assert seen[-3:] == [Change("status", running), Change("status", done), Finished(_job("completed"))]

    def test_a_job_that_is_deleted_meanwhile_ends_the_waiting(self, server: RawServer) -> None:
        server.on(_EVENTS, stream())
        server.on(_STATUS, problem(404, "not_found", "No such job"))

        with pytest.raises(CommandError, match="No such job"):
            _follow(server)

    def test_a_server_that_stays_away_is_given_up_after_a_while(self, server: RawServer) -> None:
        server.on(_EVENTS, hang_up)
        server.on(_STATUS, hang_up)
        began = time.monotonic()

        with pytest.raises(CommandError) as caught:
            _follow(server, patience=0.5)

        assert caught.value.exit_code == ExitCode.UNREACHABLE
        assert time.monotonic() - began < 15

    def test_without_news_the_wait_ends_in_time(self, server: RawServer) -> None:
        server.on(_EVENTS, stream("", pause=3))

        with JobFeed(Client(server.url), _ID) as feed:
            assert feed.next(0.1) is None


class TestCommand:
    """How `fleek generate` and `fleek jobs watch` end."""

    def test_a_failed_job_is_exit_1_with_its_reason(
        self, server: RawServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        error = {"code": "content_refused", "message": "No\x1b[2J", "retryable": False}
        server.on(_JOB, reply(_job("error", error=error)))

        code = execute(["generate", "x", "--url", server.url, "--output", str(tmp_path / "x.png")])

        said = capsys.readouterr()
        assert code == ExitCode.FAILED
        assert said.out == ""
        assert said.err.splitlines()[-1] == "error: The job failed: No\\x1b[2J"
        assert list(tmp_path.iterdir()) == []

    def test_with_json_a_failed_job_is_a_document_and_a_problem(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        error = {"code": "timeout", "message": "Too slow", "retryable": True}
        server.on(_JOB, reply(_job("error", error=error)))

        code = execute(["generate", "x", "--url", server.url, "--json"])

        said = capsys.readouterr()
        told = json.loads(said.err)
        assert code == ExitCode.FAILED
        assert json.loads(said.out) == {"job": _job("error", error=error), "files": []}
        assert (told["code"], told["exit_code"], told["job_id"]) == ("timeout", 1, _ID)
        assert told["hint"] == f"`fleek jobs retry {_ID} --url {server.url}` runs it again"

    def test_a_canceled_job_is_exit_1(self, server: RawServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.on(_JOB, reply(_job("canceled")))

        assert execute(["jobs", "watch", _ID, "--url", server.url]) == ExitCode.FAILED
        assert "error: The job was canceled\n" in capsys.readouterr().err

    def test_a_timeout_is_exit_124_and_tells_the_way_back(
        self, server: RawServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        server.on(_EVENTS, stream(event("accepted", 1), "", pause=3))
        wanted = str(tmp_path / "a b.png")

        code = execute(
            ["generate", "x", "--timeout", "0.3", "--url", server.url, "--output", wanted, "--force"]
        )

        *_, error, hint = capsys.readouterr().err.splitlines()
        assert code == ExitCode.TIMED_OUT
        assert error == "error: The job has not ended after 0.3 s; it goes on"
        assert hint == (
            f"hint: `fleek jobs watch {_ID} --output '{wanted}' --force --url {server.url}` goes on watching"
        )

    def test_a_lost_server_tells_the_way_back_too(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server.on(_EVENTS, stream())
        server.on(_STATUS, problem(404, "not_found", "No such job"))

        code = execute(["jobs", "watch", _ID, "--json", "--url", server.url])

        told = json.loads(capsys.readouterr().err)
        assert code == ExitCode.USAGE
        assert (told["code"], told["job_id"]) == ("not_found", _ID)

    @pytest.mark.parametrize(
        ("number", "exit_code"),
        [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
    )
    def test_a_signal_without_a_terminal_detaches(
        self,
        server: RawServer,
        capsys: pytest.CaptureFixture[str],
        number: signal.Signals,
        exit_code: ExitCode,
    ) -> None:
        server.on(_EVENTS, _signaling(number, event("accepted", 1)))

        code = execute(["jobs", "watch", _ID, "--url", server.url])

        *_, message, hint = capsys.readouterr().err.splitlines()
        assert code == exit_code
        assert message == f"Stopped waiting; job {_ID} goes on"
        assert hint == f"hint: `fleek jobs watch {_ID} --url {server.url}` goes on watching"
        assert not any("cancel" in got.path for got in server.received)

    def test_a_cancel_that_comes_too_late_changes_nothing(self, server: RawServer, tmp_path: Path) -> None:
        def complete_when_canceled(connection: socket.socket) -> None:
            stream(event("accepted", 1))(connection)
            while not any("cancel" in got.path for got in server.received):
                time.sleep(0.01)
            connection.sendall(event("completed", 2).encode())

        server.on(_EVENTS, complete_when_canceled)
        server.on(f"POST /v1/media/jobs/{_ID}/cancel", reply(_job("completed")))
        command = [sys.executable, "-m", "fleek.cli.main", "jobs", "watch", _ID, "--url", server.url]

        with Terminal(command, tmp_path, os.environ) as terminal:
            terminal.read_until("Waiting for a worker")
            terminal.type(b"\x03")
            terminal.read_until("[d/c] ")
            terminal.type(b"c\n")
            code = terminal.wait()

        assert "The job ended before it could be canceled" in terminal.text
        assert terminal.text.rstrip().endswith(f"{_ID}\tcompleted")
        assert code == ExitCode.OK

    def test_a_submission_without_an_answer_tells_how_to_find_out(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server.on(_GENERATE, hang_up)

        code = execute(["generate", "x", "--json", "--url", server.url])

        told = json.loads(capsys.readouterr().err)
        (key,) = {got.headers["idempotency-key"] for got in server.received}
        assert code == ExitCode.UNREACHABLE
        assert (told["code"], told["exit_code"]) == ("no_answer", 3)
        assert f"--idempotency-key {key} finds out" in told["hint"]

    def test_a_signal_while_submitting_tells_how_to_find_out(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        server.on(_GENERATE, _signaling(signal.SIGINT))

        code = execute(["generate", "x", "--idempotency-key", "k-1", "--url", server.url])

        assert code == ExitCode.INTERRUPTED
        assert "with --idempotency-key k-1 finds out, and makes no second job" in capsys.readouterr().err

    def test_a_signal_while_saving_leaves_no_file(
        self, server: RawServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        media = {"content_type": "image/png", "content_url": f"{server.url}/content", "sha256": "0"}
        server.on(_JOB, reply(_job("completed", media=[media])))
        server.on("GET /content", _signaling(signal.SIGTERM, "some bytes"))

        code = execute(["generate", "x", "--url", server.url, "--output", str(tmp_path / "x.png")])

        said = capsys.readouterr().err
        assert code == ExitCode.TERMINATED
        assert "Interrupted while saving\nhint: the result is kept; `fleek jobs watch" in said
        assert list(tmp_path.iterdir()) == []

    def test_a_repeated_key_says_so(self, server: RawServer, capsys: pytest.CaptureFixture[str]) -> None:
        server.on(_GENERATE, reply(_job("completed"), 202, idempotency_replayed="true"))

        assert execute(["generate", "x", "--idempotency-key", "k", "--url", server.url]) == ExitCode.OK
        assert "This key was used before" in capsys.readouterr().err


class TestRequest:
    """What is sent is what was said, and nothing else."""

    def _body(self, server: RawServer, *flags: str) -> dict[str, Any]:
        assert execute(["generate", "a prompt", *flags, "--no-wait", "--url", server.url]) == ExitCode.OK
        body: dict[str, Any] = json.loads(server.requests_to(_GENERATE)[0].body)
        return body

    def test_only_the_prompt_is_sent_when_nothing_else_is_said(self, server: RawServer) -> None:
        assert self._body(server) == {"prompt": "a prompt"}

    def test_every_flag_has_its_field(self, server: RawServer) -> None:
        body = self._body(
            server,
            *("--n", "2", "--model", "flux", "--seed", "0", "--width", "512", "--height", "256"),
            *("--format", "webp", "--negative-prompt", "fog", "--priority", "-3", "--deadline", "15m"),
            *("--max-attempts", "1", "--metadata", "order=0012", "--metadata", "empty="),
            *("--input", "steps=4", "--input", 'text="4"', "--input", "style=oil=paint"),
            *("--input", "list=[1, null]", "--input", "nan=NaN", "--input", "none="),
        )

        assert body == {
            "prompt": "a prompt",
            "n": 2,
            "model": "flux",
            "seed": 0,
            "width": 512,
            "height": 256,
            "output_format": "webp",
            "negative_prompt": "fog",
            "priority": -3,
            "deadline_seconds": 900,
            "max_attempts": 1,
            "metadata": {"order": "0012", "empty": ""},
            "input": {
                "steps": 4,
                "text": "4",
                "style": "oil=paint",
                "list": [1, None],
                "nan": "NaN",
                "none": "",
            },
        }

    def test_every_run_has_a_key_of_its_own(self, server: RawServer) -> None:
        for _ in range(2):
            self._body(server)

        first, second = (got.headers["idempotency-key"] for got in server.requests_to(_GENERATE))
        assert first != second

    def test_without_waiting_the_id_is_the_only_output(
        self, server: RawServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._body(server)

        assert capsys.readouterr().out == f"{_ID}\n"

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--input", "steps"], "--input 'steps' is not KEY=VALUE"),
            (["--input", "=4"], "--input '=4' is not KEY=VALUE"),
            (["--metadata", "a=1", "--metadata", "a=2"], "--metadata names 'a' twice"),
            (["--deadline", "soon"], "--deadline 'soon' is not a time"),
            (["--deadline", "-5"], "--deadline '-5' is not a time"),
            (["--no-wait", "--output", "x.png"], "--output needs the result"),
            (["--json", "--output", "-"], "Standard output cannot take both"),
            (["--output", "x.gif"], "Images are made as png, webp, jpeg, not as gif"),
            (["--idempotency-key", "two words"], "--idempotency-key takes 1 to 255 visible ASCII characters"),
            (["--idempotency-key", "ключ"], "--idempotency-key takes 1 to 255 visible ASCII characters"),
        ],
    )
    def test_what_makes_no_sense_is_refused_before_anything_is_sent(
        self, server: RawServer, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
    ) -> None:
        code = execute(["generate", "x", *flags, "--url", server.url])

        assert code == ExitCode.USAGE
        assert message in capsys.readouterr().err
        assert server.received == []
