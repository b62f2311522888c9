"""How many statements an answer takes: each is a round trip."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.api.serving import Api
from tests.factories import MadeJob, make_completed_job, make_job, make_jobs
from tests.statements import sent_statements

from fleek.core.job import Status
from fleek.db.session import Database
from fleek.storage.base import ObjectStorage

JSON = [("Content-Type", "application/json")]
ONE = 1


def count(ask: Callable[[], object]) -> int:
    """The statements of an answer, without the sweep for those who wait for other answers."""
    with sent_statements() as sent:
        ask()
    return sum("ANY($1" not in statement.text for statement in sent)


def submit(api: Api, **headers: str) -> object:
    given = [*JSON, *((name.replace("_", "-"), value) for name, value in headers.items())]
    answer = api.ask("POST", "/v1/media/generate", given, b'{"prompt": "a lighthouse", "n": 8}')
    assert answer.status == 202
    return answer


def test_a_job_is_accepted_in_one_statement_with_and_without_a_key(api: Api, tag: str) -> None:
    assert count(lambda: submit(api)) == ONE
    assert count(lambda: submit(api, Idempotency_Key=tag)) == ONE


@pytest.mark.parametrize("path", ["/v1/media/jobs", "/v1/media", "/v1/media?include=signed_url"])
async def test_a_page_of_100_takes_as_many_statements_as_a_page_of_one(
    api: Api, database: Database, tag: str, path: str
) -> None:
    await make_jobs(database, 100, model=tag, status=Status.COMPLETED)
    join = "&" if "?" in path else "?"

    def page(limit: int) -> int:
        def ask() -> None:
            answer = api.ask("GET", f"{path}{join}model={tag}&limit={limit}")
            assert len(answer.json()["items"]) == limit

        return count(ask)

    assert page(1) == page(100) == ONE


ROUTES = {
    "status": ("GET", "/v1/media/status/{job}", 200, 1),
    "status with media": ("GET", "/v1/media/status/{job}?include=media", 200, 1),
    "job": ("GET", "/v1/media/jobs/{job}", 200, 1),
    "media": ("GET", "/v1/media/{media}", 200, 1),
    "content": ("GET", "/v1/media/content/{media}", 307, 1),
    "content through the api": ("GET", "/v1/media/content/{media}?proxy=true", 200, 1),
    "events": ("GET", "/v1/media/jobs/{job}/events", 200, 2),
    "log": ("GET", "/v1/media/jobs/{job}/logs", 200, 1),
    "a cancel": ("POST", "/v1/media/jobs/{job}/cancel", 200, 3),
    "deleting media": ("DELETE", "/v1/media/{media}", 204, 1),
    "deleting": ("DELETE", "/v1/media/jobs/{job}", 204, 1),
    "models": ("GET", "/v1/models", 200, 1),
    "an impossible id": ("GET", "/v1/media/jobs/nonsense", 404, 0),
}


@pytest.mark.parametrize(("method", "path", "status", "statements"), ROUTES.values(), ids=ROUTES)
async def test_a_route_takes_a_fixed_number_of_statements(
    api: Api, database: Database, storage: ObjectStorage, method: str, path: str, status: int, statements: int
) -> None:
    job: MadeJob = await make_completed_job(database, storage, n=3)
    url = path.format(job=job.id, media=job.media_ids[0])
    found = []

    assert count(lambda: found.append(api.ask(method, url).status)) == statements
    assert found == [status]


async def test_a_retry_takes_a_fixed_number_of_statements(api: Api, database: Database) -> None:
    job = await make_job(database, status=Status.ERROR)

    assert count(lambda: api.ask("POST", f"/v1/media/jobs/{job.id}/retry")) <= 3
