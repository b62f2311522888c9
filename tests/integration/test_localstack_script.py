"""The script that LocalStack runs when it is ready, with a client of ours in the place of `awslocal`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.s3 import ACCESS_KEY, REGION, SECRET_KEY, connect_s3

SCRIPT = Path(__file__).parents[2] / "deploy" / "localstack" / "ready.d" / "10-bucket.sh"
# `awslocal s3api head-bucket --bucket NAME [--option KEY=VALUE,..]`, by boto3, for these operations alone.
CLIENT = """#!{python}
import sys, boto3
service, operation, *options = sys.argv[1:]
given = dict(zip(options[::2], options[1::2]))
arguments = {{"Bucket": given.pop("--bucket")}}
if block := given.pop("--public-access-block-configuration", None):
    pairs = (pair.split("=") for pair in block.split(","))
    arguments["PublicAccessBlockConfiguration"] = {{name: value == "true" for name, value in pairs}}
assert service == "s3api" and not given, sys.argv
getattr(boto3.client("s3", endpoint_url="{endpoint}"), operation.replace("-", "_"))(**arguments)
"""


@pytest.fixture
def programs(tmp_path: Path, s3_server: str) -> Path:
    """A folder with `awslocal`."""
    program = tmp_path / "awslocal"
    program.write_text(CLIENT.format(python=sys.executable, endpoint=s3_server))
    program.chmod(0o755)
    return tmp_path


def _run(programs: Path, bucket: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{programs}:{os.defpath}",
        "BUCKET": bucket,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
    }
    return subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_bucket_is_made_once_and_closed_to_the_public(programs: Path, s3_server: str) -> None:
    client = connect_s3(s3_server)
    first = _run(programs, "made-by-the-script")
    client.put_object(Bucket="made-by-the-script", Key="kept", Body=b"kept")
    second = _run(programs, "made-by-the-script")
    block = client.get_public_access_block(Bucket="made-by-the-script")["PublicAccessBlockConfiguration"]

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout == "The bucket made-by-the-script is ready\n"
    assert client.list_objects_v2(Bucket="made-by-the-script")["KeyCount"] == 1
    assert len(block) == 4
    assert all(block.values())


def test_a_bucket_that_cannot_be_made_is_told(programs: Path) -> None:
    result = _run(programs, "NOT A NAME")

    assert result.returncode != 0
    assert result.stdout == ""
