"""A real S3 server over a socket for tests: moto's, in a process of its own.

Its own process, because moto leaves temporary files to the garbage collector (a warning is an
error here) and because a test that measures memory must not measure the server's.

- `s3_server`: the endpoint, started once a session when a test asks.
- `s3_bucket`: an empty bucket of its own for every test, with the credentials in the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3  # type: ignore[import-untyped]  # ships no types
import pytest

ACCESS_KEY, SECRET_KEY, REGION = "test-access-key", "test-secret-key", "us-east-1"

# The server ends when its standard input does, which a killed test process cannot prevent.
_SERVER = """
import logging, sys
logging.disable(logging.CRITICAL)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and boto3's client as the second opinion on what is in it."""

    name: str
    endpoint: str
    client: Any

    @property
    def url(self) -> str:
        """As `storage_url` names it, with a prefix."""
        return f"s3://{self.name}/some/prefix"

    def keys(self) -> list[str]:
        """Every visible object, prefix included."""
        return [found["Key"] for found in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def open_uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        return [
            found["Key"] for found in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        ]


@contextmanager
def running_s3() -> Iterator[str]:
    """A server of its own; its endpoint."""
    environment = os.environ | {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()

        assert port, "the S3 server did not start"

        yield f"http://127.0.0.1:{port}"
        server.kill()


def connect_s3(endpoint: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
    """boto3's client of a server."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
    )


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of the session's S3 server."""
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A new bucket; obstore finds the credentials where it looks first, in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    client = connect_s3(s3_server)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(name, s3_server, client)
