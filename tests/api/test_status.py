"""Asking how a job is, and waiting for it."""

from __future__ import annotations

import asyncio
import time

import httpx2
import pytest
from tests.api.serving import Api, problem
from tests.api.states import complete, give_back
from tests.factories import make_completed_job, make_job

from fleek.core.ids import new_id
from fleek.core.job import ErrorCode, Status
from fleek.db.session import Database
from fleek.queue.base import Announcement
from fleek.queue.pubsub import RedisPubSub

STATUS = "/v1/media/status"


async def test_the_status_is_a_light_answer_with_a_tag(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.PROCESSING, progress=0.4)
    answer = await client.get(f"{STATUS}/{job.id}")

    assert answer.json()["status"] == "processing"
    assert answer.json()["progress"] == 0.4
    assert "prompt" not in answer.json()
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["etag"].startswith('"')


async def test_the_tag_changes_with_the_job_and_only_then(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    tags = [(await client.get(f"{STATUS}/{job.id}")).headers["etag"] for _ in range(2)]
    await give_back(database, job)
    changed = (await client.get(f"{STATUS}/{job.id}")).headers["etag"]

    assert tags[0] == tags[1] != changed


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*", '"a" ,W/{},"b"'])
async def test_a_client_that_has_the_answer_gets_a_304_without_a_body(
    client: httpx2.AsyncClient, database: Database, form: str
) -> None:
    job = await make_job(database)
    tag = (await client.get(f"{STATUS}/{job.id}")).headers["etag"]
    again = await client.get(f"{STATUS}/{job.id}", headers={"If-None-Match": form.format(tag)})

    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag


@pytest.mark.parametrize("tag", ['"other"', "garbage", "", '"', "W/", '""'])
def test_any_other_tag_gets_the_whole_answer(api: Api, tag: str) -> None:
    job = api.ask(
        "POST", "/media/generate", [("Content-Type", "application/json")], b'{"prompt": "x"}'
    ).json()

    assert api.ask("GET", f"{STATUS}/{job['id']}", [("If-None-Match", tag)]).status == 200


async def test_the_whole_job_is_included_when_it_is_asked_for(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_completed_job(database, n=2)
    included = await client.get(f"{STATUS}/{job.id}?include=media")
    whole = await client.get(f"/v1/media/jobs/{job.id}")

    assert included.json() == whole.json()
    assert len(included.json()["media"]) == 2
    assert included.headers["etag"]


async def test_a_wait_ends_with_the_job_when_that_was_announced(
    client: httpx2.AsyncClient, database: Database, api: Api
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    pubsub = RedisPubSub(api.settings.resolved_redis_url)
    waiting = asyncio.create_task(client.get(f"{STATUS}/{job.id}?wait=50"))
    await asyncio.sleep(0.5)
    await complete(database, job)
    await pubsub.start()
    pubsub.announce(Announcement(job.id))
    answer = await asyncio.wait_for(waiting, 20)
    await pubsub.aclose()

    assert answer.json()["status"] == "completed"


async def test_a_wait_ends_with_the_job_when_nobody_told(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    waiting = asyncio.create_task(client.get(f"{STATUS}/{job.id}?wait=50"))
    await asyncio.sleep(0.5)
    await complete(database, job)
    answer = await asyncio.wait_for(waiting, 20)

    assert answer.json()["status"] == "completed"


async def test_a_wait_without_a_tag_outlasts_changes_that_are_not_the_end(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    waiting = asyncio.create_task(client.get(f"{STATUS}/{job.id}?wait=4"))
    await asyncio.sleep(0.5)
    await give_back(database, job)
    answer = await waiting

    assert answer.json()["status"] == "in_queue"
    assert answer.elapsed.total_seconds() >= 4


async def test_a_wait_with_a_tag_ends_with_the_first_change(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    tag = (await client.get(f"{STATUS}/{job.id}")).headers["etag"]
    waiting = asyncio.create_task(client.get(f"{STATUS}/{job.id}?wait=50", headers={"If-None-Match": tag}))
    await asyncio.sleep(0.5)
    await give_back(database, job)
    answer = await asyncio.wait_for(waiting, 20)

    assert (answer.status_code, answer.json()["reason"]) == (200, "interrupted")


async def test_a_wait_with_a_tag_in_which_nothing_happens_ends_as_304(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)
    tag = (await client.get(f"{STATUS}/{job.id}")).headers["etag"]
    began = time.monotonic()
    answer = await client.get(f"{STATUS}/{job.id}?wait=1", headers={"If-None-Match": tag})

    assert answer.status_code == 304
    assert time.monotonic() - began >= 1


async def test_nobody_waits_for_a_job_that_has_ended(client: httpx2.AsyncClient, database: Database) -> None:
    job = await make_job(database, status=Status.ERROR, error_code=ErrorCode.CONTENT_REFUSED)
    plain = await asyncio.wait_for(client.get(f"{STATUS}/{job.id}?wait=50"), 20)
    headers = {"If-None-Match": plain.headers["etag"]}
    tagged = await asyncio.wait_for(client.get(f"{STATUS}/{job.id}?wait=50", headers=headers), 20)

    assert plain.json()["error"]["code"] == "content_refused"
    assert tagged.status_code == 304


async def test_a_job_that_is_deleted_while_it_is_waited_for_is_not_found(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)
    waiting = asyncio.create_task(client.get(f"{STATUS}/{job.id}?wait=50"))
    await asyncio.sleep(0.5)
    await client.post(f"/v1/media/jobs/{job.id}/cancel")
    await client.delete(f"/v1/media/jobs/{job.id}")
    answer = await asyncio.wait_for(waiting, 20)

    # It may have seen the cancel before the deletion.
    assert answer.status_code == 404 or answer.json()["status"] == "canceled"


async def test_somebody_elses_job_looks_like_none(client: httpx2.AsyncClient, database: Database) -> None:
    theirs = await make_job(database, owner_id="somebody else")
    missing = await client.get(f"{STATUS}/{new_id()}")
    found = await client.get(f"{STATUS}/{theirs.id}")

    assert problem(found.json()) == (404, "not_found")
    assert found.json() | {"request_id": ""} == missing.json() | {"request_id": ""}


async def test_many_waits_hold_no_database_connection(client: httpx2.AsyncClient, database: Database) -> None:
    # The pool has 30 connections at most, and gives up after two seconds.
    job = await make_job(database)
    limits = httpx2.Limits(max_connections=120)
    async with httpx2.AsyncClient(base_url=client.base_url, timeout=30, limits=limits) as many:
        waits = [asyncio.create_task(many.get(f"{STATUS}/{job.id}?wait=5")) for _ in range(100)]
        await asyncio.sleep(2)
        during = await client.get(f"{STATUS}/{job.id}")
        answers = await asyncio.gather(*waits)

    assert during.status_code == 200
    assert {answer.status_code for answer in answers} == {200}
