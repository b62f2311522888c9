"""Results as clients see them: rows in a real PostgreSQL, bytes in a store."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import text
from structlog.testing import capture_logs
from tests.factories import make_completed_job, make_job, make_jobs, picture
from tests.statements import explain, sent_statements

from fleek.core.cursor import CursorCodec
from fleek.core.errors import (
    FleekError,
    Gone,
    InvalidCursor,
    InvalidRequest,
    JobNotFinished,
    NotFound,
    NotReady,
    StorageUnavailable,
)
from fleek.core.ids import new_id
from fleek.core.job import ErrorCode, Reason, Status
from fleek.core.media import VARIANTS, Variant, parse_variant, variant_key
from fleek.core.owner import LOCAL_OWNER
from fleek.core.urls import Urls
from fleek.db.session import Database
from fleek.media.images import ImageWorker
from fleek.media.repository import MediaFilter
from fleek.media.schemas import MediaPage
from fleek.media.service import MediaService
from fleek.media.signing import SignedUrls
from fleek.media.variants import VariantMaker
from fleek.storage.base import ObjectNotFoundError, ObjectStorage, StorageError
from fleek.storage.object_store import open_storage
from fleek.storage.signed_urls import UrlSigner

URLS = Urls("https://media.example.com")
TTL = timedelta(minutes=10)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SIGNER = UrlSigner(b"k" * 32)


class AwayStorage:
    """A store that answers nothing but errors."""

    def __getattr__(self, name: str) -> Any:
        async def refuse(*_args: Any, **_kwargs: Any) -> None:
            raise StorageError(name)

        return refuse


@dataclass(frozen=True, slots=True)
class World:
    """A service and what it works on."""

    database: Database
    storage: ObjectStorage
    media: MediaService
    without_store: MediaService

    async def has(self, key: str) -> bool:
        try:
            await self.storage.head(key)
        except ObjectNotFoundError:
            return False
        return True

    async def page(self, filters: MediaFilter | None = None, **options: Any) -> MediaPage:
        owner = options.pop("owner", LOCAL_OWNER)
        defaults: dict[str, Any] = {"cursor": None, "limit": 100, "sign": False}
        return await self.media.list(owner, filters or MediaFilter(), URLS, **(defaults | options))

    async def error_of(self, media_id: UUID, owner: str = LOCAL_OWNER) -> type[FleekError] | None:
        """What asking for the bytes raises."""
        try:
            await self.media.content_url(owner, media_id)
        except FleekError as error:
            return type(error)
        return None


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    database = Database(database_url)
    storage = open_storage("memory://", signer=SIGNER)
    images, cursors = ImageWorker(1), CursorCodec(b"s" * 32)
    variants = VariantMaker(storage, images)
    away: Any = AwayStorage()
    without_store = MediaService(database, away, VariantMaker(away, images), cursors, SignedUrls(away, TTL))
    media = MediaService(database, storage, variants, cursors, SignedUrls(storage, TTL))
    yield World(database, storage, media, without_store)
    await variants.aclose()
    images.close()
    await database.aclose()


def variant(name: str) -> Variant:
    parsed = parse_variant(name)
    assert parsed is not None
    return parsed


def key_of(url: str) -> str:
    """The object that a signed path is for; the signature is checked on the way."""
    parts = urlsplit(url)
    key, query = parts.path.removeprefix("/v1/objects/"), parse_qs(parts.query)
    SIGNER.verify(key, query["expires"][0], query["signature"][0], datetime.now(UTC))
    return key


async def test_a_stored_result_is_described_with_the_facts_of_its_bytes(world: World) -> None:
    job = await make_completed_job(world.database, n=2)

    found = await world.media.get(LOCAL_OWNER, job.media_ids[1], URLS)

    assert (found.id, found.job_id, found.index, found.seed) == (job.media_ids[1], job.id, 1, 8)
    assert (found.content_type, found.size_bytes) == ("image/png", len(picture(8)))
    assert found.content_url == f"https://media.example.com/v1/media/content/{found.id}"
    assert found.signed_url is None


async def test_a_result_that_is_still_to_come_is_described_without_them(world: World) -> None:
    job = await make_job(world.database)

    found = await world.media.get(LOCAL_OWNER, job.media_ids[0], URLS)

    assert (found.content_type, found.size_bytes, found.sha256, found.stored_at) == (None, None, None, None)
    assert found.created_at == job.created_at


async def test_the_bytes_of_a_result_are_to_be_had_only_by_its_owner_and_while_it_is_live(
    world: World,
) -> None:
    make, now = make_completed_job, datetime.now(UTC)
    stored = (await make(world.database)).media_ids[0]
    foreign = (await make(world.database, owner_id="somebody else")).media_ids[0]
    deleted = (await make(world.database, media={"deleted_at": NOON})).media_ids[0]
    expired = (await make(world.database, media={"expires_at": now - MINUTE})).media_ids[0]
    expiring = (await make(world.database, media={"expires_at": now + MINUTE})).media_ids[0]
    failed = (await make_job(world.database, status=Status.ERROR)).media_ids[0]
    canceled = (await make_job(world.database, status=Status.CANCELED)).media_ids[0]
    running = (await make_job(world.database, status=Status.PROCESSING)).media_ids[0]
    asked = [stored, expiring, foreign, new_id(), deleted, expired, failed, canceled, running]

    errors = [await world.error_of(media_id) for media_id in asked]

    assert errors == [None, None, NotFound, NotFound, Gone, Gone, NotFound, NotFound, NotReady]
    assert await world.error_of(foreign, "somebody else") is None


async def test_a_client_is_told_when_asking_again_can_be_worth_it(world: World) -> None:
    in_a_minute = datetime.now(UTC) + MINUTE
    states: list[tuple[dict[str, Any], float]] = [
        ({"status": Status.PROCESSING}, 1),
        ({"status": Status.IN_QUEUE}, 2),
        ({"reason": Reason.RETRY_SCHEDULED, "available_at": in_a_minute}, 60),
    ]
    for state, seconds in states:
        job = await make_job(world.database, **state)

        with pytest.raises(NotReady) as caught:
            await world.media.content_url(LOCAL_OWNER, job.media_ids[0])

        assert caught.value.retry_after.total_seconds() == pytest.approx(seconds, abs=2 if seconds > 2 else 0)


async def test_a_content_url_is_signed_for_the_time_that_was_configured(world: World) -> None:
    job = await make_completed_job(world.database)

    signed = await world.media.content_url(LOCAL_OWNER, job.media_ids[0])

    assert key_of(signed.url) == job.keys[0]
    assert (signed.expires_at - datetime.now(UTC)).total_seconds() == pytest.approx(
        TTL.total_seconds(), abs=5
    )


async def test_a_content_url_does_not_outlive_its_result(world: World) -> None:
    expires_at = datetime.now(UTC) + MINUTE
    job = await make_completed_job(world.database, media={"expires_at": expires_at})

    signed = await world.media.content_url(LOCAL_OWNER, job.media_ids[0])
    page = await world.page(sign=True)

    assert signed.expires_at <= expires_at + timedelta(seconds=1)
    query = parse_qs(urlsplit(page.items[0].signed_url or "").query)
    assert int(query["expires"][0]) <= expires_at.timestamp() + 1


async def test_a_variant_is_made_when_it_is_first_asked_for(world: World) -> None:
    job = await make_completed_job(world.database, world.storage)
    small = variant("w256.webp")
    assert not await world.has(variant_key(job.keys[0], small))

    signed = await world.media.content_url(LOCAL_OWNER, job.media_ids[0], small)
    content = await world.media.open(LOCAL_OWNER, job.media_ids[0], small)

    assert key_of(signed.url) == variant_key(job.keys[0], small)
    assert (content.content_type, content.filename) == ("image/webp", f"{job.media_ids[0]}.w256.webp")
    assert Image.open(io.BytesIO(await read(content.chunks(0, None)))).format == "WEBP"


async def read(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("content_type", ["video/mp4", "model/gltf-binary"])
async def test_what_is_no_picture_has_no_variants(world: World, content_type: str) -> None:
    job = await make_completed_job(world.database, media={"content_type": content_type})

    with pytest.raises(InvalidRequest):
        await world.media.content_url(LOCAL_OWNER, job.media_ids[0], variant("w256.webp"))


async def test_the_bytes_can_be_read_whole_and_in_part(world: World) -> None:
    job = await make_completed_job(world.database, world.storage)

    content = await world.media.open(LOCAL_OWNER, job.media_ids[0])

    assert await read(content.chunks(0, None)) == picture(7)
    assert await read(content.chunks(1, 5)) == picture(7)[1:5]
    assert (content.content_type, content.size) == ("image/png", len(picture(7)))
    assert content.filename == f"{job.media_ids[0]}.png"


async def test_results_with_the_same_bytes_share_an_entity_tag_and_their_variants_have_others(
    world: World,
) -> None:
    first, second = [await make_completed_job(world.database, world.storage) for _ in range(2)]

    tags = [(await world.media.open(LOCAL_OWNER, job.media_ids[0])).etag for job in (first, second)]
    of_variants = [
        (await world.media.open(LOCAL_OWNER, first.media_ids[0], variant(name))).etag
        for name in ("w256.webp", "w256.png")
    ]

    assert tags[0] == tags[1]
    assert len({tags[0], *of_variants}) == 3
    assert all(tag.startswith('"') and tag.endswith('"') for tag in (*tags, *of_variants))


async def test_bytes_that_somebody_took_away_are_gone(world: World) -> None:
    job = await make_completed_job(world.database, world.storage)
    content = await world.media.open(LOCAL_OWNER, job.media_ids[0])
    await world.storage.delete(list(job.keys))

    with pytest.raises(Gone):
        await read(content.chunks(0, None))
    with pytest.raises(Gone):
        await world.media.open(LOCAL_OWNER, job.media_ids[0])
    with pytest.raises(Gone):
        await world.media.content_url(LOCAL_OWNER, job.media_ids[0], variant("w256.webp"))


async def test_a_store_that_is_away_is_told_from_a_result_that_is_gone(world: World) -> None:
    job = await make_completed_job(world.database)
    media = world.without_store

    with pytest.raises(StorageUnavailable):
        await media.content_url(LOCAL_OWNER, job.media_ids[0])
    with pytest.raises(StorageUnavailable):
        await media.open(LOCAL_OWNER, job.media_ids[0])
    with pytest.raises(StorageUnavailable):
        await media.list(LOCAL_OWNER, MediaFilter(), URLS, cursor=None, limit=1, sign=True)


async def test_paging_shows_each_of_many_results_of_one_moment_once(world: World) -> None:
    jobs = await make_jobs(world.database, 3, status=Status.COMPLETED, n=3, created_at=NOON)
    pages = [await world.page(limit=2)]
    while cursor := pages[-1].next_cursor:
        pages.append(await world.page(limit=2, cursor=cursor))

    seen = [item.id for page in pages for item in page.items]
    assert [len(page.items) for page in pages] == [2, 2, 2, 2, 1]
    assert seen == sorted((media_id for job in jobs for media_id in job.media_ids), reverse=True)


async def test_a_last_page_that_is_full_has_no_next_one(world: World) -> None:
    await make_jobs(world.database, 4)

    first = await world.page(limit=2)
    last = await world.page(limit=2, cursor=first.next_cursor)

    assert len(last.items) == 2
    assert last.next_cursor is None


async def test_a_cursor_is_good_for_its_own_list_only(world: World) -> None:
    await make_jobs(world.database, 2)
    cursor = (await world.page(limit=1)).next_cursor

    for filters, owner in ((MediaFilter(model="demo"), LOCAL_OWNER), (MediaFilter(), "somebody else")):
        with pytest.raises(InvalidCursor):
            await world.page(filters, owner=owner, cursor=cursor)


async def test_a_list_leaves_out_what_is_gone_or_somebody_elses_and_keeps_what_is_to_come(
    world: World,
) -> None:
    await make_completed_job(world.database, media={"deleted_at": NOON})
    await make_completed_job(world.database, media={"expires_at": NOON})
    await make_completed_job(world.database, owner_id="somebody else")
    stored = await make_completed_job(world.database, created_at=NOON)
    to_come = await make_job(world.database)

    page = await world.page()

    assert [item.id for item in page.items] == [to_come.media_ids[0], stored.media_ids[0]]
    assert [item.sha256 is None for item in page.items] == [True, False]


async def test_results_are_filtered_by_what_their_jobs_were_asked(world: World) -> None:
    database = world.database
    names = {}
    for name, job in {
        "a": await make_job(database, created_at=NOON, prompt="Der Leuchtturm", metadata={"order": "1"}),
        "b": await make_completed_job(
            database, created_at=NOON + MINUTE, model="flux", metadata={"order": "1"}
        ),
        "c": await make_completed_job(database, created_at=NOON + 2 * MINUTE, prompt="ein leuchtturm"),
        "d": await make_job(database, created_at=NOON - MINUTE, status=Status.ERROR, error_code="timeout"),
    }.items():
        names[job.media_ids[0]] = name
    rows = [
        (MediaFilter(), "cbad"),
        (MediaFilter(status=Status.COMPLETED), "cb"),
        (MediaFilter(status=Status.ERROR), "d"),
        (MediaFilter(code=ErrorCode.TIMEOUT), "d"),
        (MediaFilter(code=ErrorCode.CONTENT_REFUSED), ""),
        (MediaFilter(model="flux"), "b"),
        (MediaFilter(q="leuchtturm"), "ca"),
        (MediaFilter(metadata={"order": "1"}), "ba"),
        (MediaFilter(created_after=NOON, created_before=NOON + 2 * MINUTE), "b"),
        (MediaFilter(Status.COMPLETED, "flux", "dawn", NOON, datetime.now(UTC), {"order": "1"}), "b"),
        (MediaFilter(q="leuchtturm", metadata={"order": "1"}, status=Status.COMPLETED), ""),
    ]

    found = [(await world.page(filters)).items for filters, _ in rows]

    assert ["".join(names[item.id] for item in items) for items in found] == [
        expected for _, expected in rows
    ]


@pytest.mark.parametrize("count", [1, 100])
async def test_a_signed_page_of_any_length_is_one_statement(world: World, count: int) -> None:
    await make_jobs(world.database, count, status=Status.COMPLETED, metadata={"order": "1"})
    filters = MediaFilter(status=Status.COMPLETED, q="lighthouse", metadata={"order": "1"})

    with sent_statements() as sent:
        page = await world.page(filters, sign=True)

    assert len(page.items) == count
    assert len(sent) == 1


async def test_the_signed_urls_of_a_page_are_absolute_and_only_of_stored_results(world: World) -> None:
    stored = await make_completed_job(world.database, created_at=NOON)
    await make_job(world.database)

    to_come, done = (await world.page(sign=True)).items

    assert to_come.signed_url is None
    assert (done.signed_url or "").startswith("https://media.example.com/v1/objects/")
    assert key_of(done.signed_url or "") == stored.keys[0]


async def test_a_deleted_result_is_gone_with_its_bytes_and_its_variants(world: World) -> None:
    job = await make_completed_job(world.database, world.storage, n=2)
    made = [variant_key(job.keys[0], each) for each in VARIANTS]
    for each in VARIANTS:
        await world.media.content_url(LOCAL_OWNER, job.media_ids[0], each)

    await world.media.delete(LOCAL_OWNER, job.media_ids[0])

    assert await world.error_of(job.media_ids[0]) is Gone
    assert [key for key in (job.keys[0], *made) if await world.has(key)] == []
    assert await world.has(job.keys[1])
    assert await world.error_of(job.media_ids[1]) is None


async def test_what_is_left_of_a_deleted_result_does_not_show_it(world: World) -> None:
    job = await make_completed_job(world.database, world.storage)

    await world.media.delete(LOCAL_OWNER, job.media_ids[0])

    row = await world.database.fetch_one(text("SELECT thumbhash, deleted_at FROM media"))
    assert row.thumbhash is None
    assert row.deleted_at is not None


async def test_only_a_stored_live_result_of_ones_own_can_be_deleted(world: World) -> None:
    foreign = await make_completed_job(world.database, owner_id="somebody else")
    deleted = await make_completed_job(world.database)
    await world.media.delete(LOCAL_OWNER, deleted.media_ids[0])
    rows: list[tuple[UUID, type[FleekError]]] = [
        (foreign.media_ids[0], NotFound),
        (new_id(), NotFound),
        (deleted.media_ids[0], Gone),
        ((await make_completed_job(world.database, media={"expires_at": NOON})).media_ids[0], Gone),
        ((await make_job(world.database)).media_ids[0], JobNotFinished),
        ((await make_job(world.database, status=Status.PROCESSING)).media_ids[0], JobNotFinished),
        ((await make_job(world.database, status=Status.ERROR)).media_ids[0], NotFound),
    ]
    for media_id, error in rows:
        with pytest.raises(error):
            await world.media.delete(LOCAL_OWNER, media_id)

    assert await world.error_of(foreign.media_ids[0], "somebody else") is None


async def test_a_deletion_holds_although_the_store_is_away(world: World) -> None:
    job = await make_completed_job(world.database, world.storage)

    with capture_logs() as logs:
        await world.without_store.delete(LOCAL_OWNER, job.media_ids[0])

    assert await world.error_of(job.media_ids[0]) is Gone
    assert [(entry["event"], entry["keys"]) for entry in logs] == [("objects_left_behind", list(job.keys))]


async def test_fetching_and_deleting_are_one_statement_each(world: World) -> None:
    job = await make_completed_job(world.database, world.storage)

    with sent_statements() as sent:
        await world.media.content_url(LOCAL_OWNER, job.media_ids[0])
        await world.media.delete(LOCAL_OWNER, job.media_ids[0])

    assert len(sent) == 2


async def test_one_result_and_a_page_of_them_are_read_from_indexes(world: World) -> None:
    jobs = await make_jobs(world.database, 2000, status=Status.COMPLETED)
    await world.database.fetch_rowcount(text("ANALYZE jobs, media"))

    with sent_statements() as sent:
        await world.media.content_url(LOCAL_OWNER, jobs[0].media_ids[0])
        await world.page(limit=100)
    one, page = [await explain(world.database, each) for each in sent]

    assert "using pk_media on media" in one
    assert "using pk_jobs on jobs" in one
    assert "Index Scan Backward using ix_media_owner_id_created_at_id on media" in page
