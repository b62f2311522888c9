"""How the command line talks to a server, also to one that answers late, wrongly, or not at all."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.raw_server import Answer, RawServer, event, hang_up, problem, reply, send, stream

from fleek.cli.client import NO_ANSWER, Client, find_local_url, job_path, model_path, normalise_url
from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.http import ServerEvent
from fleek.core.home import Home
from fleek.local.instance import Instance, hold_home, prepare_home, publish_instance

_JOB = "01920000-0000-7000-8000-000000000001"
_GENERATE = "POST /v1/media/generate"
_ACCEPTED = reply({"id": _JOB}, 202)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as running:
        yield running


@pytest.fixture
def client(server: RawServer) -> Client:
    return Client(server.url)


class TestWrite:
    """A write is sent again only under the same key, and only while that can help."""

    def test_a_body_travels_as_json_with_its_key(self, server: RawServer, client: Client) -> None:
        server.on(_GENERATE, _ACCEPTED)

        answer = client.post("/v1/media/generate", {"prompt": "灯台 \ud83d"}, key="k-1")

        (got,) = server.received
        assert answer.json == {"id": _JOB}
        assert json.loads(got.body) == {"prompt": "灯台 \ud83d"}
        assert got.headers["content-type"] == "application/json"
        assert got.headers["idempotency-key"] == "k-1"

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(hang_up, id="no answer"),
            pytest.param(send(b"HTTP/1.1 202 Acc"), id="half a status line"),
            pytest.param(send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 900\r\n\r\n{"), id="half a body"),
            pytest.param(problem(503, "unavailable", "Later"), id="503"),
            pytest.param(reply(b"<h1>Bad gateway</h1>", 502, "text/html"), id="a proxy's 502"),
            pytest.param(problem(409, "idempotency_in_flight", "In progress"), id="still in flight"),
        ],
    )
    def test_a_lost_reply_is_asked_for_again_with_the_same_key(
        self, server: RawServer, client: Client, first: Answer
    ) -> None:
        server.on(_GENERATE, first, _ACCEPTED)

        answer = client.post("/v1/media/generate", {"prompt": "x"}, key="k-1")

        assert answer.json == {"id": _JOB}
        assert [got.headers["idempotency-key"] for got in server.received] == ["k-1", "k-1"]

    def test_retry_after_is_honoured(self, server: RawServer, client: Client) -> None:
        server.on(_GENERATE, reply(b"", 503, "text/plain", retry_after="1"), _ACCEPTED)
        began = time.monotonic()

        client.post("/v1/media/generate", {}, key="k-1")

        assert time.monotonic() - began >= 1

    def test_a_server_that_goes_away_in_between_leaves_the_outcome_open(self) -> None:
        with RawServer() as vanishing:

            def vanish(_connection: socket.socket) -> None:
                vanishing._listener.close()

            vanishing.on(_GENERATE, vanish)
            with pytest.raises(CommandError) as caught:
                Client(vanishing.url, first_pause=0.01).post("/v1/media/generate", {}, key="k-1")

        assert caught.value.problem_code == NO_ANSWER
        assert caught.value.exit_code == ExitCode.UNREACHABLE

    @pytest.mark.parametrize(
        ("answer", "exit_code", "code", "message"),
        [
            (problem(422, "invalid_request", "Does not fit"), 2, "invalid_request", "Does not fit"),
            (problem(409, "job_not_retryable", "Only a job"), 2, "job_not_retryable", "Only a job"),
            (problem(404, "not_found", "No such job"), 2, "not_found", "No such job"),
            (problem(500, "internal_error", "Went wrong"), 3, "internal_error", "Went wrong"),
            (reply(b"<p>hm</p>", 404, "text/html"), 2, "unexpected_answer", "404, but not as Fleek does"),
            (reply([], 404), 2, "unexpected_answer", "404, but not as Fleek does"),
            (reply(b"<p>hi</p>", 200, "text/html"), 3, "unreachable", "answers, but not as Fleek does"),
            (reply(b"", 301, location="/elsewhere"), 2, "unexpected_answer", "301, but not as Fleek does"),
        ],
    )
    def test_a_refusal_is_final(
        self, server: RawServer, client: Client, answer: Answer, exit_code: int, code: str, message: str
    ) -> None:
        server.on(_GENERATE, answer)

        with pytest.raises(CommandError) as caught:
            client.post("/v1/media/generate", {}, key="k-1")

        assert (caught.value.exit_code, caught.value.problem_code) == (exit_code, code)
        assert message in caught.value.message
        assert len(server.received) == 1


class TestNobodyThere:
    """Where no connection comes about, nothing was sent: say so at once."""

    def test_a_refused_connection_ends_at_once(self) -> None:
        with RawServer() as server:
            url = server.url
        began = time.monotonic()

        with pytest.raises(CommandError) as caught:
            Client(url).get("/v1/models")

        assert caught.value.message == f"{url} does not answer: connection refused"
        assert (caught.value.exit_code, caught.value.problem_code) == (ExitCode.UNREACHABLE, "unreachable")
        assert time.monotonic() - began < 1

    def test_a_host_that_does_not_exist_is_named(self) -> None:
        with pytest.raises(CommandError, match=r"http://nowhere\.invalid does not answer: "):
            Client("http://nowhere.invalid").get("/v1/models")

    def test_tls_with_a_server_that_speaks_none_is_no_crash(self, server: RawServer) -> None:
        server.on("GET /v1/models", reply({}))

        with pytest.raises(CommandError) as caught:
            Client(server.url.replace("http", "https")).get("/v1/models")

        assert caught.value.exit_code == ExitCode.UNREACHABLE

    def test_a_proxy_of_the_environment_does_not_come_between_this_machine_and_itself(
        self, server: RawServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        server.on("GET /v1/models", reply({"items": []}))

        assert Client(server.url).get("/v1/models") == {"items": []}


class TestStream:
    """Events as the standard describes them."""

    def test_fields_comments_and_blank_events(self, server: RawServer, client: Client) -> None:
        text = (
            "retry: 2000\n\n: a comment\n\nevent: accepted\nid: 1\ndata: {}\n\n"
            "data:no space\r\ndata: two lines\r\n\r\nevent: empty\n\nid: 3\ndata: cut off"
        )
        server.on("GET /events", stream(*text))  # every character is a piece of its own

        events = list(client.events("/events", None))

        assert events == [
            ServerEvent("accepted", "{}", "1"),
            ServerEvent("message", "no space\ntwo lines", ""),
        ]

    def test_an_event_arrives_while_the_stream_stays_open(self, server: RawServer, client: Client) -> None:
        chunked = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        first = event("accepted", 1).encode()

        def answer(connection: socket.socket) -> None:
            connection.sendall(chunked + f"{len(first):x}\r\n".encode() + first + b"\r\n")
            connection.recv(1)  # until the client leaves

        server.on("GET /events", answer)
        began = time.monotonic()

        assert next(client.events("/events", None)).name == "accepted"
        assert time.monotonic() - began < 2

    def test_the_last_event_is_named_when_it_is_known(self, server: RawServer, client: Client) -> None:
        server.on("GET /events", stream(event("claimed", 8)))

        list(client.events("/events", "7"))

        assert server.received[0].headers["last-event-id"] == "7"

    def test_another_kind_of_answer_is_no_stream(self, server: RawServer, client: Client) -> None:
        server.on("GET /events", reply({}))

        with pytest.raises(CommandError, match="not with a stream of events"):
            list(client.events("/events", None))

    def test_a_refusal_is_read_before_it_is_told(self, server: RawServer, client: Client) -> None:
        server.on("GET /events", problem(404, "not_found", "No such job"))

        with pytest.raises(CommandError, match="No such job"):
            list(client.events("/events", None))


class TestDownload:
    """Content is behind a redirect."""

    def test_a_redirect_to_another_host_is_followed(self, server: RawServer, client: Client) -> None:
        with RawServer() as bucket:
            bucket.on("GET /object", reply(b"picture", content_type="image/png"))
            server.on("GET /content", reply(b"", 307, location=f"{bucket.url}/object?signature=x"))

            assert b"".join(client.download(f"{server.url}/content")) == b"picture"
            assert bucket.received[0].path == "/object?signature=x"

    @pytest.mark.parametrize(
        "location", ["/content", "ftp://127.0.0.1/", "file:///etc/passwd", "http://[", ""]
    )
    def test_a_redirect_that_leads_nowhere_is_no_crash(
        self, server: RawServer, client: Client, location: str
    ) -> None:
        server.on("GET /content", reply(b"", 307, location=location))

        with pytest.raises(CommandError) as caught:
            list(client.download(f"{server.url}/content"))

        assert caught.value.exit_code == ExitCode.UNREACHABLE


class TestStatus:
    """The light status, with its tag."""

    def test_a_status_that_did_not_change_is_none(self, server: RawServer, client: Client) -> None:
        route = f"GET /v1/media/status/{_JOB}"
        server.on(route, reply({"status": "in_queue"}, etag='"a"'), reply(b"", 304))

        first = client.status(_JOB)
        second = client.status(_JOB, wait=3, tag='"a"')

        assert (first, second) == (({"status": "in_queue"}, '"a"'), (None, '"a"'))
        assert server.received[1].path.endswith("?wait=3")
        assert server.received[1].headers["if-none-match"] == '"a"'


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://media.example.com/fleek/", "https://media.example.com/fleek"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_base_url_loses_its_last_slash(url: str, base: str) -> None:
    assert normalise_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://x",
        "http://",
        "http://x:port",
        "http://x:0",
        "http://x?y",
        "http://u:p@x",
        "file:///etc",
    ],
)
def test_what_is_no_base_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(CommandError) as caught:
        normalise_url(url)

    assert caught.value.exit_code == ExitCode.USAGE


def test_ids_and_names_cannot_leave_their_route() -> None:
    with pytest.raises(CommandError, match="is not the id of a job"):
        job_path("../models")
    assert job_path(_JOB, "cancel") == f"/v1/media/jobs/{_JOB}/cancel"
    assert model_path("owner/flux?x=#1") == "/v1/models/owner/flux%3Fx%3D%231"


class TestLocalFleek:
    """Without `--url` the one of this machine's home is meant."""

    def test_a_running_one_is_found_by_its_home(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = Home(tmp_path / "h")
        monkeypatch.setenv("FLEEK_HOME", str(home.path))
        prepare_home(home)

        with hold_home(home):
            publish_instance(home, Instance(url="http://127.0.0.1:4711", pid=1, version="1"))

            assert find_local_url() == "http://127.0.0.1:4711"

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            (".env", "export FLEEK_HOME={}\n"),
            (".env.local", "FLEEK_HOME='{}'\n"),
            ("fleek.toml", 'home = "{}"\n'),
        ],
    )
    def test_a_home_that_a_file_names_is_used(
        self, name: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FLEEK_HOME", raising=False)
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).write_text(content.format(tmp_path / "h"))

        with pytest.raises(CommandError) as caught:
            find_local_url()

        assert caught.value.message == f"No Fleek is running on {tmp_path / 'h'}"
        assert caught.value.exit_code == ExitCode.UNREACHABLE
        assert "script/up" in str(caught.value.hint)

    def test_otherwise_it_is_the_default_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FLEEK_HOME", raising=False)
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)

        with pytest.raises(CommandError, match=f"No Fleek is running on {tmp_path}/fleek"):
            find_local_url()
