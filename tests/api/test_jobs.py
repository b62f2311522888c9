"""Looking at jobs, and changing them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api.serving import Api, problem, running_api
from tests.factories import make_completed_job, make_job, make_jobs, make_submission

from fleek.core.ids import new_id
from fleek.core.job import Status
from fleek.db.session import Database
from fleek.settings import ModelSettings
from fleek.storage.base import ObjectNotFoundError, ObjectStorage

JOBS = "/v1/media/jobs"
JSON = {"Content-Type": "application/json"}


async def list_ids(client: httpx2.AsyncClient, **query: Any) -> list[str]:
    answer = await client.get(JOBS, params=query)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


async def test_a_completed_job_is_answered_whole(
    client: httpx2.AsyncClient, database: Database, api: Api
) -> None:
    job = await make_completed_job(database, n=2, metadata={"order": "1"})
    await make_submission(database, job, handle_id=str(job.id), resolution="result", cost="0.003")
    found = (await client.get(f"{JOBS}/{job.id}")).json()

    assert (found["status"], found["progress"], found["error"]) == ("completed", 1.0, None)
    assert [media["id"] for media in found["media"]] == found["media_ids"]
    assert found["media"][0]["content_url"] == f"{api.url}/v1/media/content/{found['media_ids'][0]}"
    assert (found["attempts"][0]["number"], found["attempts"][0]["outcome"]) == (1, "completed")
    assert (found["paid_submissions"], found["cost"]) == (1, {"amount": "0.003", "currency": "USD"})
    assert found["links"]["self"] == f"{api.url}{JOBS}/{job.id}"


async def test_links_follow_the_host_that_was_asked(client: httpx2.AsyncClient, database: Database) -> None:
    job = await make_job(database)
    answer = await client.get(f"{JOBS}/{job.id}", headers={"Host": "localhost:1234"})

    assert answer.json()["links"]["self"] == f"http://localhost:1234{JOBS}/{job.id}"


def test_links_begin_as_configured(
    unused_path: Callable[[], Path], database_url: str, redis_url: str
) -> None:
    public = "https://media.example.com/base/"
    with running_api(unused_path(), database_url=database_url, redis_url=redis_url, public_url=public) as api:
        content = [("Content-Type", "application/json"), ("Host", "media.example.com")]
        answer = api.ask("POST", "/media/generate", content, b'{"prompt": "a lighthouse"}')

    assert answer.headers["location"] == f"https://media.example.com/base{JOBS}/{answer.json()['id']}"
    assert answer.json()["links"]["self"] == answer.headers["location"]


async def test_a_list_is_read_page_by_page_without_gap_or_repetition(
    client: httpx2.AsyncClient, database: Database, tag: str
) -> None:
    made = await make_jobs(database, 25, model=tag)
    pages, query = [], {"model": tag, "limit": 10}
    while True:
        page = (await client.get(JOBS, params=query)).json()
        pages.append([item["id"] for item in page["items"]])
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]

    assert [len(page) for page in pages] == [10, 10, 5]
    assert [job_id for page in pages for job_id in page] == [str(job.id) for job in reversed(made)]


async def test_the_link_header_leads_through_the_same_pages(
    client: httpx2.AsyncClient, database: Database, tag: str
) -> None:
    await make_jobs(database, 5, model=tag, metadata={"a b": "c&d"})
    first = await client.get(JOBS, params={"limit": 3, "metadata.a b": "c&d", "model": tag})
    link = re.fullmatch(r'<([^>]+)>; rel="next"', first.headers["link"])
    assert link is not None
    second = await client.get(link[1])

    assert len(first.json()["items"]) == 3
    assert len(second.json()["items"]) == 2
    assert "link" not in second.headers


async def test_a_cursor_of_another_filter_is_refused(
    client: httpx2.AsyncClient, database: Database, tag: str
) -> None:
    await make_jobs(database, 2, model=tag)
    cursor = (await client.get(JOBS, params={"model": tag, "limit": 1})).json()["next_cursor"]
    foreign = [
        await client.get(JOBS, params={"cursor": cursor, "limit": 1}),
        await client.get(JOBS, params={"cursor": cursor, "model": tag, "status": "completed"}),
        await client.get("/v1/media", params={"cursor": cursor, "model": tag}),
        await client.get(
            JOBS, params={"cursor": cursor[:-1] + ("A" if cursor[-1] != "A" else "B"), "model": tag}
        ),
    ]

    assert {problem(answer.json()) for answer in foreign} == {(400, "invalid_cursor")}


async def test_filters_narrow_the_list_down(client: httpx2.AsyncClient, database: Database, tag: str) -> None:
    waiting = await make_job(database, model=tag, prompt="a red boat", metadata={"order": "1"})
    failed = await make_job(
        database, model=tag, status=Status.ERROR, prompt="a blue boat", metadata={"order": "2"}
    )
    middle = failed.created_at.isoformat()

    assert await list_ids(client, model=tag) == [str(failed.id), str(waiting.id)]
    assert await list_ids(client, model=tag, status="error") == [str(failed.id)]
    assert await list_ids(client, model=tag, q="red boat") == [str(waiting.id)]
    assert await list_ids(client, model=tag, q="boat -red") == [str(failed.id)]
    assert await list_ids(client, model=tag, created_before=middle) == [str(waiting.id)]
    assert await list_ids(client, model=tag, created_after=middle) == []
    assert await list_ids(client, **{"metadata.order": "1", "model": tag}) == [str(waiting.id)]
    assert await list_ids(client, **{"metadata.order": "1", "status": "error", "model": tag}) == []


async def test_jobs_and_their_results_are_found_by_the_error(
    client: httpx2.AsyncClient, database: Database, tag: str
) -> None:
    lost = await make_job(database, model=tag, status=Status.ERROR, error_code="ambiguous_submission")
    await make_job(database, model=tag, status=Status.ERROR, error_code="timeout")
    waiting = await make_job(database, model=tag, error_code="ambiguous_submission")
    await make_job(database, model=tag)
    query = {"model": tag, "code": "ambiguous_submission"}
    media = (await client.get("/v1/media", params=query)).json()["items"]

    assert await list_ids(client, **query) == [str(lost.id)]
    assert await list_ids(client, **query, status="error") == [str(lost.id)]
    assert await list_ids(client, **query, status="in_queue") == [str(waiting.id)]
    assert await list_ids(client, **query, status="completed") == []
    assert {item["job_id"] for item in media} == {str(lost.id)}


async def test_a_list_shows_nobody_elses_jobs(
    client: httpx2.AsyncClient, database: Database, tag: str
) -> None:
    await make_job(database, model=tag, owner_id="somebody else")

    assert await list_ids(client, model=tag) == []


async def test_a_waiting_job_is_canceled_at_once_and_again_without_harm(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)
    first = await client.post(f"{JOBS}/{job.id}/cancel")
    second = await client.post(f"{JOBS}/{job.id}/cancel")

    assert (first.status_code, first.json()["status"]) == (202, "canceled")
    assert (second.status_code, second.json()) == (200, first.json())


async def test_a_running_job_is_asked_to_stop(client: httpx2.AsyncClient, database: Database) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    answer = await client.post(f"{JOBS}/{job.id}/cancel")

    assert (answer.status_code, answer.json()["status"]) == (202, "processing")


async def test_a_completed_job_is_answered_unchanged_to_a_cancel(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_completed_job(database)
    answer = await client.post(f"{JOBS}/{job.id}/cancel")

    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


@pytest.mark.parametrize("status", [Status.ERROR, Status.CANCELED])
@pytest.mark.parametrize(("content", "headers"), [(b"", {}), (b"{}", JSON), (b"null", JSON), (b"", JSON)])
async def test_a_job_that_ended_badly_is_retried_with_or_without_a_body(
    client: httpx2.AsyncClient, database: Database, status: Status, content: bytes, headers: dict[str, str]
) -> None:
    job = await make_job(database, status=status)
    answer = await client.post(f"{JOBS}/{job.id}/retry", content=content, headers=headers)

    assert (answer.status_code, answer.json()["status"]) == (202, "in_queue")
    assert answer.json()["reason"] == "retried_by_client"
    assert answer.headers["location"].endswith(f"{JOBS}/{job.id}")


@pytest.mark.parametrize("status", [Status.IN_QUEUE, Status.PROCESSING, Status.COMPLETED])
async def test_any_other_job_cannot_be_retried(
    client: httpx2.AsyncClient, database: Database, status: Status
) -> None:
    job = await make_job(database, status=status)

    assert problem((await client.post(f"{JOBS}/{job.id}/retry")).json()) == (409, "job_not_retryable")


async def test_a_retry_that_could_pay_twice_needs_leave(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.ERROR)
    await make_submission(database, job, resolution="ambiguous")
    refused = await client.post(f"{JOBS}/{job.id}/retry", json={})
    allowed = await client.post(f"{JOBS}/{job.id}/retry", json={"max_paid_submissions": 2})

    assert problem(refused.json()) == (409, "would_pay_again")
    assert allowed.status_code == 202


async def test_a_model_may_be_configured_to_be_paid_for_again(
    unused_path: Callable[[], Path], database_url: str, redis_url: str
) -> None:
    models = {"posters": ModelSettings(provider="demo", max_paid_submissions=2)}
    with running_api(unused_path(), database_url=database_url, redis_url=redis_url, models=models) as api:
        database = Database(database_url)
        job = await make_job(database, status=Status.ERROR, model="posters")
        await make_submission(database, job, resolution="ambiguous")
        await database.aclose()
        answered = api.ask("POST", f"{JOBS}/{job.id}/retry")

    assert answered.status == 202


async def test_a_retry_with_a_key_happens_once(
    client: httpx2.AsyncClient, database: Database, tag: str
) -> None:
    job = await make_job(database, status=Status.ERROR)
    headers = {"Idempotency-Key": tag}
    first = await client.post(f"{JOBS}/{job.id}/retry", headers=headers)
    second = await client.post(f"/media/jobs/{job.id}/retry", headers=headers)
    other = await client.post(f"{JOBS}/{job.id}/retry", headers=headers, json={"max_paid_submissions": 3})

    assert (first.status_code, second.status_code) == (202, 202)
    assert second.headers["idempotency-replayed"] == "true"
    assert problem(other.json()) == (422, "idempotency_mismatch")


async def test_a_finished_job_is_deleted_with_its_results_and_their_bytes(
    client: httpx2.AsyncClient, database: Database, storage: ObjectStorage
) -> None:
    job = await make_completed_job(database, storage)
    answer = await client.delete(f"{JOBS}/{job.id}")
    again = await client.delete(f"{JOBS}/{job.id}")

    assert (answer.status_code, answer.content) == (204, b"")
    assert problem(again.json()) == (404, "not_found")
    assert (await client.get(f"/v1/media/{job.media_ids[0]}")).status_code == 404
    with pytest.raises(ObjectNotFoundError):
        await storage.head(job.keys[0])


@pytest.mark.parametrize("status", [Status.IN_QUEUE, Status.PROCESSING])
async def test_a_job_that_has_not_ended_cannot_be_deleted(
    client: httpx2.AsyncClient, database: Database, status: Status
) -> None:
    job = await make_job(database, status=status)

    assert problem((await client.delete(f"{JOBS}/{job.id}")).json()) == (409, "job_not_finished")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events")],
)
async def test_somebody_elses_job_looks_like_none_to_every_route(
    client: httpx2.AsyncClient, database: Database, method: str, path: str
) -> None:
    theirs = await make_job(database, status=Status.ERROR, owner_id="somebody else")
    found = await client.request(method, f"{JOBS}/{theirs.id}{path}")
    missing = await client.request(method, f"{JOBS}/{new_id()}{path}")

    assert problem(found.json()) == (404, "not_found")
    assert found.json() | {"request_id": ""} == missing.json() | {"request_id": ""}
