"""A worker's own port, by raw bytes: probes, and those who only look like one."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fleek.core.errors import ConfigurationError
from fleek.tasks import probe
from fleek.tasks.probe import Check, ProbeServer

HOST = "127.0.0.1"
GET = "GET {} HTTP/1.1\r\nHost: worker\r\n\r\n"


def well() -> str | None:
    return None


def metrics() -> tuple[bytes, str]:
    return b"jobs 3\n", "text/plain; version=0.0.4"


def broken() -> tuple[bytes, str]:
    raise ValueError("no number")


@asynccontextmanager
async def probed(is_live: Check = well, is_ready: Check = well, patience: float = 20) -> AsyncIterator[int]:
    """The port of a server with two pages."""
    pages = {"/metrics": metrics, "/broken": broken}
    server = ProbeServer(is_live, is_ready, pages, patience=patience)
    port = await server.start(HOST, 0)
    try:
        yield port
    finally:
        await server.aclose()


async def exchange(port: int, request: bytes) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(request)
    async with asyncio.timeout(20):
        received = await reader.read()
    writer.close()
    return received


async def get(port: int, path: str) -> tuple[int, str]:
    head, _, body = (await exchange(port, GET.format(path).encode())).decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/readyz?verbose"])
async def test_a_worker_that_is_well_says_so(path: str) -> None:
    async with probed() as port:
        status, body = await get(port, path)

    assert (status, json.loads(body)) == (200, {"status": "ok"})


async def test_what_is_wrong_is_told_with_503_and_by_its_own_route_alone() -> None:
    async with probed(is_ready=lambda: "the database does not answer") as port:
        live, ready = await get(port, "/livez"), await get(port, "/readyz")

    assert live[0] == 200
    assert ready[0] == 503
    assert json.loads(ready[1]) == {"status": "unavailable", "detail": "the database does not answer"}


async def test_a_page_is_answered_with_its_own_content_type() -> None:
    async with probed() as port:
        answer = await exchange(port, GET.format("/metrics").encode())

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: text/plain; version=0.0.4\r\n" in head
    assert b"Content-Length: 7\r\n" in head
    assert body == b"jobs 3\n"


async def test_a_page_that_fails_is_500_and_the_next_one_is_answered() -> None:
    async with probed() as port:
        failed, after = await get(port, "/broken"), await get(port, "/livez")

    assert (failed[0], after[0]) == (500, 200)
    assert "no number" not in failed[1]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /nothing HTTP/1.1", b"404"),
        ("GET /livez/ HTTP/1.1", b"404"),
        ("POST /livez HTTP/1.1", b"405"),
        ("nonsense", b"405"),
        ("GET", b"404"),
        ("", b"405"),
    ],
)
async def test_everything_else_is_refused(request_line: str, status: bytes) -> None:
    async with probed() as port:
        answer = await exchange(port, f"{request_line}\r\nHost: worker\r\n\r\n".encode())

    assert answer.split()[1] == status


async def test_a_head_request_gets_the_head_alone() -> None:
    async with probed() as port:
        answer = await exchange(port, b"HEAD /livez HTTP/1.1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\n", b"GET " + b"x" * 100_000])
async def test_half_a_request_is_dropped_and_keeps_nobody_else_out(sent: bytes) -> None:
    async with probed(patience=0.3) as port:
        halves = [asyncio.create_task(_drop(port, sent)) for _ in range(8)]
        await asyncio.sleep(0.05)
        whole = await get(port, "/livez")
        answers = await asyncio.gather(*halves)

    assert whole[0] == 200
    assert set(answers) == {b""}


async def test_more_connections_than_a_probe_needs_are_cut_off() -> None:
    async with probed() as port:
        idle = [await asyncio.open_connection(HOST, port) for _ in range(probe._MOST_CONNECTIONS)]
        await asyncio.sleep(0.05)
        one_more = await _drop(port, GET.format("/livez").encode())
        for _, writer in idle:
            writer.close()
        await asyncio.sleep(0.05)
        after = await get(port, "/livez")

    assert one_more == b""
    assert after[0] == 200


async def test_closing_does_not_wait_for_those_who_say_nothing() -> None:
    async with probed() as port:
        _, writer = await asyncio.open_connection(HOST, port)
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()

    assert asyncio.get_running_loop().time() - began < 3
    writer.close()


async def test_a_port_that_is_taken_is_told_by_its_setting() -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(ConfigurationError, match=f"FLEEK_WORKER_PORT: port {port} is busy"):
            await ProbeServer(well, well).start(HOST, port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
async def test_an_address_that_is_not_ours_is_told_by_its_setting(host: str) -> None:
    with pytest.raises(ConfigurationError, match="FLEEK_WORKER_HOST: cannot listen on"):
        await ProbeServer(well, well).start(host, 0)


async def test_one_that_was_never_started_can_be_closed() -> None:
    server = ProbeServer(well, well)
    await server.aclose()

    assert server._server is None


async def _drop(port: int, sent: bytes) -> bytes:
    """What comes back for this; nothing also where the connection is cut."""
    try:
        return await exchange(port, sent)
    except ConnectionError:
        return b""
