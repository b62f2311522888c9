"""What every request passes, whatever it asks for."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from fastapi import FastAPI
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs
from tests.api.serving import Api, RawAnswer, ask, problem, serving

from fleek.api.middleware import FrontDoor, allowed_host_names
from fleek.api.problems import HANDLERS
from fleek.core.errors import LeaseLost, StorageUnavailable

EVERYWHERE = "0.0.0.0"  # noqa: S104  nothing listens there


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A small application that misbehaves, behind the front door."""
    app = FastAPI(exception_handlers=HANDLERS, openapi_url=None)
    app.add_middleware(FrontDoor, allowed_hosts=allowed_host_names(["media.example.com"], "10.1.2.3", None))

    @app.get("/crash")
    async def crash() -> None:
        raise RuntimeError("the password is 4711")

    @app.get("/lost")
    async def lose() -> None:
        raise LeaseLost

    @app.get("/away")
    async def away() -> None:
        raise StorageUnavailable

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"beginning"
            raise RuntimeError("the password is 4711")

        return StreamingResponse(chunks())

    @app.get("/slow")
    async def slow() -> Response:
        await asyncio.sleep(0)
        return Response("ok", headers={"Cache-Control": "private"})

    with serving(app) as port:
        yield port


def get(port: int, path: str, **headers: str) -> RawAnswer:
    return ask(port, "GET", path, [(name.replace("_", "-"), value) for name, value in headers.items()])


def test_an_unexpected_error_is_a_500_that_tells_nothing_and_is_logged_once(port: int) -> None:
    with capture_logs() as logs:
        answer = get(port, "/crash", X_Request_ID="trace-2")

    assert problem(answer.json()) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "trace-2"
    assert b"4711" not in answer.body
    assert [entry["event"] for entry in logs] == ["request_crashed", "request_finished"]


def test_an_error_that_clients_cannot_understand_is_a_500_as_well(port: int) -> None:
    with capture_logs() as logs:
        answer = get(port, "/lost")

    assert problem(answer.json()) == (500, "internal_error")
    assert b"lease" not in answer.body
    assert [entry.get("code") for entry in logs] == ["lease_lost", None]


def test_a_part_that_is_away_is_a_503_that_says_when_to_come_back(port: int) -> None:
    answer = get(port, "/away")

    assert problem(answer.json()) == (503, "storage_unavailable")
    assert answer.headers["retry-after"] == "2"


def test_an_answer_that_breaks_off_is_cut_so_that_its_client_notices(port: int) -> None:
    with capture_logs() as logs, pytest.raises(ConnectionError, match="incomplete"):
        get(port, "/half")

    assert [entry["event"] for entry in logs] == ["request_crashed"]


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "LOCALHOST:80",
        "media.example.com",
        "media.example.com:443",
        "10.1.2.3:8000",
    ],
)
def test_a_host_that_is_ours_is_answered(port: int, host: str) -> None:
    assert get(port, "/slow", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com", "127.0.0.1.evil.example.com", "localhost.evil", "xlocalhost", "10.1.2.4",
        "", " ", "localhost:port", "localhost:123456", "user@localhost", "localhost/x", "local host", "[::1",
        "media.example.com, evil.example.com", "\xff",
    ],
)  # fmt: skip
def test_any_other_host_is_a_400(port: int, host: str) -> None:
    assert problem(get(port, "/slow", Host=host).json()) == (400, "invalid_host")


@pytest.mark.parametrize("request_id", ["a", "0-9-A-z", "a" * 64])
def test_a_well_formed_request_id_is_kept(port: int, request_id: str) -> None:
    assert get(port, "/slow", X_Request_ID=request_id).headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "a" * 65, "a b", "a_b", "a\tb", "\xff", "<script>", '"'])
def test_any_other_request_id_is_replaced(port: int, request_id: str) -> None:
    given = get(port, "/slow", X_Request_ID=request_id).headers["x-request-id"]

    assert given != request_id
    assert 16 <= len(given) <= 64


def test_each_request_without_an_id_gets_one_of_its_own(port: int) -> None:
    ids = {get(port, "/slow").headers["x-request-id"] for _ in range(20)}

    assert len(ids) == 20


def test_requests_sent_at_once_on_one_connection_share_no_facts_of_their_records() -> None:
    async def bind(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await FastAPI()(scope, receive, send)
            return
        bound = structlog.contextvars.get_contextvars()
        structlog.contextvars.bind_contextvars(job_id=scope["path"])
        await Response(json.dumps(bound))(scope, receive, send)

    one = b"GET /%s HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: %s\r\n%s\r\n"
    sent = one % (b"a", b"first", b"") + one % (b"b", b"second", b"Connection: close\r\n")
    door = FrontDoor(bind, allowed_host_names((), "127.0.0.1", None))
    with serving(door) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(sent)
        received = b"".join(iter(lambda: client.recv(65_536), b""))

    assert re.findall(rb"{.*?}", received) == [b'{"request_id": "first"}', b'{"request_id": "second"}']


def test_every_answer_has_the_headers_that_keep_browsers_from_guessing(port: int) -> None:
    answer = get(port, "/nowhere")

    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["cache-control"] == "no-store"


def test_what_a_route_says_itself_is_left_alone(port: int) -> None:
    assert get(port, "/slow").headers["cache-control"] == "private"


def test_no_answer_allows_other_origins(api: Api) -> None:
    answer = api.ask("GET", "/livez", [("Origin", "https://evil.example.com")])
    preflight = api.ask("OPTIONS", "/v1/media/generate", [("Origin", "https://evil.example.com")])

    assert "access-control-allow-origin" not in {**answer.headers, **preflight.headers}


def test_a_star_allows_every_well_formed_host() -> None:
    door = FrontDoor(Response(), allowed_host_names(["*"], "127.0.0.1", None))

    assert door.is_allowed(b"anything.example.com")
    assert not door.is_allowed(b"<script>")


@pytest.mark.parametrize(
    ("listening_on", "public_url", "name"),
    [
        (EVERYWHERE, "https://Media.Example.com:8443/base", "media.example.com"),
        ("::", "https://[2001:db8::1]:8443", "[2001:db8::1]"),
        ("2001:db8::2", None, "[2001:db8::2]"),
        ("10.0.0.7", None, "10.0.0.7"),
    ],
)
def test_the_names_that_we_are_reached_by_are_allowed(
    listening_on: str, public_url: str | None, name: str
) -> None:
    names = allowed_host_names([], listening_on, public_url)

    assert name in names
    assert not names & {EVERYWHERE, "[::]", "::", ""}
