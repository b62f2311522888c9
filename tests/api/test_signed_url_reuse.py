"""Two api processes that hand out the same signed URLs, and what a deletion makes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.api.conftest import SECRET
from tests.api.serving import Api, running_api
from tests.factories import MadeJob, make_completed_job

from fleek.db.session import Database
from fleek.storage.base import ObjectStorage

CONTENT = "/v1/media/content"
VARIANT = "?variant=w256.webp"


@pytest.fixture
def other(api: Api, unused_path: Callable[[], Path]) -> Iterator[Api]:
    """A second process on the same database, Redis and store."""
    with running_api(
        unused_path(),
        database_url=api.settings.resolved_database_url,
        redis_url=api.settings.resolved_redis_url,
        storage_url=api.settings.resolved_storage_url,
        secret_key=SECRET,
    ) as other:
        yield other


@pytest.fixture
async def job(database: Database, storage: ObjectStorage) -> MadeJob:
    return await make_completed_job(database, storage, n=2)


def path_of(api: Api, path: str) -> str:
    """Where the redirect leads, without the host that was asked."""
    answer = api.ask("GET", path)
    assert answer.status == 307
    return answer.headers["location"].removeprefix(api.url)


@pytest.mark.parametrize("query", ["", VARIANT], ids=["original", "variant"])
async def test_who_asks_again_gets_the_same_url(api: Api, job: MadeJob, query: str) -> None:
    path = f"{CONTENT}/{job.media_ids[0]}{query}"
    first = path_of(api, path)
    await asyncio.sleep(1.1)

    assert path_of(api, path) == first


async def test_a_page_carries_the_same_urls_again(
    api: Api, database: Database, storage: ObjectStorage, tag: str
) -> None:
    await make_completed_job(database, storage, n=3, model=tag)
    page = f"/v1/media?model={tag}&include=signed_url"
    first = api.ask("GET", page).json()["items"]
    await asyncio.sleep(1.1)

    assert api.ask("GET", page).json()["items"] == first


async def test_another_process_hands_out_the_same_url(
    api: Api, other: Api, database: Database, storage: ObjectStorage
) -> None:
    """Tried with several results: a machine that stands still for a moment makes a process sign by itself."""
    job = await make_completed_job(database, storage, n=8)

    async def is_shared(media: object) -> bool:
        signed = path_of(api, f"{CONTENT}/{media}")
        await asyncio.sleep(1.1)
        return path_of(other, f"{CONTENT}/{media}") == signed

    for media in job.media_ids:
        if await is_shared(media):
            break
    else:
        pytest.fail("the other process signs by itself")


@pytest.mark.parametrize("query", ["", VARIANT], ids=["original", "variant"])
async def test_what_one_process_has_deleted_another_one_does_not_know_a_way_to(
    api: Api, other: Api, job: MadeJob, query: str
) -> None:
    """However many remember the URL: the database is asked first."""
    media = job.media_ids[0]
    for process in (api, other, api, other):
        path_of(process, f"{CONTENT}/{media}{query}")
    deleted = api.ask("DELETE", f"/v1/media/{media}")

    assert deleted.status == 204
    assert {one.ask("GET", f"{CONTENT}/{media}{query}").status for one in (api, other)} == {410}


async def test_what_a_deleted_job_had_is_not_found_by_any_process(api: Api, other: Api, job: MadeJob) -> None:
    media = f"{CONTENT}/{job.media_ids[0]}"
    for process in (api, other):
        path_of(process, media)
    deleted = api.ask("DELETE", f"/v1/media/jobs/{job.id}")

    assert deleted.status == 204
    for path in (media, f"/v1/media/status/{job.id}"):
        assert {one.ask("GET", path).status for one in (api, other)} == {404}
