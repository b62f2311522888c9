"""Where S3's credentials come from, over real sockets, and that no signed URL outlives them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from tests.contracts.storage_suite import KEY, put, read
from tests.raw_server import Answer, RawServer, reply, send
from tests.s3 import Bucket

from fleek.core.errors import ConfigurationError
from fleek.storage.adapter import StoreLimits
from fleek.storage.base import StorageError, StorageRefusedError
from fleek.storage.credentials import UNKNOWN_LIFE, Credentials, find_source
from fleek.storage.s3 import S3Location, S3Storage

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
ROLE = "/latest/meta-data/iam/security-credentials/"
STS = """<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>ASIA1</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>token==</SessionToken>
<Expiration>2026-05-01T13:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


def document(expires_at: datetime = NOW + HOUR, key: str = "ASIA1") -> dict[str, str]:
    """As the metadata services of AWS answer."""
    ends = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "Code": "Success",
        "AccessKeyId": key,
        "SecretAccessKey": "secret",
        "Token": "token==",
        "Expiration": ends,
    }


EXPECTED = Credentials("ASIA1", "secret", "token==", NOW + HOUR)


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


DRIP_SECONDS = 20
_LONG_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


def drip(begin: bytes) -> Answer:
    """The beginning of an answer, and then a byte now and then: no read takes long, and there is no end."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(begin)
        for _ in range(DRIP_SECONDS * 10):
            connection.sendall(b"x")
            time.sleep(0.1)

    return answer


class TestSources:
    def test_static_keys_come_first_and_do_not_end(self, server: RawServer) -> None:
        given = {
            "AWS_ACCESS_KEY_ID": "AKIA1",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_SESSION_TOKEN": "",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": server.url,
        }
        found = find_source(given, "us-east-1")()

        assert found == Credentials("AKIA1", "secret")
        assert found.life_left(NOW) is None
        assert server.received == []

    def test_the_end_of_static_temporary_keys_is_unknown_unless_it_is_given(self) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
        ends = {"AWS_CREDENTIAL_EXPIRATION": "2026-05-01T13:00:00+00:00"}

        assert find_source(keys, "us-east-1")().life_left(NOW) == UNKNOWN_LIFE
        assert find_source(keys | ends, "us-east-1")().life_left(NOW) == HOUR

    def test_a_container_is_asked_with_the_token_of_its_file(self, server: RawServer, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("a pod's token\n")
        server.on("GET /v1/credentials", reply(document()))
        given = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
        }
        found = find_source(given, "us-east-1")()

        assert found == EXPECTED
        assert server.received[0].headers["authorization"] == "a pod's token"

    def test_an_instance_is_asked_by_the_second_version_of_its_service(self, server: RawServer) -> None:
        server.on("PUT /latest/api/token", reply(b"a session"))
        server.on(f"GET {ROLE}", reply(b"my-role\n"))
        server.on(f"GET {ROLE}my-role", reply(document()))
        found = find_source({"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{server.url}/"}, "us-east-1")()

        assert found == EXPECTED
        asked = server.received
        assert "x-aws-ec2-metadata-token-ttl-seconds" in asked[0].headers
        assert [each.headers.get("x-aws-ec2-metadata-token") for each in asked[1:]] == ["a session"] * 2

    def test_a_web_identity_is_exchanged_for_a_role(self, server: RawServer, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("a service account's token")
        server.on("POST /", reply(STS.encode(), content_type="text/xml"))
        given = {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
            "AWS_ROLE_ARN": "arn:aws:iam::1:role/fleek",
            "AWS_ENDPOINT_URL_STS": f"{server.url}/",
        }
        found = find_source(given, "eu-west-1")()
        form = parse_qs(server.received[0].body.decode())

        assert found == EXPECTED
        assert form["Action"] == ["AssumeRoleWithWebIdentity"]
        assert form["WebIdentityToken"] == ["a service account's token"]
        assert form["RoleArn"] == ["arn:aws:iam::1:role/fleek"]

    def test_nothing_that_is_secret_is_shown(self) -> None:
        assert "secret" not in repr(EXPECTED)
        assert "token==" not in repr(EXPECTED)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"AWS_ACCESS_KEY_ID": "A"}, "AWS_SECRET_ACCESS_KEY is not set"),
            ({"AWS_SECRET_ACCESS_KEY": "s"}, "AWS_ACCESS_KEY_ID is not set"),
            ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/"}, "must be https"),
            ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "file:///etc/passwd"}, "must be https"),
            (
                {
                    "AWS_ACCESS_KEY_ID": "A",
                    "AWS_SECRET_ACCESS_KEY": "s",
                    "AWS_SESSION_TOKEN": "t",
                    "AWS_CREDENTIAL_EXPIRATION": "soon",
                },
                "AWS_CREDENTIAL_EXPIRATION is no time",
            ),
        ],
    )
    def test_what_cannot_be_meant_stops_the_start(self, given: dict[str, str], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            find_source(given, "us-east-1")

    @pytest.mark.parametrize(
        "answer",
        [
            reply(b"", 404),
            reply(b"", 503),
            reply(b"no json"),
            reply({"Code": "Failed"}),
            reply(["a list"]),
            reply(document() | {"Expiration": "never"}),
            send(b"no HTTP"),
        ],
    )
    def test_a_container_without_credentials_is_a_storage_error(
        self, server: RawServer, answer: object
    ) -> None:
        server.on("GET /", answer)  # type: ignore[arg-type]  # parametrized
        source = find_source({"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/"}, "us-east-1")

        with pytest.raises(StorageError, match="gives no credentials"):
            source()
        assert len(server.received) <= 2

    @pytest.mark.parametrize(
        "given", [{"AWS_EC2_METADATA_DISABLED": "true"}, {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"}]
    )
    def test_a_machine_without_a_role_is_told_to_set_keys(self, given: dict[str, str]) -> None:
        with pytest.raises(StorageRefusedError, match=r"no credentials for S3.*set AWS_ACCESS_KEY_ID"):
            find_source(given, "us-east-1")()

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (reply(document() | {"AccessKeyId": None}), "something else"),
            (reply(document() | {"SecretAccessKey": ""}), "something else"),
            (reply(b"<Error><Code>ExpiredTokenException</Code></Error>", 400), r"400 Said \(ExpiredTokenE"),
        ],
    )
    def test_an_answer_that_is_no_key_pair_says_what_it_is(
        self, server: RawServer, answer: Answer, reason: str
    ) -> None:
        server.on("GET /", answer)
        with pytest.raises(StorageError, match=reason):
            find_source({"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/"}, "us-east-1")()

    @pytest.mark.parametrize(
        "given",
        [
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{url}/"},
            {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "{url}"},
            {
                "AWS_WEB_IDENTITY_TOKEN_FILE": "/dev/null",
                "AWS_ROLE_ARN": "r",
                "AWS_ENDPOINT_URL_STS": "{url}/",
            },
        ],
    )
    @pytest.mark.parametrize("answer", [drip(b"HTTP/1.1 200 OK\r\nX-A: "), drip(_LONG_BODY)])
    def test_a_source_that_answers_byte_by_byte_is_given_up(
        self, server: RawServer, given: dict[str, str], answer: Answer
    ) -> None:
        for route in ("GET /", "PUT /latest/api/token", "POST /"):
            server.on(route, answer)
        environment = {name: value.format(url=server.url) for name, value in given.items()}
        begun = time.monotonic()
        with pytest.raises(StorageError, match=r"gives no credentials: not within 0.5 s"):
            find_source(environment, "us-east-1", seconds=0.5)()

        assert time.monotonic() - begun < DRIP_SECONDS / 2

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_an_instance_in_trouble_is_worth_another_try(self, server: RawServer, status: int) -> None:
        server.on("PUT /latest/api/token", reply(b"", status))
        source = find_source({"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}, "us-east-1")
        with pytest.raises(StorageError, match=str(status)) as raised:
            source()

        assert not isinstance(raised.value, StorageRefusedError)

    def test_a_token_that_no_header_can_carry_is_a_storage_error(
        self, server: RawServer, tmp_path: Path
    ) -> None:
        given = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token"),
        }
        for token in ("tök\nen".encode(), b"\xff\xfe"):
            (tmp_path / "token").write_bytes(token)
            with pytest.raises(StorageError, match=r"gives no credentials|it is no text"):
                find_source(given, "us-east-1")()

    @pytest.mark.parametrize(
        ("region", "host"),
        [
            ("eu-west-1", "sts.eu-west-1.amazonaws.com"),
            ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
            ("auto", "sts.amazonaws.com"),
        ],
    )
    def test_a_role_is_asked_for_in_its_region(self, tmp_path: Path, region: str, host: str) -> None:
        given = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "missing"), "AWS_ROLE_ARN": "r"}
        source = find_source(given, region)

        assert f"https://{host}'" in repr(source)
        with pytest.raises(StorageError, match="cannot read the token"):
            source()

    def test_who_has_a_profile_is_told_that_none_is_read(self, tmp_path: Path) -> None:
        off = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
        (tmp_path / "credentials").touch()

        def remedy(**more: str) -> str:
            with pytest.raises(StorageRefusedError) as raised:
                find_source(off | more, "us-east-1")()
            return raised.value.remedy or ""

        assert "profile" not in remedy()
        assert "aws configure export-credentials" in remedy(AWS_PROFILE="work")
        assert "profile" in remedy(AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"))
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "credentials").touch()
        assert "profile" in remedy()


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


ROOMY = StoreLimits(connect=10, read=30, total=60)


def storage_of(bucket: Bucket, server: RawServer, clock: Clock | None = None) -> S3Storage:
    """A store whose only credentials are those of a container."""
    location = S3Location(bucket.name, "", "us-east-1", path_style=True, endpoint=bucket.endpoint)
    environment = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/"}
    return S3Storage(location, ROOMY, clock or (lambda: datetime.now(UTC)), environment)


class TestSigning:
    async def test_a_role_reads_writes_and_signs(self, s3_bucket: Bucket, server: RawServer) -> None:
        server.on("GET /", reply(document(datetime.now(UTC) + HOUR)))
        storage = storage_of(s3_bucket, server)
        await put(storage, b"bytes")
        signed = await storage.sign(KEY, expires_in=10 * MINUTE)
        query = parse_qs(urlsplit(signed.url).query)
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(signed.url)

        assert await read(storage) == answer.content == b"bytes"
        assert query["X-Amz-Security-Token"] == ["token=="]
        assert query["X-Amz-Expires"] == ["600"]
        assert len(server.received) == 1

    @pytest.mark.parametrize("left", [5 * MINUTE, 90 * SECOND, 40 * SECOND])
    async def test_a_url_ends_before_the_credentials_do(
        self, s3_bucket: Bucket, server: RawServer, left: timedelta
    ) -> None:
        ends = (datetime.now(UTC) + left).replace(microsecond=0)
        server.on("GET /", reply(document(ends)))
        signed = await storage_of(s3_bucket, server).sign(KEY, expires_in=HOUR)
        [seconds] = parse_qs(urlsplit(signed.url).query)["X-Amz-Expires"]

        assert left - 30 * SECOND < int(seconds) * SECOND < left
        assert signed.expires_at < ends

    async def test_credentials_are_renewed_before_a_url_is_cut_short(
        self, s3_bucket: Bucket, server: RawServer
    ) -> None:
        now = datetime.now(UTC)
        server.on("GET /", reply(document(now + 5 * MINUTE)), reply(document(now + HOUR, "ASIA2")))
        clock = Clock()
        clock.now = now
        storage = storage_of(s3_bucket, server, clock)
        short = await storage.sign(KEY, expires_in=20 * MINUTE)
        clock.now += MINUTE
        long = await storage.sign(KEY, expires_in=20 * MINUTE)

        assert short.expires_at - now < 5 * MINUTE
        assert long.expires_at - clock.now > 19 * MINUTE
        assert "ASIA2" in long.url

    async def test_ended_credentials_sign_nothing(self, s3_bucket: Bucket, server: RawServer) -> None:
        server.on("GET /", reply(document(datetime.now(UTC) - SECOND)))
        with pytest.raises(StorageRefusedError, match="have ended"):
            await storage_of(s3_bucket, server).sign(KEY, expires_in=MINUTE)

    async def test_static_temporary_keys_sign_for_five_minutes(self, s3_bucket: Bucket) -> None:
        location = S3Location(s3_bucket.name, "", "us-east-1", path_style=True, endpoint=s3_bucket.endpoint)
        keys = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
        storage = S3Storage(location, ROOMY, lambda: datetime.now(UTC), keys)
        signed = await storage.sign(KEY, expires_in=HOUR)
        [seconds] = parse_qs(urlsplit(signed.url).query)["X-Amz-Expires"]

        assert int(seconds) * SECOND == UNKNOWN_LIFE - 2 * SECOND

    @pytest.mark.parametrize("more", [0, 0.9])
    async def test_a_url_never_claims_more_than_its_whole_seconds(
        self, s3_bucket: Bucket, more: float
    ) -> None:
        location = S3Location(s3_bucket.name, "", "us-east-1", path_style=True, endpoint=s3_bucket.endpoint)
        keys = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"}
        storage = S3Storage(location, ROOMY, lambda: datetime.now(UTC), keys)
        signed = await storage.sign(KEY, expires_in=timedelta(seconds=30 + more))
        query = parse_qs(urlsplit(signed.url).query)
        begins = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z")

        assert signed.expires_at <= begins + int(query["X-Amz-Expires"][0]) * SECOND

    @pytest.mark.parametrize("path_style", [True, False])
    async def test_the_endpoint_of_other_tools_is_taken_unless_one_is_set(self, path_style: bool) -> None:
        keys = {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": "https://a:1/"}
        location = S3Location("results", "", "us-east-1", path_style=path_style)
        set_location = S3Location("results", "", "us-east-1", path_style=path_style, endpoint="https://b:2/")
        place = "{}/results/" if path_style else "results.{}/"
        for used, host in ((location, "a:1"), (set_location, "b:2")):
            storage = S3Storage(used, ROOMY, lambda: datetime.now(UTC), keys)
            signed = await storage.sign(KEY, expires_in=MINUTE)

            assert signed.url.startswith(f"https://{place.format(host)}{KEY}?")

    @pytest.mark.parametrize("status", [404, 503])
    async def test_calls_without_credentials_say_so(
        self, s3_bucket: Bucket, server: RawServer, status: int
    ) -> None:
        server.on("GET /", reply(b"", status))
        storage = storage_of(s3_bucket, server)
        calls = (
            lambda: put(storage, b"x"),
            lambda: read(storage),
            lambda: storage.sign(KEY, expires_in=HOUR),
            storage.prepare,
        )
        for call in calls:
            with pytest.raises(StorageError, match="gives no credentials"):
                await call()
