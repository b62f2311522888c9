"""Results, and the ways to their bytes."""

from __future__ import annotations

import hashlib
import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from PIL import Image
from tests.api.serving import Api, problem
from tests.factories import MadeJob, make_completed_job, make_job, make_jobs, picture

from fleek.api.objects import open_object
from fleek.core.errors import StorageUnavailable
from fleek.core.ids import new_id
from fleek.core.job import Status
from fleek.db.session import Database
from fleek.storage.base import ObjectStorage, StorageError
from fleek.storage.signed_urls import UrlSigner

MEDIA = "/v1/media"
CONTENT = "/v1/media/content"


@pytest.fixture
async def job(database: Database, storage: ObjectStorage) -> MadeJob:
    return await make_completed_job(database, storage)


async def signed_url(client: httpx2.AsyncClient, job: MadeJob, **query: str) -> str:
    answer = await client.get(f"{CONTENT}/{job.media_ids[0]}", params={"redirect": "false", **query})
    return str(answer.json()["url"])


async def test_a_stored_result_is_answered_with_what_is_known_of_its_bytes(
    client: httpx2.AsyncClient, job: MadeJob, api: Api
) -> None:
    media = (await client.get(f"{MEDIA}/{job.media_ids[0]}")).json()

    assert media["sha256"] == hashlib.sha256(picture(7)).hexdigest()
    assert (media["width"], media["height"], media["content_type"]) == (64, 64, "image/png")
    assert media["content_url"] == f"{api.url}{CONTENT}/{media['id']}"
    assert media["signed_url"] is None


async def test_a_result_that_is_still_to_come_is_answered_without_them(
    client: httpx2.AsyncClient, database: Database
) -> None:
    waiting = await make_job(database)
    media = (await client.get(f"{MEDIA}/{waiting.media_ids[0]}")).json()

    assert (media["stored_at"], media["sha256"], media["seed"]) == (None, None, 7)


async def test_a_page_of_results_can_carry_signed_urls_that_work(
    client: httpx2.AsyncClient, database: Database, storage: ObjectStorage, tag: str
) -> None:
    made = await make_completed_job(database, storage, n=3, model=tag)
    plain = (await client.get(MEDIA, params={"model": tag})).json()["items"]
    signed = (await client.get(MEDIA, params={"model": tag, "include": "signed_url"})).json()["items"]

    assert {item["id"] for item in signed} == {str(media_id) for media_id in made.media_ids}
    assert {item["signed_url"] for item in plain} == {None}
    assert {(await client.get(item["signed_url"])).status_code for item in signed} == {200}


async def test_results_are_listed_page_by_page_with_the_filters_of_their_jobs(
    client: httpx2.AsyncClient, database: Database, tag: str
) -> None:
    await make_jobs(database, 3, model=tag, status=Status.COMPLETED, prompt="a red boat")
    await make_jobs(database, 2, model=tag)
    first = await client.get(MEDIA, params={"model": tag, "status": "completed", "limit": 2})
    link = re.fullmatch(r'<([^>]+)>; rel="next"', first.headers["link"])
    assert link is not None
    second = await client.get(link[1])

    assert len(first.json()["items"]) == 2
    assert len(second.json()["items"]) == 1
    assert second.json()["next_cursor"] is None


async def test_the_content_is_a_redirect_that_caches_may_keep_for_less_than_the_signature_lives(
    client: httpx2.AsyncClient, job: MadeJob
) -> None:
    redirect = await client.get(f"/media/content/{job.media_ids[0]}")
    max_age = re.fullmatch(r"private, max-age=([0-9]+)", redirect.headers["cache-control"])
    found = await client.get(redirect.headers["location"])

    assert redirect.status_code == 307
    assert max_age is not None
    assert 500 < int(max_age[1]) < 600
    assert (found.status_code, found.content) == (200, picture(7))


async def test_the_url_is_answered_as_json_when_no_redirect_is_wanted(
    client: httpx2.AsyncClient, job: MadeJob
) -> None:
    answer = (await client.get(f"{CONTENT}/{job.media_ids[0]}?redirect=false")).json()

    assert answer.keys() == {"url", "expires_at"}
    assert (
        datetime.now(UTC)
        < datetime.fromisoformat(answer["expires_at"])
        < datetime.now(UTC) + timedelta(hours=1)
    )
    assert (await client.get(answer["url"])).content == picture(7)


async def test_the_bytes_come_through_the_api_when_that_is_wanted(
    client: httpx2.AsyncClient, job: MadeJob
) -> None:
    answer = await client.get(f"{CONTENT}/{job.media_ids[0]}?proxy=true")

    assert (answer.status_code, answer.content) == (200, picture(7))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{hashlib.sha256(picture(7)).hexdigest()}"'


@pytest.mark.parametrize("way", [{"proxy": "true"}, {}])
async def test_a_variant_is_a_smaller_picture_in_another_format(
    client: httpx2.AsyncClient, job: MadeJob, way: dict[str, str]
) -> None:
    query = {"variant": "w256.jpeg", **way}
    answer = await client.get(f"{CONTENT}/{job.media_ids[0]}", params=query, follow_redirects=True)

    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).format == "JPEG"


@pytest.mark.parametrize("status", [Status.IN_QUEUE, Status.PROCESSING])
@pytest.mark.parametrize("query", ["", "?proxy=true", "?redirect=false", "?variant=w256.webp"])
async def test_content_that_is_not_stored_yet_is_a_409_that_says_when_to_come_back(
    client: httpx2.AsyncClient, database: Database, status: Status, query: str
) -> None:
    waiting = await make_job(database, status=status)
    answer = await client.get(f"{CONTENT}/{waiting.media_ids[0]}{query}")

    assert problem(answer.json()) == (409, "not_ready")
    assert int(answer.headers["retry-after"]) >= 1


async def test_expired_content_is_gone(client: httpx2.AsyncClient, database: Database) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = await make_completed_job(database, media={"expires_at": past})
    answers = [await client.get(f"{path}/{expired.media_ids[0]}") for path in (CONTENT, MEDIA)]

    assert [problem(answer.json()) for answer in answers] == [(410, "gone"), (410, "gone")]


async def test_a_deleted_result_and_its_bytes_are_gone(client: httpx2.AsyncClient, job: MadeJob) -> None:
    url = await signed_url(client, job)
    deleted = await client.delete(f"{MEDIA}/{job.media_ids[0]}")
    after = [
        await client.get(f"{CONTENT}/{job.media_ids[0]}"),
        await client.delete(f"{MEDIA}/{job.media_ids[0]}"),
        await client.get(url),
    ]

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert [problem(answer.json()) for answer in after] == [(410, "gone")] * 3


async def test_a_result_that_is_still_to_come_cannot_be_deleted(
    client: httpx2.AsyncClient, database: Database
) -> None:
    waiting = await make_job(database)

    assert problem((await client.delete(f"{MEDIA}/{waiting.media_ids[0]}")).json()) == (
        409,
        "job_not_finished",
    )


@pytest.mark.parametrize(("method", "path"), [("GET", MEDIA), ("DELETE", MEDIA), ("GET", CONTENT)])
async def test_somebody_elses_result_looks_like_none(
    client: httpx2.AsyncClient, database: Database, method: str, path: str
) -> None:
    theirs = await make_completed_job(database, owner_id="somebody else")
    found = await client.request(method, f"{path}/{theirs.media_ids[0]}")
    missing = await client.request(method, f"{path}/{new_id()}")

    assert problem(found.json()) == (404, "not_found")
    assert found.json() | {"request_id": ""} == missing.json() | {"request_id": ""}


async def test_media_is_served_so_that_browsers_keep_it_and_run_nothing_in_it(
    client: httpx2.AsyncClient, job: MadeJob
) -> None:
    answer = await client.get(await signed_url(client, job))

    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["content-disposition"] == f'inline; filename="{job.media_ids[0]}.png"'


async def test_a_head_request_says_what_a_get_would(client: httpx2.AsyncClient, job: MadeJob) -> None:
    url = await signed_url(client, job)
    got, head = await client.get(url), await client.head(url)

    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "accept-ranges"):
        assert head.headers[name] == got.headers[name]


RANGES: dict[str, tuple[str, int, Any]] = {
    "the beginning": ("bytes=0-9", 206, (0, 10)),
    "one byte": ("bytes=5-5", 206, (5, 6)),
    "the rest": ("bytes=10-", 206, (10, None)),
    "the end": ("bytes=-7", 206, (-7, None)),
    "more than there is": ("bytes=10-99999999", 206, (10, None)),
    "a longer end than there is": ("bytes=-99999999", 206, (0, None)),
    "another spelling": ("Bytes=0-9", 206, (0, 10)),
    "behind the end": ("bytes=99999999-", 416, None),
    "an empty end": ("bytes=-0", 416, None),
    "several": ("bytes=0-1,4-5", 200, (0, None)),
    "backwards": ("bytes=9-5", 200, (0, None)),
    "another unit": ("lines=0-9", 200, (0, None)),
    "garbage": ("bytes=a-b", 200, (0, None)),
    "nothing": ("bytes=-", 200, (0, None)),
    "a huge number": ("bytes=" + "9" * 400 + "-", 200, (0, None)),
}


@pytest.mark.parametrize(("given", "status", "span"), RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("way", ["signed", "proxy"])
async def test_a_range_is_answered_as_rfc_9110_says(
    client: httpx2.AsyncClient, job: MadeJob, way: str, given: str, status: int, span: Any
) -> None:
    url = await signed_url(client, job) if way == "signed" else f"{CONTENT}/{job.media_ids[0]}?proxy=true"
    answer = await client.get(url, headers={"Range": given})

    size = len(picture(7))
    assert answer.status_code == status
    if span is None:
        assert problem(answer.json()) == (416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{size}"
        return
    assert answer.content == picture(7)[slice(*span)]
    if status == 206:
        start = span[0] % size if span[0] < 0 else span[0]
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{size}"


async def test_a_range_of_bytes_that_have_changed_is_answered_with_the_whole(
    client: httpx2.AsyncClient, job: MadeJob
) -> None:
    url = await signed_url(client, job)
    tag = (await client.get(url)).headers["etag"]
    same = await client.get(url, headers={"Range": "bytes=0-9", "If-Range": tag})
    other = await client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    dated = await client.get(url, headers={"Range": "bytes=0-9", "If-Range": "Wed, 21 Oct 2015 07:28:00 GMT"})

    assert [answer.status_code for answer in (same, other, dated)] == [206, 200, 200]


async def test_bytes_that_the_client_has_are_not_sent_again(client: httpx2.AsyncClient, job: MadeJob) -> None:
    url = await signed_url(client, job)
    tag = (await client.get(url)).headers["etag"]
    again = await client.get(url, headers={"If-None-Match": tag, "Range": "bytes=0-9"})

    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)


async def test_a_signed_url_opens_nothing_but_what_it_was_made_for(
    client: httpx2.AsyncClient, job: MadeJob, database: Database, storage: ObjectStorage
) -> None:
    other = await make_completed_job(database, storage, n=2)
    parts = urlsplit(await signed_url(client, job))
    expires, signature = (part.partition("=")[2] for part in parts.query.split("&"))
    forged = [
        f"/v1/objects/{other.keys[0]}?{parts.query}",
        f"{parts.path}?expires={int(expires) + 1}&signature={signature}",
        f"{parts.path}?expires={expires}&signature={'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
        f"{parts.path}?expires={expires}",
        f"{parts.path}?signature={signature}",
        parts.path,
        f"{parts.path}?expires=&signature=",
        f"{parts.path}?expires=%00&signature=%ff",
        "/v1/objects/..%2f..%2fsecret_key?" + parts.query,
        "/v1/objects/?" + parts.query,
    ]
    answers = [await client.get(url) for url in forged]

    assert {answer.status_code for answer in answers} <= {403, 422}
    assert [answer.status_code for answer in answers].count(422) == 1


async def test_a_signed_url_ends_when_it_says(client: httpx2.AsyncClient, job: MadeJob, api: Api) -> None:
    signer: UrlSigner = api.app.state.context.signer
    past = signer.sign(job.keys[0], datetime.now(UTC) - timedelta(seconds=1))
    answer = await client.get(past)

    assert problem(answer.json()) == (403, "forbidden")


async def test_bytes_that_were_taken_away_behind_our_back_are_gone(
    client: httpx2.AsyncClient, job: MadeJob, storage: ObjectStorage
) -> None:
    url = await signed_url(client, job)
    await storage.delete([job.keys[0]])
    answers = [await client.get(url), await client.get(f"{CONTENT}/{job.media_ids[0]}?proxy=true")]

    assert [problem(answer.json()) for answer in answers] == [(410, "gone")] * 2


async def test_a_store_that_is_away_is_a_503_and_not_a_missing_object() -> None:
    with pytest.raises(StorageUnavailable):
        await open_object(_Away(), "media/a/b/1.png")  # type: ignore[arg-type]  all that it uses


class _Away:
    async def head(self, key: str) -> None:
        raise StorageError(key)
