"""Variants: made when first asked for, once, by few threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
from tests.pictures import decoded, encoded, gradient, png_that_claims
from tests.s3 import Bucket

from fleek.core.errors import InvalidRequest, Unavailable
from fleek.core.media import GIF, MP4, PNG, VARIANTS, MediaType, OutputFormat, Variant
from fleek.media.images import MAX_IMAGE_BYTES, ImageWorker
from fleek.media.variants import VariantMaker
from fleek.storage.base import ObjectNotFoundError, ObjectStorage, StorageError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

SIGNER = UrlSigner(b"a secret key of the tests, 32 bytes")
KEY = "media/job/result/1.png"
WEBP_512 = Variant(512, OutputFormat.WEBP)
MADE = "media/job/result/1.w512.webp"


class GatedWorker(ImageWorker):
    """Counts its works, and does none before `gate` opens."""

    def __init__(self, threads: int = 2) -> None:
        super().__init__(threads)
        self.gate = threading.Event()
        self.works = 0
        self.finished = 0

    async def run(self, function: Callable[[*Arguments], Result], *args: *Arguments) -> Result:
        """As its base, behind the gate."""
        self.works += 1

        def gated() -> Result:
            assert self.gate.wait(10)
            return function(*args)

        try:
            return await super().run(gated)
        finally:
            self.finished += 1


@pytest.fixture
def storage(tmp_path: Path) -> ObjectStorage:
    return open_storage((tmp_path / "store").as_uri(), signer=SIGNER)


@pytest.fixture
def images() -> Iterator[GatedWorker]:
    worker = GatedWorker()
    worker.gate.set()
    yield worker
    worker.gate.set()
    worker.close()


@pytest.fixture
async def original(storage: ObjectStorage) -> bytes:
    content = encoded(gradient(1600, 900))
    await put(storage, KEY, content)
    return content


async def put(storage: ObjectStorage, key: str, content: bytes) -> None:
    await storage.put(key, content, content_type="image/png", filename="result.png")


async def read(storage: ObjectStorage, key: str) -> bytes:
    return b"".join([chunk async for chunk in storage.get(key)])


async def keys(storage: ObjectStorage) -> set[str]:
    return {found.key async for found in storage.list("")}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110  what is waited for sets no event
            await asyncio.sleep(0.001)


async def until_begun(images: GatedWorker, works: int) -> None:
    async def begun() -> bool:
        return images.works >= works

    await until(begun)


@pytest.mark.usefixtures("original")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
async def test_a_variant_is_made_and_kept_beside_the_original(
    storage: ObjectStorage, images: GatedWorker, variant: Variant
) -> None:
    key = await VariantMaker(storage, images).ensure(KEY, PNG, variant)

    assert key == f"media/job/result/1.{variant}"
    assert decoded(await read(storage, key)).width == variant.width
    assert await keys(storage) == {KEY, key}


@pytest.mark.usefixtures("original")
async def test_a_variant_that_exists_is_not_made_again(storage: ObjectStorage, images: GatedWorker) -> None:
    first = await VariantMaker(storage, images).ensure(KEY, PNG, WEBP_512)
    second = await VariantMaker(storage, images).ensure(KEY, PNG, WEBP_512)

    assert first == second
    assert images.works == 1


@pytest.mark.usefixtures("original")
async def test_requests_at_the_same_time_share_the_work(storage: ObjectStorage, images: GatedWorker) -> None:
    images.gate.clear()
    maker = VariantMaker(storage, images)
    requests = [asyncio.create_task(maker.ensure(KEY, PNG, WEBP_512)) for _ in range(20)]
    await until_begun(images, 1)
    images.gate.set()

    assert set(await asyncio.gather(*requests)) == {MADE}
    assert images.works == 1


@pytest.mark.usefixtures("original")
async def test_a_canceled_request_does_not_stop_the_work_for_the_others(
    storage: ObjectStorage, images: GatedWorker
) -> None:
    images.gate.clear()
    maker = VariantMaker(storage, images)
    first, second = (asyncio.create_task(maker.ensure(KEY, PNG, WEBP_512)) for _ in range(2))
    await until_begun(images, 1)
    first.cancel()
    await asyncio.wait({first})
    images.gate.set()

    assert first.cancelled()
    assert await second == MADE
    assert images.works == 1


@pytest.mark.usefixtures("original")
async def test_work_that_nobody_waits_for_any_more_is_finished(
    storage: ObjectStorage, images: GatedWorker
) -> None:
    images.gate.clear()
    request = asyncio.create_task(VariantMaker(storage, images).ensure(KEY, PNG, WEBP_512))
    await until_begun(images, 1)
    request.cancel()
    await asyncio.wait({request})
    images.gate.set()

    async def made() -> bool:
        return MADE in await keys(storage)

    await until(made)

    assert images.works == 1


async def test_a_failure_reaches_every_request_and_the_next_one_tries_again(
    storage: ObjectStorage, images: GatedWorker
) -> None:
    maker = VariantMaker(storage, images)
    requests = [maker.ensure(KEY, PNG, WEBP_512) for _ in range(3)]
    failures = await asyncio.gather(*requests, return_exceptions=True)

    assert [type(failure) for failure in failures] == [ObjectNotFoundError] * 3

    await put(storage, KEY, encoded(gradient(600, 600)))

    assert await maker.ensure(KEY, PNG, WEBP_512) == MADE


async def test_a_failure_that_nobody_waits_for_is_not_complained_about(
    storage: ObjectStorage, images: GatedWorker
) -> None:
    await put(storage, KEY, encoded(gradient(600, 600))[:-50])
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    images.gate.clear()
    request = asyncio.create_task(VariantMaker(storage, images).ensure(KEY, PNG, WEBP_512))
    await until_begun(images, 1)
    request.cancel()
    await asyncio.wait({request})
    images.gate.set()

    async def failed() -> bool:
        return images.finished == 1

    await until(failed)
    del request
    await asyncio.sleep(0.01)
    gc.collect()

    assert complaints == []


@pytest.mark.usefixtures("original")
async def test_too_many_different_variants_at_once_are_refused_for_now(
    storage: ObjectStorage, images: GatedWorker
) -> None:
    made_before = await VariantMaker(storage, images).ensure(KEY, PNG, VARIANTS[4])
    images.gate.clear()
    maker = VariantMaker(storage, images, max_waiting=2)
    waiting = [asyncio.create_task(maker.ensure(KEY, PNG, variant)) for variant in VARIANTS[:2]]
    shared = asyncio.create_task(maker.ensure(KEY, PNG, VARIANTS[0]))
    await until_begun(images, 3)
    with pytest.raises(Unavailable):
        await maker.ensure(KEY, PNG, VARIANTS[2])

    assert await maker.ensure(KEY, PNG, VARIANTS[4]) == made_before

    images.gate.set()
    await asyncio.gather(*waiting, shared)

    assert await maker.ensure(KEY, PNG, VARIANTS[2]) == f"media/job/result/1.{VARIANTS[2]}"


@pytest.mark.usefixtures("original")
async def test_no_more_originals_are_read_at_once_than_there_are_threads(
    storage: ObjectStorage, images: GatedWorker
) -> None:
    images.gate.clear()
    maker = VariantMaker(storage, images)
    requests = [asyncio.create_task(maker.ensure(KEY, PNG, variant)) for variant in VARIANTS]
    await until_begun(images, 2)
    await asyncio.sleep(0.05)

    assert images.works == images.threads

    images.gate.set()

    assert len(set(await asyncio.gather(*requests))) == len(VARIANTS)


@pytest.mark.parametrize("media_type", [MP4, GIF])
async def test_only_pictures_that_are_decoded_have_variants(
    storage: ObjectStorage, images: GatedWorker, media_type: MediaType
) -> None:
    with pytest.raises(InvalidRequest):
        await VariantMaker(storage, images).ensure(KEY, media_type, WEBP_512)


@pytest.mark.parametrize(
    "content",
    [
        encoded(gradient(64, 64)) + bytes(MAX_IMAGE_BYTES),
        png_that_claims(60_000, 60_000),
        encoded(gradient(600, 600))[:-50],
    ],
    ids=["bytes", "pixels", "damaged"],
)
async def test_a_picture_that_cannot_be_decoded_has_no_variants(
    storage: ObjectStorage, images: GatedWorker, content: bytes
) -> None:
    await put(storage, KEY, content)
    with pytest.raises(InvalidRequest):
        await VariantMaker(storage, images).ensure(KEY, PNG, WEBP_512)

    assert await keys(storage) == {KEY}


@pytest.mark.usefixtures("original")
async def test_closing_stops_what_is_in_the_making(storage: ObjectStorage, images: GatedWorker) -> None:
    images.gate.clear()
    maker = VariantMaker(storage, images)
    request = asyncio.create_task(maker.ensure(KEY, PNG, WEBP_512))
    await until_begun(images, 1)
    await maker.aclose()
    images.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await request

    assert await keys(storage) == {KEY}


async def test_on_s3_a_variant_says_what_it_is(s3_bucket: Bucket, images: GatedWorker) -> None:
    storage = open_storage(s3_bucket.url, signer=SIGNER, endpoint=s3_bucket.endpoint)
    await put(storage, KEY, encoded(gradient(600, 600)))
    await VariantMaker(storage, images).ensure(KEY, PNG, Variant(256, OutputFormat.JPEG))
    head = s3_bucket.client.head_object(Bucket=s3_bucket.name, Key="some/prefix/media/job/result/1.w256.jpeg")

    assert head["ContentType"] == "image/jpeg"
    assert head["ContentDisposition"] == 'inline; filename="result.w256.jpeg"'


async def test_a_store_that_is_away_is_a_storage_error(s3_bucket: Bucket, images: GatedWorker) -> None:
    storage = open_storage(s3_bucket.url, signer=SIGNER, endpoint="http://127.0.0.1:1")
    with pytest.raises(StorageError):
        await VariantMaker(storage, images).ensure(KEY, PNG, WEBP_512)
