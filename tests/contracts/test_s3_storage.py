"""S3 over a socket as object store: the suite, then signed URLs, uploads that fail, servers in trouble."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import botocore.auth  # type: ignore[import-untyped]  # ships no types
import botocore.awsrequest  # type: ignore[import-untyped]  # ships no types
import botocore.credentials  # type: ignore[import-untyped]  # ships no types
import httpx2
import pytest
from tests.contracts import memory_probe
from tests.contracts.storage_suite import (
    KEY,
    LARGE,
    MAX_GROWTH,
    StreamingStorageSuite,
    broken_after,
    chunks_of,
    exists,
    grown_by,
    put,
    read,
    stalled_after,
)
from tests.s3 import ACCESS_KEY, REGION, SECRET_KEY, Bucket

from fleek.core.errors import ConfigurationError
from fleek.storage.adapter import StoreLimits
from fleek.storage.base import ObjectStorage, StorageError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SIGNER = UrlSigner(b"a secret key of the tests, 32 bytes")
TEN_MINUTES = timedelta(minutes=10)
QUICK = StoreLimits(connect=0.5, read=0.5, retrying=0.5, retries=1, total=2)


class TestS3(StreamingStorageSuite):
    @pytest.fixture
    def storage(self, s3_bucket: Bucket) -> ObjectStorage:
        return open_storage(s3_bucket.url, signer=SIGNER, endpoint=s3_bucket.endpoint)

    async def test_objects_lie_below_the_prefix(self, storage: ObjectStorage, s3_bucket: Bucket) -> None:
        await put(storage, b"x")

        assert s3_bucket.keys() == [f"some/prefix/{KEY}"]

    async def test_a_bucket_without_a_prefix_works_too(self, s3_bucket: Bucket) -> None:
        storage = open_storage(f"s3://{s3_bucket.name}", signer=SIGNER, endpoint=s3_bucket.endpoint)
        await put(storage, b"x")

        assert s3_bucket.keys() == [KEY]
        assert [found.key async for found in storage.list("media")] == [KEY]

    @pytest.mark.parametrize("content", [b"a picture", LARGE], ids=["one-request", "multipart"])
    async def test_a_signed_url_gives_the_bytes_with_type_name_and_caching(
        self, storage: ObjectStorage, content: bytes
    ) -> None:
        await storage.put(KEY, chunks_of(content), content_type="image/png", filename='a "file".png')
        signed = await storage.sign(KEY, expires_in=TEN_MINUTES)
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(signed.url)

        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["content-type"] == "image/png"
        assert answer.headers["content-disposition"] == 'inline; filename="a__file_.png"'
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.headers["etag"]

    async def test_a_signed_url_supports_ranges(self, storage: ObjectStorage) -> None:
        await put(storage, b"0123456789")
        signed = await storage.sign(KEY, expires_in=TEN_MINUTES)
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(signed.url, headers={"Range": "bytes=3-5"})

        assert (answer.status_code, answer.content) == (206, b"345")
        assert answer.headers["content-range"] == "bytes 3-5/10"

    async def test_the_signature_is_what_aws_computes_for_this_method_path_and_time(
        self, storage: ObjectStorage
    ) -> None:
        signed = await storage.sign(KEY, expires_in=TEN_MINUTES)
        query = parse_qs(urlsplit(signed.url).query)
        signature = query["X-Amz-Signature"][0]

        assert query["X-Amz-Expires"] == ["600"]
        assert signature == aws_signature("GET", signed.url, query["X-Amz-Date"][0])
        assert signature != aws_signature("PUT", signed.url, query["X-Amz-Date"][0])

    async def test_clients_get_urls_at_the_public_endpoint(self, s3_bucket: Bucket) -> None:
        storage = open_storage(
            s3_bucket.url,
            signer=SIGNER,
            endpoint=s3_bucket.endpoint,
            public_endpoint="https://media.example.com",
        )
        await put(storage, b"x")
        signed = await storage.sign(KEY, expires_in=TEN_MINUTES)

        assert signed.url.startswith(f"https://media.example.com/{s3_bucket.name}/some/prefix/{KEY}?")
        assert await read(storage) == b"x"

    @pytest.mark.parametrize(
        ("endpoint", "path_style", "expected"),
        [
            (None, True, "https://s3.eu-west-1.amazonaws.com/bucket/media/1.png?"),
            (None, False, "https://bucket.s3.eu-west-1.amazonaws.com/media/1.png?"),
            ("https://s3.example.com", True, "https://s3.example.com/bucket/media/1.png?"),
            ("https://s3.example.com", False, "https://bucket.s3.example.com/media/1.png?"),
            ("https://bucket.s3.example.com", False, "https://bucket.s3.example.com/media/1.png?"),
            ("http://127.0.0.1:9000", True, "http://127.0.0.1:9000/bucket/media/1.png?"),
        ],
    )
    async def test_urls_follow_the_style_of_the_endpoint(
        self, s3_bucket: Bucket, endpoint: str | None, path_style: bool, expected: str
    ) -> None:
        del s3_bucket  # for its credentials only
        storage = open_storage(
            "s3://bucket", signer=SIGNER, endpoint=endpoint, region="eu-west-1", path_style=path_style
        )
        signed = await storage.sign("media/1.png", expires_in=TEN_MINUTES)

        assert signed.url.startswith(expected)

    async def test_a_failed_multipart_upload_is_aborted(
        self, storage: ObjectStorage, s3_bucket: Bucket
    ) -> None:
        with pytest.raises(ZeroDivisionError):
            await put(storage, broken_after(LARGE, ZeroDivisionError()))

        assert s3_bucket.keys() == []
        assert s3_bucket.open_uploads() == []

    async def test_a_canceled_multipart_upload_is_aborted(
        self, storage: ObjectStorage, s3_bucket: Bucket
    ) -> None:
        stalled = asyncio.Event()
        running = asyncio.create_task(put(storage, stalled_after(LARGE, stalled)))
        await stalled.wait()
        begun = s3_bucket.open_uploads()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert len(begun) == 1
        assert s3_bucket.keys() == []
        assert s3_bucket.open_uploads() == []

    @pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
    async def test_memory_stays_flat_while_200_megabytes_are_stored(self, s3_bucket: Bucket) -> None:
        grown = await grown_by(s3_bucket.url, s3_bucket.endpoint)
        sizes = [
            found["Size"] for found in s3_bucket.client.list_objects_v2(Bucket=s3_bucket.name)["Contents"]
        ]

        assert grown < MAX_GROWTH
        assert max(sizes) == memory_probe.SIZE


class TestS3Trouble:
    async def test_a_bucket_that_does_not_exist_is_a_storage_error(self, s3_bucket: Bucket) -> None:
        storage = open_storage("s3://no-such-bucket", signer=SIGNER, endpoint=s3_bucket.endpoint)
        for content in (b"x", chunks_of(LARGE)):
            with pytest.raises(StorageError, match="cannot write"):
                await put(storage, content)
        with pytest.raises(StorageError, match="cannot read"):
            await read(storage)
        with pytest.raises(StorageError, match="cannot write fleek-check"):
            await storage.check()

    async def test_a_server_that_is_not_there_is_a_storage_error_soon(self, s3_bucket: Bucket) -> None:
        del s3_bucket  # for its credentials only
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            port = listener.getsockname()[1]
        await assert_every_call_fails_within(2, f"http://127.0.0.1:{port}")

    async def test_a_server_that_never_answers_is_a_storage_error_soon(self, s3_bucket: Bucket) -> None:
        del s3_bucket  # for its credentials only
        with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
            await assert_every_call_fails_within(4, f"http://127.0.0.1:{listener.getsockname()[1]}")

    async def test_a_server_that_fails_is_asked_again_a_bounded_number_of_times(
        self, s3_bucket: Bucket
    ) -> None:
        del s3_bucket  # for its credentials only
        answers = Answers(b"503 Slow Down", b"<Error><Key>a secret</Key></Error>")
        async with answers.served() as endpoint:
            storage = open_storage("s3://bucket", signer=SIGNER, endpoint=endpoint, limits=QUICK)
            with pytest.raises(StorageError, match=r"cannot write media/job/result/1\.png: .*503") as raised:
                await put(storage, b"x")

        assert answers.given == QUICK.retries + 1
        assert "secret" not in str(raised.value)
        assert raised.value.__cause__ is None

    async def test_a_refusal_is_not_asked_again(self, s3_bucket: Bucket) -> None:
        del s3_bucket  # for its credentials only
        answers = Answers(b"403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
        async with answers.served() as endpoint:
            storage = open_storage("s3://bucket", signer=SIGNER, endpoint=endpoint, limits=QUICK)
            with pytest.raises(StorageError, match="403 Forbidden"):
                await storage.head(KEY)

        assert answers.given == 1

    async def test_plain_http_needs_an_explicit_http_endpoint(
        self, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_bucket.endpoint)
        with pytest.raises(ConfigurationError, match=r"AWS_ENDPOINT_URL is not https: set FLEEK_STORAGE_END"):
            open_storage(s3_bucket.url, signer=SIGNER)

    @pytest.mark.parametrize("endpoint", ["s3.example.com", "ftp://s3.example.com", "https://", ""])
    def test_an_endpoint_that_is_no_url_stops_the_start(self, endpoint: str) -> None:
        with pytest.raises(ConfigurationError, match="S3 endpoint"):
            open_storage("s3://bucket", signer=SIGNER, endpoint=endpoint)


class Answers:
    """A server that gives every request the same answer and counts them."""

    def __init__(self, status: bytes, body: bytes) -> None:
        self._answer = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        self.given = 0

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """The endpoint, for as long as the block runs."""
        server = await asyncio.start_server(self._give, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _give(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        self.given += 1
        writer.write(self._answer)
        writer.close()
        await writer.wait_closed()


async def assert_every_call_fails_within(seconds: float, endpoint: str) -> None:
    """Each call of the port raises StorageError, and none takes longer than `seconds`."""
    storage = open_storage("s3://bucket", signer=SIGNER, endpoint=endpoint, limits=QUICK)
    calls = {
        "put": lambda: put(storage, b"x"),
        "put of a stream": lambda: put(storage, chunks_of(LARGE)),
        "get": lambda: read(storage),
        "head": lambda: exists(storage),
        "delete": lambda: storage.delete([KEY]),
        "list": lambda: anext(storage.list("media")),
        "check": storage.check,
    }
    for name, call in calls.items():
        begun = time.monotonic()
        with pytest.raises(StorageError, match="cannot "):
            await call()

        assert time.monotonic() - begun < seconds, name


def aws_signature(method: str, url: str, timestamp: str) -> str:
    """The signature of a pre-signed URL, as botocore computes it."""
    credentials = botocore.credentials.Credentials(ACCESS_KEY, SECRET_KEY)
    auth = botocore.auth.S3SigV4QueryAuth(credentials, "s3", REGION)
    unsigned = re.sub(r"&X-Amz-Signature=[^&]*", "", url)
    request = botocore.awsrequest.AWSRequest(method, unsigned)
    request.context["timestamp"] = timestamp
    return str(auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request))
