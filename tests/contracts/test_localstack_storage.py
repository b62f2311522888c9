"""LocalStack as object store: the suite, the bucket, and URLs whose signatures it checks."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.contracts.storage_suite import (
    KEY,
    LARGE,
    StreamingStorageSuite,
    broken_after,
    chunks_of,
    exists,
    put,
    read,
)
from tests.localstack import LocalStack
from tests.s3 import Bucket

from fleek.storage.base import ObjectStorage
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SIGNER = UrlSigner(b"a secret key of the tests, 32 bytes")
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "object-storage.md"
PERMISSIONS = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateBucket": "s3:CreateBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObjects": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "ListObjects": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}
"""What AWS asks for: docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html."""
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)


def altered(url: str) -> str:
    """The same URL with one digit of its signature changed."""
    head, name, signature = url.partition("X-Amz-Signature=")
    return f"{head}{name}{'1' if signature[0] == '0' else '0'}{signature[1:]}"


async def get(url: str, **headers: str) -> httpx2.Response:
    """As a client that knows nothing but the URL."""
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.get(url, headers=headers)


class TestLocalStack(StreamingStorageSuite):
    @pytest.fixture
    def storage(self, localstack_bucket: Bucket) -> ObjectStorage:
        bucket = localstack_bucket
        return open_storage(bucket.url, signer=SIGNER, endpoint=bucket.endpoint)

    async def test_a_signed_url_gives_the_bytes(self, storage: ObjectStorage) -> None:
        await put(storage, b"bytes")
        answer = await get((await storage.sign(KEY, expires_in=MINUTE)).url)

        assert (answer.status_code, answer.content) == (200, b"bytes")
        assert answer.headers["content-type"] == "image/png"

    async def test_an_altered_url_is_refused(self, storage: ObjectStorage) -> None:
        await put(storage, b"bytes")
        signed = await storage.sign(KEY, expires_in=MINUTE)
        await put(storage, b"another", key="media/job/result/2.png")
        answers = [
            await get(altered(signed.url)),
            await get(signed.url.replace("/1.png", "/2.png")),
            await get(signed.url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")),
        ]

        assert [answer.status_code for answer in answers] == [403] * 3

    async def test_a_url_is_refused_once_it_has_expired(self, storage: ObjectStorage) -> None:
        await put(storage, b"bytes")
        signed = await storage.sign(KEY, expires_in=SECOND)
        await asyncio.sleep(2.1)
        answer = await get(signed.url)

        assert answer.status_code == 403
        assert "expired" in answer.text

    async def test_a_url_for_the_bucket_as_host_is_accepted(self, localstack_bucket: Bucket) -> None:
        bucket = localstack_bucket
        port = urlsplit(bucket.endpoint).port
        storage = open_storage(bucket.url, signer=SIGNER, endpoint=bucket.endpoint)
        await put(storage, b"bytes")
        public = open_storage(
            bucket.url,
            signer=SIGNER,
            public_endpoint=f"http://s3.localhost.localstack.cloud:{port}",
            path_style=False,
        )
        signed = await public.sign(KEY, expires_in=MINUTE)
        parts = urlsplit(signed.url)
        here = signed.url.replace(parts.netloc, f"127.0.0.1:{port}")
        answer = await get(here, Host=parts.netloc)
        refused = await get(altered(here), Host=parts.netloc)

        assert parts.netloc.startswith(f"{bucket.name}.s3.")
        assert (answer.status_code, answer.content) == (200, b"bytes")
        assert refused.status_code == 403

    async def test_a_bucket_is_made_once_by_several_at_once(self, localstack_bucket: Bucket) -> None:
        url = f"s3://new-{uuid.uuid4().hex[:12]}"
        endpoint, region = localstack_bucket.endpoint, "eu-west-1"
        stores = [open_storage(url, signer=SIGNER, endpoint=endpoint, region=region) for _ in range(5)]
        made = await asyncio.gather(*(store.prepare() for store in stores))
        await stores[0].check()

        assert any(made)
        assert not await stores[0].prepare()


def policies() -> list[dict[str, Any]]:
    """The policies that the guide shows: every block of JSON with statements."""
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)]
    return [block for block in blocks if "Statement" in block]


def actions_of(policy: dict[str, Any]) -> list[str]:
    """Every action that it allows."""
    return [action for statement in policy["Statement"] for action in statement["Action"]]


async def test_the_policies_of_the_guide_allow_what_is_asked_of_the_store_and_no_more(
    localstack: LocalStack, localstack_bucket: Bucket
) -> None:
    """By LocalStack's own log of what it was asked for."""
    seen = len(localstack.log.read_text())
    storage = open_storage(localstack_bucket.url, signer=SIGNER, endpoint=localstack.endpoint)
    await put(storage, chunks_of(LARGE))
    with pytest.raises(ZeroDivisionError):
        await put(storage, broken_after(LARGE, ZeroDivisionError()), key="media/job/broken.png")
    await storage.check()
    await read(storage, start=5)
    await get((await storage.sign(KEY, expires_in=MINUTE)).url)
    assert await exists(storage)
    assert [found.key async for found in storage.list("media")] == [KEY]
    await storage.delete([KEY])
    working = asked_for(localstack.log.read_text()[seen:])
    await storage.prepare()
    await open_storage(
        f"s3://new-{uuid.uuid4().hex[:12]}", signer=SIGNER, endpoint=localstack.endpoint
    ).prepare()
    making = asked_for(localstack.log.read_text()[seen:])
    [running, initial] = policies()

    assert sorted(actions_of(running)) == sorted(working)
    assert sorted([*actions_of(running), *actions_of(initial)]) == sorted(making)


def asked_for(log: str) -> set[str]:
    """The permissions that these requests take."""
    return {PERMISSIONS[name] for name in re.findall(r"AWS s3\.(\w+) =>", log)}


async def test_objects_are_deleted_one_by_one_where_the_environment_says_so(
    localstack: LocalStack, localstack_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For stores without bulk deletes; obstore reads the variable."""
    monkeypatch.setenv("AWS_DISABLE_BULK_DELETE", "true")
    storage = open_storage(localstack_bucket.url, signer=SIGNER, endpoint=localstack.endpoint)
    keys = [KEY, "media/job/2.png"]
    for key in keys:
        await put(storage, b"x", key=key)
    seen = len(localstack.log.read_text())
    await storage.delete(keys)
    asked = re.findall(r"AWS s3\.(\w+) =>", localstack.log.read_text()[seen:])

    assert asked == ["DeleteObject"] * 2
    assert [found async for found in storage.list("media")] == []
