"""`fleek storage init` as a process, against an S3 server, a disk and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.api.serving import running_api
from tests.cluster.proxy import FaultProxy
from tests.raw_server import RawServer, reply
from tests.s3 import ACCESS_KEY, SECRET_KEY, Bucket

from fleek.cli.checks import examine
from fleek.cli.exits import ExitCode
from fleek.cli.main import execute
from fleek.local.valkey import ValkeyServer
from fleek.settings import load_settings

_SECONDS = 60
"""A bound against hangs."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a home and keys, and no other setting."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("FLEEK_", "AWS_"))}
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return plain | keys | {"FLEEK_HOME": str(tmp_path / "home")}


def start_init(folder: Path, environment: dict[str, str], *flags: str) -> subprocess.Popen[str]:
    """The command, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "fleek.cli.main", "storage", "init", *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_bucket(environment: dict[str, str], endpoint: str) -> dict[str, str]:
    """The environment with a bucket that is not there yet."""
    url = f"s3://init-{uuid.uuid4().hex[:12]}/results"
    return environment | {"FLEEK_STORAGE_URL": url, "FLEEK_STORAGE_ENDPOINT": endpoint}


def test_three_at_once_make_one_bucket_and_all_end_well(
    s3_bucket: Bucket, environment: dict[str, str], tmp_path: Path
) -> None:
    given = in_bucket(environment, s3_bucket.endpoint)
    running = [start_init(tmp_path, given, "--json") for _ in range(3)]
    said = [(each.communicate(timeout=_SECONDS), each.returncode) for each in running]
    documents = [json.loads(out) for (out, _), _ in said]

    assert [(errors, code) for (_, errors), code in said] == [("", 0)] * 3
    assert {document["url"] for document in documents} == {given["FLEEK_STORAGE_URL"]}
    assert any(document["created"] for document in documents)


def test_it_waits_for_a_store_that_is_not_ready_yet(
    s3_bucket: Bucket, environment: dict[str, str], tmp_path: Path
) -> None:
    address = urlsplit(s3_bucket.endpoint)
    assert address.hostname is not None
    assert address.port is not None
    with FaultProxy((address.hostname, address.port)) as proxy:
        proxy.answer_with(503)
        endpoint = f"http://127.0.0.1:{proxy.port}"
        process = start_init(tmp_path, in_bucket(environment, endpoint), "--wait", str(_SECONDS))
        assert process.stderr is not None
        first = process.stderr.readline()
        proxy.heal()
        out, errors = process.communicate(timeout=_SECONDS)

    assert first == f"Waiting for {endpoint}, for up to {_SECONDS} s\n"
    assert (process.returncode, errors) == (0, "The bucket was made, and works\n")
    assert out.startswith("s3://init-")


class TestInProcess:
    @pytest.fixture(autouse=True)
    def settings(
        self, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> pytest.MonkeyPatch:
        for name in os.environ:
            if name.startswith(("FLEEK_", "AWS_")):
                monkeypatch.delenv(name)
        for name in ("FLEEK_HOME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, environment[name])
        monkeypatch.chdir(tmp_path)
        return monkeypatch

    def test_a_folder_is_made(
        self, settings: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = (tmp_path / "results").as_uri()
        settings.setenv("FLEEK_STORAGE_URL", url)
        codes = [execute(["storage", "init"]) for _ in range(2)]

        assert codes == [ExitCode.OK] * 2
        assert capsys.readouterr() == (
            f"{url}\n{url}\n",
            "The folder was made, and works\nThe folder is there, and works\n",
        )

    def test_memory_has_nothing_to_do(
        self, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings.setenv("FLEEK_STORAGE_URL", "memory://")

        assert execute(["storage", "init"]) == ExitCode.OK
        assert capsys.readouterr().err.startswith("Nothing to do")

    def test_a_store_that_stays_away_ends_with_3_and_says_what_to_check(
        self, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings.setenv("FLEEK_STORAGE_URL", "s3://results")
        settings.setenv("FLEEK_STORAGE_ENDPOINT", "http://127.0.0.1:1")

        assert execute(["storage", "init", "--wait", "0"]) == ExitCode.UNREACHABLE
        said = capsys.readouterr().err
        assert "error: The object store of the bucket results does not answer" in said
        assert "hint: start it, or check FLEEK_STORAGE_ENDPOINT" in said

    def test_a_refused_key_ends_with_2_at_once_and_names_it(
        self, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with RawServer() as server:
            server.on("HEAD /results/", reply(b"", 403))
            server.on("GET /results/", reply(b"<Code>InvalidAccessKeyId</Code>", 403))
            settings.setenv("FLEEK_STORAGE_URL", "s3://results")
            settings.setenv("FLEEK_STORAGE_ENDPOINT", server.url)
            code = execute(["storage", "init", "--json"])
        problem = json.loads(capsys.readouterr().err)

        assert (code, problem["code"]) == (ExitCode.USAGE, "storage_refused")
        assert problem["hint"] == "check AWS_ACCESS_KEY_ID"

    def test_half_a_key_pair_ends_with_2(
        self, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings.setenv("FLEEK_STORAGE_URL", "s3://results")
        settings.delenv("AWS_SECRET_ACCESS_KEY")

        assert execute(["storage", "init"]) == ExitCode.USAGE
        assert "AWS_SECRET_ACCESS_KEY is not set" in capsys.readouterr().err

    async def test_the_doctor_names_the_command_for_a_missing_bucket(
        self, settings: pytest.MonkeyPatch, s3_bucket: Bucket
    ) -> None:
        settings.setenv("FLEEK_STORAGE_URL", "s3://no-such-bucket")
        settings.setenv("FLEEK_STORAGE_ENDPOINT", s3_bucket.endpoint)
        found = {finding.name: finding for finding in await examine(load_settings())}["storage"]

        assert (found.verdict, found.remedy) == ("failed", "`fleek storage init` makes it")
        assert found.detail.endswith("the bucket does not exist")


async def test_readiness_names_the_command_for_a_missing_bucket(
    database_url: str, valkey: ValkeyServer, s3_bucket: Bucket, tmp_path: Path
) -> None:
    with running_api(
        tmp_path,
        database_url=database_url,
        redis_url=valkey.url(),
        storage_url="s3://no-such-bucket",
        storage_endpoint=s3_bucket.endpoint,
    ) as api:
        checks = api.ask("GET", "/readyz?verbose").json()["checks"]

    assert checks["storage"]["status"] == "unavailable"
    assert checks["storage"]["remedy"] == "`fleek storage init` makes it"
    assert checks["database"]["remedy"] is None
