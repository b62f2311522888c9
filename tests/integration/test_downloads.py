"""Fetching outputs over real sockets: what is refused, what is trouble, and that no key goes astray."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.http_wire import Request, head, read_request, whole

from fleek.core.addresses import Address, AllowList
from fleek.core.errors import OutputInvalid, ProviderError, ProviderErrorKind
from fleek.providers.downloads import FetchLimits, OutputFetcher, resolve_by_system

CONTENT = b"\x89PNG\r\n\x1a\n and so on"
LOOPBACK = AllowList.parse(["127.0.0.0/8"])
SECRET = {"Authorization": "Bearer secret"}
QUICK = FetchLimits(connect=1, read=0.2, total=5)

Answer = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


class Host:
    """One host on a real socket, which notes what it was asked."""

    def __init__(self, server: asyncio.Server, received: list[Request], scheme: str) -> None:
        self.received = received
        self.port: int = server.sockets[0].getsockname()[1]
        self.scheme = scheme

    def url(self, path: str = "/file.png", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"


Serve = Callable[..., Awaitable[Host]]


def say(content: bytes) -> Answer:
    """These bytes, whatever was asked."""

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(content)

    return answer


def redirect(target: str, status: int = 302) -> Answer:
    return say(whole(status, b"", "text/html", {"Location": target}))


OUTPUT = say(whole(200, CONTENT, "image/png"))


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """A function that opens a host; all are closed at the end."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def open_host(answer: Answer, context: ssl.SSLContext | None = None) -> Host:
        received: list[Request] = []

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                request = await read_request(reader)
                if request is not None:
                    received.append(request)
                    await answer(request, writer)
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=context)
        servers.append(server)
        return Host(server, received, "http" if context is None else "https")

    yield open_host
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def opened(allowed: AllowList, **options: Any) -> OutputFetcher:
    """A fetcher that believes no certificate at all."""
    return OutputFetcher(allowed, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), **options)


async def fetch(fetcher: OutputFetcher, url: str) -> bytes:
    return b"".join([piece async for piece in fetcher.fetch(url)])


def resolving(
    *answers: Sequence[str],
) -> tuple[Callable[[str, int], Awaitable[Sequence[Address]]], list[str]]:
    """A resolver that gives one answer after the other, and the hosts that it was asked for."""
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> Sequence[Address]:
        asked.append(host)
        return [ip_address(text) for text in answers[min(len(asked), len(answers)) - 1]]

    return resolve, asked


async def test_a_file_is_fetched_without_any_key_or_compression(serve: Serve) -> None:
    host = await serve(OUTPUT)

    assert await fetch(opened(LOOPBACK), host.url("/a%20b/c.png?sig=1%2F2")) == CONTENT
    [request] = host.received
    assert (request.method, request.path, request.query) == ("GET", "/a%20b/c.png", {"sig": "1/2"})
    assert request.headers["host"] == f"127.0.0.1:{host.port}"
    assert request.headers["accept-encoding"] == "identity"
    assert "authorization" not in request.headers


async def test_nothing_is_connected_before_the_first_piece_is_asked_for(serve: Serve) -> None:
    host = await serve(OUTPUT)

    pieces = opened(LOOPBACK).fetch(host.url())
    await asyncio.sleep(0.05)

    assert host.received == []
    assert await anext(pieces) == CONTENT
    await pieces.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x.png",
        "file:///etc/passwd",
        "gopher://example.com/",
        "data:text/plain,hello",
        "//example.com/x.png",
        "x.png",
        "",
        "https://",
        "https:///x.png",
        "http://example.com/x.png",
        "https://user:password@example.com/x.png",
        "https://user@example.com/x.png",
        "https://example.com:22/x.png",
        "https://example.com:8443/x.png",
        f"https://{'a' * 300}.com/x.png",
        "https://exa mple.com/x.png",
        "http://[::1/x.png",
    ],
)
async def test_a_url_that_is_no_plain_https_is_refused_without_a_look(url: str) -> None:
    resolve, asked = resolving(["1.1.1.1"])

    with pytest.raises(OutputInvalid, match="does not fetch from") as caught:
        await fetch(opened(AllowList(), resolve=resolve), url)

    assert asked == []
    assert "example" not in caught.value.message


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["::ffff:a9fe:a9fe"],
        ["1.1.1.1", "10.0.0.1"],
        ["64:ff9b::a9fe:a9fe"],
    ],
)
async def test_a_name_with_any_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    resolve, asked = resolving(addresses)

    with pytest.raises(OutputInvalid, match="does not fetch from"):
        await fetch(opened(AllowList(), resolve=resolve), "https://files.example/x.png")

    assert asked == ["files.example"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "127.1", "2130706433", "localhost"]
)
async def test_this_machine_is_refused_in_every_spelling(host: str) -> None:
    with pytest.raises(OutputInvalid, match="does not fetch from"):
        await fetch(opened(AllowList()), f"https://{host}/x.png")


async def test_a_name_is_resolved_once_and_the_checked_address_is_the_one_connected_to(serve: Serve) -> None:
    host = await serve(OUTPUT)
    resolve, asked = resolving(["127.0.0.1"], ["127.0.0.2"])

    fetcher = opened(AllowList.parse(["files.example"]), resolve=resolve)

    assert await fetch(fetcher, host.url(host="files.example")) == CONTENT
    assert asked == ["files.example"]
    assert host.received[0].headers["host"] == f"files.example:{host.port}"


async def test_the_next_address_is_tried_when_one_does_not_answer(serve: Serve) -> None:
    host = await serve(OUTPUT)
    resolve, _ = resolving(["127.0.0.3", "127.0.0.1"])

    fetcher = opened(AllowList.parse(["files.example"]), resolve=resolve)

    assert await fetch(fetcher, host.url(host="files.example")) == CONTENT


async def test_an_address_that_swallows_packets_leaves_time_for_the_next_one(serve: Serve) -> None:
    host = await serve(OUTPUT)
    resolve, _ = resolving(["127.0.0.9", "127.0.0.1"])
    fetcher = opened(
        AllowList.parse(["files.example"]),
        resolve=resolve,
        limits=FetchLimits(connect=2, read=5, total=20),
    )

    with swallowing("127.0.0.9", host.port):
        assert await fetch(fetcher, host.url(host="files.example")) == CONTENT


@contextmanager
def swallowing(address: str, port: int) -> Iterator[None]:
    """A listener whose queue is full: it answers no connection. Linux only."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            blocker = stack.enter_context(socket.socket())
            blocker.setblocking(False)  # noqa: FBT003  the standard library's signature
            blocker.connect_ex((address, port))
        yield


async def test_every_redirect_is_checked_again(serve: Serve) -> None:
    inside = await serve(OUTPUT)
    outside = await serve(redirect(f"http://127.0.0.1:{inside.port}/latest/meta-data"))
    resolve, _ = resolving(["127.0.0.1"])

    with pytest.raises(OutputInvalid, match="does not fetch from"):
        await fetch(
            opened(AllowList.parse(["cdn.example"]), resolve=resolve), outside.url(host="cdn.example")
        )

    assert len(outside.received) == 1
    assert inside.received == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_without_the_key(serve: Serve, status: int) -> None:
    foreign = await serve(OUTPUT)
    own = await serve(redirect(foreign.url(), status))
    asked: list[str] = []

    def headers_for(url: httpx2.URL) -> dict[str, str]:
        asked.append(str(url))
        return SECRET if url.port == own.port else {}

    assert await fetch(opened(LOOPBACK, headers_for=headers_for), own.url()) == CONTENT
    assert asked == [own.url(), foreign.url()]
    assert own.received[0].headers["authorization"] == "Bearer secret"
    assert "authorization" not in foreign.received[0].headers


async def test_a_redirect_may_be_relative(serve: Serve) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        await (OUTPUT if request.path == "/there.png" else redirect("../there.png"))(request, writer)

    host = await serve(answer)

    assert await fetch(opened(LOOPBACK), host.url("/here/x.png")) == CONTENT


async def test_the_fourth_redirect_is_one_too_many(serve: Serve) -> None:
    host = await serve(redirect("/file.png"))

    with pytest.raises(OutputInvalid, match="does not fetch from"):
        await fetch(opened(LOOPBACK), host.url())

    assert len(host.received) == 4


@pytest.mark.parametrize(
    "answer",
    [
        whole(404, b"<h1>Not Found</h1>", "text/html"),
        whole(403, b"secret of an intranet", "text/plain"),
        whole(204, b"", "text/html"),
        whole(206, CONTENT, "image/png"),
        whole(200, CONTENT, "image/png", {"Content-Encoding": "gzip"}),
    ],
    ids=["404", "403", "204", "206", "compressed"],
)
async def test_an_answer_without_the_file_is_an_invalid_output_and_is_not_repeated(
    serve: Serve, answer: bytes
) -> None:
    host = await serve(say(answer))

    with pytest.raises(OutputInvalid) as caught:
        await fetch(opened(LOOPBACK), host.url())

    assert caught.value.message == "An output of the model is not where the provider says it is"


@pytest.mark.parametrize(
    "answer",
    [
        whole(500, b"", "text/html"),
        whole(503, b"", "text/html"),
        whole(429, b"", "text/html"),
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        head(200, {"Content-Length": "100"}) + CONTENT,
        head(200, {"Transfer-Encoding": "chunked"}) + b"zz\r\n",
    ],
    ids=["500", "503", "429", "nothing", "no http", "short", "broken chunks"],
)
async def test_trouble_on_the_way_is_transient(serve: Serve, answer: bytes) -> None:
    host = await serve(say(answer))

    with pytest.raises(ProviderError) as caught:
        await fetch(opened(LOOPBACK), host.url())

    assert caught.value.kind is ProviderErrorKind.TRANSIENT
    assert caught.value.message == "An output of the model could not be fetched"


async def test_a_host_that_refuses_connections_is_transient_trouble() -> None:
    with pytest.raises(ProviderError) as caught:
        await fetch(opened(LOOPBACK), "http://127.0.0.1:1/x.png")

    assert caught.value.kind is ProviderErrorKind.TRANSIENT


async def test_a_name_that_does_not_resolve_is_transient_trouble() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[Address]:
        raise OSError

    nothing, _ = resolving([])
    for resolver in (resolve, nothing):
        with pytest.raises(ProviderError) as caught:
            await fetch(opened(AllowList(), resolve=resolver), "https://files.example/x.png")

        assert caught.value.kind is ProviderErrorKind.TRANSIENT


async def test_a_host_that_falls_silent_is_given_up(serve: Serve) -> None:
    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, {"Content-Length": "100"}) + CONTENT)
        await asyncio.sleep(30)

    host = await serve(answer)

    with pytest.raises(ProviderError, match="could not be fetched"):
        async with asyncio.timeout(10):
            await fetch(opened(LOOPBACK, limits=QUICK), host.url())


async def test_a_host_that_sends_a_byte_now_and_then_is_given_up_in_the_end(serve: Serve) -> None:
    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, {"Content-Length": "1000000"}))
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.05)

    host = await serve(answer)
    limits = FetchLimits(connect=1, read=1, total=0.5)

    with pytest.raises(ProviderError, match="could not be fetched"):
        async with asyncio.timeout(10):
            await fetch(opened(LOOPBACK, limits=limits), host.url())


async def test_a_resolver_that_hangs_is_given_up() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[Address]:
        await asyncio.sleep(30)
        return []

    limits = FetchLimits(connect=0.1, read=1, total=5)

    with pytest.raises(ProviderError, match="could not be fetched"):
        async with asyncio.timeout(10):
            await fetch(opened(AllowList(), resolve=resolve, limits=limits), "https://files.example/x")


async def test_the_time_of_whoever_reads_is_not_counted_as_silence(serve: Serve) -> None:
    host = await serve(OUTPUT)

    pieces = opened(LOOPBACK, limits=QUICK).fetch(host.url())
    first = await anext(pieces)
    await asyncio.sleep(0.5)

    assert first == CONTENT
    assert [piece async for piece in pieces] == []


async def test_closing_the_stream_early_closes_the_connection(serve: Serve) -> None:
    left = asyncio.Event()

    async def answer(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, {"Content-Length": "1000000000"}))
        try:
            while True:
                writer.write(bytes(64 * 1024))
                await writer.drain()
        finally:
            left.set()

    host = await serve(answer)
    pieces = opened(LOOPBACK).fetch(host.url())
    await anext(pieces)

    await pieces.aclose()

    async with asyncio.timeout(10):
        assert await left.wait()


async def test_the_backends_own_address_is_fetched_from_wherever_it_is(serve: Serve) -> None:
    host, other = await serve(OUTPUT), await serve(OUTPUT)
    fetcher = opened(AllowList(), own=httpx2.URL(host.url("/v1")))

    assert await fetch(fetcher, host.url()) == CONTENT
    with pytest.raises(OutputInvalid, match="does not fetch from"):
        await fetch(fetcher, other.url())


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server named files.example presents, and what a client needs to believe it."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("files.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _contexts(folder, key, certificate)


def _contexts(
    folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return server, ssl.create_default_context(cafile=str(folder / "certificate.pem"))


async def test_tls_checks_the_name_and_not_the_address(
    serve: Serve, certified: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    named: list[str | None] = []
    server, client = certified
    server.sni_callback = lambda _socket, name, _context: named.append(name)
    host = await serve(OUTPUT, server)
    resolve, _ = resolving(["127.0.0.1"])
    allowed = AllowList.parse(["files.example", "other.example"])
    fetcher = OutputFetcher(allowed, client, resolve=resolve)

    assert await fetch(fetcher, host.url(host="files.example")) == CONTENT
    assert named == ["files.example"]
    with pytest.raises(ProviderError, match="could not be fetched"):
        await fetch(fetcher, host.url(host="other.example"))


async def test_the_machines_resolver_gives_addresses() -> None:
    assert ip_address("127.0.0.1") in await resolve_by_system("localhost", 443)
