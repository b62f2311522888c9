"""Outputs on their way from a provider into a real object store."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.pictures import encoded, gradient, noise, png_that_claims
from tests.s3 import Bucket

from fleek.core.errors import OutputInvalid, OutputTooLarge, ProviderError, ProviderErrorKind
from fleek.core.media import MP4, PNG, MediaType
from fleek.media.images import MAX_IMAGE_BYTES, ImageWorker, probe
from fleek.media.outputs import StoredOutput, download_name, store_output
from fleek.providers.base import BytesOutput, Output, StreamOutput
from fleek.storage.base import ObjectStorage, StorageError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

SIGNER = UrlSigner(b"a secret key of the tests, 32 bytes")
LIMIT = 200_000_000
PICTURE = encoded(noise(400, 300))
"""More than is hashed at once, less than is spooled."""
LARGE_PICTURE = encoded(noise(2200, 1600))
"""About 10 MB, so that its spool moves to the disk."""
FILM = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 40_000
"""About 10 MB."""


Arriving = Callable[[bytes], Output]
"""How content comes from the provider."""


class Reply:
    """A provider's reply as it comes in, which knows whether it was closed."""

    def __init__(self, content: bytes, *, chunk: int = 50_000, error: Exception | None = None) -> None:
        self._content = content
        self._chunk = chunk
        self._error = error
        self.closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            for start in range(0, len(self._content), self._chunk):
                yield self._content[start : start + self._chunk]
            if self._error:
                raise self._error
        finally:
            self.closed = True

    @property
    def output(self) -> StreamOutput:
        return StreamOutput(self.chunks())


def as_bytes(content: bytes) -> Output:
    return BytesOutput(content)


def as_stream(content: bytes) -> Output:
    return Reply(content).output


def as_dribble(content: bytes) -> Output:
    return Reply(content, chunk=max(7, len(content) // 1000)).output


@pytest.fixture
def images() -> Iterator[ImageWorker]:
    worker = ImageWorker(2)
    yield worker
    worker.close()


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStorage:
    if request.param == "disk":
        return open_storage((tmp_path / "store").as_uri(), signer=SIGNER)
    bucket: Bucket = request.getfixturevalue("s3_bucket")
    return open_storage(bucket.url, signer=SIGNER, endpoint=bucket.endpoint)


def key_for(media_type: MediaType) -> str:
    return f"media/job/result/3.{media_type.extension}"


async def store(
    storage: ObjectStorage, images: ImageWorker, output: Output, *, max_bytes: int = LIMIT
) -> StoredOutput:
    return await store_output(storage, output, key_for=key_for, max_bytes=max_bytes, images=images)


async def read(storage: ObjectStorage, key: str) -> bytes:
    return b"".join([chunk async for chunk in storage.get(key)])


async def keys(storage: ObjectStorage) -> list[str]:
    return [found.key async for found in storage.list("")]


@pytest.mark.parametrize("arriving", [as_bytes, as_stream, as_dribble])
@pytest.mark.parametrize("content", [PICTURE, LARGE_PICTURE], ids=["small", "large"])
async def test_a_picture_is_stored_with_all_that_is_known_of_it(
    storage: ObjectStorage, images: ImageWorker, arriving: Arriving, content: bytes
) -> None:
    stored = await store(storage, images, arriving(content))
    facts = probe(content, PNG)

    assert stored == StoredOutput(
        key="media/job/result/3.png",
        content_type="image/png",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        width=facts.width,
        height=facts.height,
        thumbhash=facts.thumbhash,
    )
    assert await read(storage, stored.key) == content


@pytest.mark.parametrize("arriving", [as_bytes, as_stream, as_dribble])
@pytest.mark.parametrize("content", [FILM, FILM[:100]], ids=["large", "tiny"])
async def test_a_film_is_stored_without_being_looked_into(
    storage: ObjectStorage, images: ImageWorker, arriving: Arriving, content: bytes
) -> None:
    stored = await store(storage, images, arriving(content))

    assert (stored.key, stored.content_type) == ("media/job/result/3.mp4", MP4.content_type)
    assert (stored.width, stored.height, stored.thumbhash) == (None, None, None)
    assert stored.size_bytes == len(content)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert await read(storage, stored.key) == content


async def test_a_picture_of_a_format_that_is_never_decoded_is_stored_as_it_is(
    storage: ObjectStorage, images: ImageWorker
) -> None:
    stored = await store(storage, images, BytesOutput(b"GIF89a not really a picture"))

    assert (stored.key, stored.width, stored.thumbhash) == ("media/job/result/3.gif", None, None)


@pytest.mark.parametrize("arriving", [as_bytes, as_stream])
async def test_a_picture_of_too_many_pixels_is_stored_without_a_placeholder(
    storage: ObjectStorage, images: ImageWorker, arriving: Arriving
) -> None:
    stored = await store(storage, images, arriving(png_that_claims(60_000, 60_000)))

    assert (stored.width, stored.height, stored.thumbhash) == (60_000, 60_000, None)


@pytest.mark.parametrize("arriving", [as_bytes, as_stream])
async def test_a_picture_of_too_many_bytes_is_stored_without_being_decoded(
    storage: ObjectStorage, images: ImageWorker, arriving: Arriving
) -> None:
    content = encoded(gradient(64, 64)) + bytes(MAX_IMAGE_BYTES)
    stored = await store(storage, images, arriving(content))

    assert (stored.width, stored.height, stored.thumbhash) == (None, None, None)
    assert stored.size_bytes == len(content)
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert (await storage.head(stored.key)).size == len(content)


@pytest.mark.parametrize("arriving", [as_bytes, as_stream])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PN", b"<!DOCTYPE html><title>Gone</title>", b"<svg/>" * 400_000, b"{}"],
    ids=["nothing", "too-short", "html", "svg", "json"],
)
async def test_bytes_of_no_known_type_are_invalid_and_not_stored(
    storage: ObjectStorage, images: ImageWorker, arriving: Arriving, content: bytes
) -> None:
    with pytest.raises(OutputInvalid):
        await store(storage, images, arriving(content))

    assert await keys(storage) == []


@pytest.mark.parametrize("arriving", [as_bytes, as_stream, as_dribble])
@pytest.mark.parametrize("content", [PICTURE[:-5000], LARGE_PICTURE[:-50_000]], ids=["small", "large"])
async def test_a_damaged_picture_is_invalid_and_not_stored(
    storage: ObjectStorage, images: ImageWorker, arriving: Arriving, content: bytes
) -> None:
    with pytest.raises(OutputInvalid, match="damaged"):
        await store(storage, images, arriving(content))

    assert await keys(storage) == []


@pytest.mark.parametrize("arriving", [as_bytes, as_stream, as_dribble])
@pytest.mark.parametrize("content", [PICTURE, LARGE_PICTURE, FILM], ids=["small", "large", "film"])
async def test_the_limit_is_the_last_size_that_is_allowed(
    storage: ObjectStorage, images: ImageWorker, arriving: Arriving, content: bytes
) -> None:
    with pytest.raises(OutputTooLarge, match=str(len(content) - 1)):
        await store(storage, images, arriving(content), max_bytes=len(content) - 1)

    assert await keys(storage) == []

    await store(storage, images, arriving(content), max_bytes=len(content))

    assert len(await keys(storage)) == 1


async def test_an_endless_stream_ends_at_the_limit(storage: ObjectStorage, images: ImageWorker) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        yield FILM[:100]
        while True:
            given += 100_000
            yield bytes(100_000)

    with pytest.raises(OutputTooLarge):
        await store(storage, images, StreamOutput(endless()), max_bytes=20_000_000)

    assert given <= 20_100_000
    assert await keys(storage) == []


@pytest.mark.parametrize("content", [PICTURE, LARGE_PICTURE, FILM], ids=["small", "large", "film"])
async def test_an_error_of_the_provider_is_passed_on_and_nothing_is_stored(
    storage: ObjectStorage, images: ImageWorker, content: bytes
) -> None:
    error = ProviderError(ProviderErrorKind.TRANSIENT, "The connection was lost")
    with pytest.raises(ProviderError) as raised:
        await store(storage, images, Reply(content, error=error).output)

    assert raised.value is error
    assert await keys(storage) == []


@pytest.mark.parametrize(
    ("content", "max_bytes"),
    [(FILM, LIMIT), (FILM, 5_000_000), (b"<html>" * 500_000, LIMIT), (LARGE_PICTURE[:-50_000], LIMIT)],
    ids=["good", "too-large", "unknown", "damaged"],
)
async def test_the_providers_stream_is_closed_whatever_happens(
    storage: ObjectStorage, images: ImageWorker, content: bytes, max_bytes: int
) -> None:
    reply = Reply(content)
    with suppress(OutputInvalid, OutputTooLarge):
        await store(storage, images, reply.output, max_bytes=max_bytes)

    assert reply.closed


@pytest.mark.parametrize("content", [PICTURE, LARGE_PICTURE, FILM], ids=["small", "large", "film"])
async def test_a_store_that_is_away_is_a_storage_error(
    s3_bucket: Bucket, images: ImageWorker, content: bytes
) -> None:
    storage = open_storage("s3://no-such-bucket", signer=SIGNER, endpoint=s3_bucket.endpoint)
    for output in (BytesOutput(content), Reply(content).output):
        with pytest.raises(StorageError):
            await store(storage, images, output)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("media/job/result/3.png", "result.png"),
        ("media/job/result/3.w512.webp", "result.w512.webp"),
    ],
)
def test_a_download_is_named_after_its_result(key: str, name: str) -> None:
    assert download_name(key) == name
