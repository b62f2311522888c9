"""Making the bucket, over a socket: once, from several sides at once, and when the store refuses."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.contracts.storage_suite import KEY, put, read
from tests.raw_server import Answer, RawServer, hang_up, reply
from tests.s3 import ACCESS_KEY, SECRET_KEY, Bucket

from fleek.storage.adapter import StoreLimits
from fleek.storage.base import ObjectStorage, StorageError, StorageRefusedError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SIGNER = UrlSigner(b"a secret key of the tests, 32 bytes")
QUICK = StoreLimits(connect=1, read=1, retrying=0.5, retries=0, total=3)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.fixture
def server(keys: None) -> Iterator[RawServer]:
    """A store that answers as a test says."""
    del keys
    with RawServer() as server:
        yield server


def open_new(bucket: Bucket, region: str = "us-east-1") -> tuple[str, ObjectStorage]:
    """A bucket's name that nobody has, and a store in it."""
    name = f"new-{uuid.uuid4().hex[:12]}"
    url = f"s3://{name}/some/prefix"
    return name, open_storage(url, signer=SIGNER, endpoint=bucket.endpoint, region=region)


def open_at(endpoint: str, region: str = "us-east-1") -> ObjectStorage:
    """A store in the bucket `results` of any server."""
    return open_storage("s3://results/a", signer=SIGNER, endpoint=endpoint, region=region, limits=QUICK)


def refusal(status: int, code: str, **headers: str) -> Answer:
    """S3's document of an error."""
    return reply(f"<Error><Code>{code}</Code></Error>".encode(), status, "application/xml", **headers)


@contextmanager
def untrusted_server(folder: Path) -> Iterator[str]:
    """The address of one with a certificate that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), connection, context.wrap_socket(connection, server_side=True):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        yield f"https://localhost:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


class TestMaking:
    async def test_a_bucket_is_made_once_and_then_found(self, s3_bucket: Bucket) -> None:
        name, storage = open_new(s3_bucket)
        made = [await storage.prepare() for _ in range(3)]
        await put(storage, b"x")

        assert made == [True, False, False]
        assert await read(storage) == b"x"
        assert [found["Key"] for found in s3_bucket.client.list_objects_v2(Bucket=name)["Contents"]] == [
            f"some/prefix/{KEY}"
        ]

    async def test_several_at_once_all_succeed(self, s3_bucket: Bucket) -> None:
        name, first = open_new(s3_bucket, "eu-west-1")
        url = f"s3://{name}"
        others = [
            open_storage(url, signer=SIGNER, endpoint=s3_bucket.endpoint, region="eu-west-1")
            for _ in range(7)
        ]
        made = await asyncio.gather(*(each.prepare() for each in (first, *others)))

        assert any(made)

    async def test_the_bucket_lies_in_the_configured_region(self, s3_bucket: Bucket) -> None:
        name, storage = open_new(s3_bucket, "eu-west-1")
        await storage.prepare()

        assert s3_bucket.client.get_bucket_location(Bucket=name)["LocationConstraint"] == "eu-west-1"

    @pytest.mark.parametrize(
        ("region", "constraint"),
        [("us-east-1", b""), ("auto", b""), ("ap-south-1", b"<LocationConstraint>ap-south-1<")],
    )
    async def test_only_a_region_of_its_own_is_named(
        self, server: RawServer, region: str, constraint: bytes
    ) -> None:
        server.on("HEAD /results/", reply(b"", 404))
        server.on("PUT /results/", reply(b""))
        made = await open_at(server.url, region).prepare()
        [sent] = server.requests_to("PUT /results/")

        assert made
        assert constraint in sent.body
        assert bool(sent.body) is bool(constraint)

    async def test_losing_a_race_against_oneself_is_no_error(self, server: RawServer) -> None:
        server.on("HEAD /results/", reply(b"", 404))
        server.on("PUT /results/", refusal(409, "BucketAlreadyOwnedByYou"))

        assert await open_at(server.url).prepare() is False

    async def test_a_bucket_that_may_be_listed_but_not_looked_at_is_there(self, server: RawServer) -> None:
        server.on("HEAD /results/", reply(b"", 403))
        server.on("GET /results/", reply(b"<ListBucketResult/>"))

        assert await open_at(server.url).prepare() is False

    async def test_a_folder_is_made_with_its_store_and_memory_needs_nothing(self, tmp_path: Path) -> None:
        url = (tmp_path / "new" / "store").as_uri()
        made = [await open_storage(url, signer=SIGNER).prepare() for _ in range(2)]

        assert made == [True, False]
        assert await open_storage("memory://", signer=SIGNER).prepare() is False


class TestRefusals:
    @pytest.mark.parametrize(
        ("look", "told", "message"),
        [
            (
                403,
                refusal(403, "InvalidAccessKeyId"),
                "does not know the access key; check AWS_ACCESS_KEY_ID",
            ),
            (403, refusal(403, "SignatureDoesNotMatch"), "does not fit .*AWS_SECRET_ACCESS_KEY"),
            (403, refusal(403, "AccessDenied"), "somebody else's, or .*s3:ListBucket"),
            (400, refusal(400, "ExpiredToken"), "have ended"),
            (400, refusal(400, "Unheard"), "answers 400 .*FLEEK_STORAGE_ENDPOINT"),
        ],
    )
    async def test_a_bucket_that_may_not_be_looked_at_says_why(
        self, server: RawServer, look: int, told: Answer, message: str
    ) -> None:
        server.on("HEAD /results/", reply(b"", look))
        server.on("GET /results/", told)
        with pytest.raises(StorageRefusedError, match=message):
            await open_at(server.url).prepare()

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            (refusal(403, "AccessDenied"), r"refused \(AccessDenied\); .*s3:CreateBucket"),
            (refusal(409, "BucketAlreadyExists"), "somebody else .*choose another name in FLEEK_STORAGE_URL"),
            (refusal(400, "InvalidBucketName"), "does not take this bucket's name"),
            (refusal(400, "IllegalLocationConstraintException"), "FLEEK_STORAGE_REGION"),
        ],
    )
    async def test_a_bucket_that_may_not_be_made_says_why(
        self, server: RawServer, told: Answer, message: str
    ) -> None:
        server.on("HEAD /results/", reply(b"", 404))
        server.on("PUT /results/", told)
        with pytest.raises(StorageRefusedError, match=message):
            await open_at(server.url).prepare()

    async def test_a_bucket_of_another_region_is_named_with_its_region(self, server: RawServer) -> None:
        server.on("HEAD /results/", reply(b"", 301, x_amz_bucket_region="eu-central-1"))
        with pytest.raises(StorageRefusedError, match=r"another region \(eu-central-1\); .*STORAGE_REGION"):
            await open_at(server.url).prepare()

    @pytest.mark.parametrize("answer", [reply(b"", 503), reply(b"", 500), hang_up])
    async def test_a_store_in_trouble_is_worth_another_try(self, server: RawServer, answer: Answer) -> None:
        server.on("HEAD /results/", answer)
        with pytest.raises(StorageError) as raised:
            await open_at(server.url).prepare()

        assert not isinstance(raised.value, StorageRefusedError)

    async def test_two_creations_at_the_same_moment_are_worth_another_try(self, server: RawServer) -> None:
        server.on("HEAD /results/", reply(b"", 404))
        server.on("PUT /results/", refusal(409, "OperationAborted"))
        with pytest.raises(StorageError) as raised:
            await open_at(server.url).prepare()

        assert not isinstance(raised.value, StorageRefusedError)

    @pytest.mark.usefixtures("keys")
    async def test_a_store_that_never_answers_is_given_up_soon(self) -> None:
        with closing(socket.create_server(("127.0.0.1", 0), backlog=8)) as listener:
            endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(StorageError, match="does not answer: ReadTimeout") as raised:
                await open_at(endpoint).prepare()

        assert "X-Amz" not in str(raised.value)
        assert raised.value.__cause__ is None

    @pytest.mark.parametrize(
        "begin", [b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 403 No\r\nContent-Length: 99\r\n\r\n"]
    )
    @pytest.mark.parametrize("method", ["HEAD", "GET", "PUT"])
    async def test_a_store_that_answers_byte_by_byte_is_given_up(
        self, server: RawServer, method: str, begin: bytes
    ) -> None:
        def drip(connection: socket.socket) -> None:
            connection.sendall(begin)
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.2)

        server.on("HEAD /results/", reply(b"", 404 if method == "PUT" else 403))
        server.on(f"{method} /results/", drip)
        if method == "HEAD":
            server.on("GET /results/", drip)
        limits = StoreLimits(connect=1, read=1, retries=0, total=0.8)
        storage = open_storage("s3://results/a", signer=SIGNER, endpoint=server.url, limits=limits)
        with pytest.raises(StorageError, match="does not answer"):
            await storage.prepare()

    async def test_a_certificate_that_is_not_trusted_is_named(self, keys: None, tmp_path: Path) -> None:
        del keys
        refused = pytest.raises(StorageRefusedError, match=r"certificate is not trusted; let SSL_CERT_FILE")
        with untrusted_server(tmp_path) as endpoint, refused:
            await open_at(endpoint).prepare()

    @pytest.mark.usefixtures("server")
    async def test_a_machine_without_credentials_says_what_to_set(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StorageRefusedError) as raised:
            await open_at("http://127.0.0.1:1").prepare()

        assert raised.value.message == "there are no credentials for S3"
        assert (raised.value.remedy or "").startswith("set AWS_ACCESS_KEY_ID")


class TestDeletingWithoutBulk:
    """As Google Cloud Storage does it: one by one, and 404 for what is not there."""

    KEYS = tuple(f"media/{number}.png" for number in range(25))

    async def test_a_key_that_is_not_there_keeps_no_other_from_being_deleted(
        self, server: RawServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_DISABLE_BULK_DELETE", "true")
        for key in self.KEYS:
            server.on(f"DELETE /results/a/{key}", refusal(404, "NoSuchKey"))
        server.on(f"DELETE /results/a/{self.KEYS[-1]}", reply(b"", 204))
        await open_at(server.url).delete(list(self.KEYS))

        assert server.requests_to(f"DELETE /results/a/{self.KEYS[-1]}")

    @pytest.mark.parametrize(
        ("answer", "message"), [(reply(b"", 503), "503"), (refusal(403, "AccessDenied"), "s3:DeleteObject")]
    )
    async def test_one_that_may_not_be_deleted_is_an_error(
        self, server: RawServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, message: str
    ) -> None:
        monkeypatch.setenv("AWS_DISABLE_BULK_DELETE", "true")
        for key in self.KEYS:
            server.on(f"DELETE /results/a/{key}", refusal(404, "NoSuchKey"))
        server.on(f"DELETE /results/a/{self.KEYS[-1]}", answer)
        with pytest.raises(StorageError, match=message):
            await open_at(server.url).delete(list(self.KEYS))

    async def test_a_bucket_that_is_gone_is_an_error(
        self, server: RawServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_DISABLE_BULK_DELETE", "true")
        server.on("DELETE /results/a/media/1.png", refusal(404, "NoSuchBucket"))
        with pytest.raises(StorageRefusedError, match="fleek storage init"):
            await open_at(server.url).delete(["media/1.png"])


class TestRemedies:
    """Every other call names the remedy, too: these messages reach logs, readiness and the doctor."""

    async def test_a_missing_bucket_is_made_by_a_command(self, s3_bucket: Bucket) -> None:
        storage = open_storage("s3://no-such-bucket", signer=SIGNER, endpoint=s3_bucket.endpoint)
        for call in (lambda: put(storage, b"x"), lambda: read(storage), storage.check):
            with pytest.raises(StorageRefusedError, match="the bucket does not exist; `fleek storage init`"):
                await call()

    async def test_a_refused_key_is_named_with_the_permission_that_is_missing(
        self, server: RawServer
    ) -> None:
        server.on(f"PUT /results/a/{KEY}", refusal(403, "AccessDenied"))
        server.on(f"GET /results/a/{KEY}", refusal(403, "InvalidAccessKeyId"))
        storage = open_at(server.url)
        with pytest.raises(StorageRefusedError, match=r"AWS_ACCESS_KEY_ID.*s3:PutObject"):
            await put(storage, b"x")
        with pytest.raises(StorageRefusedError, match="does not know the access key"):
            await read(storage)
