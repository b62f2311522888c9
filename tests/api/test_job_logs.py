"""The log of a job by HTTP, and what the api itself records of requests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from tests.api.conftest import SECRET
from tests.api.serving import Api, problem, running_api
from tests.factories import make_completed_job, make_job
from tests.logged import logging_configured
from tests.statements import explain, sent_statements

from fleek.db.session import Database
from fleek.logs import repository
from fleek.observability.records import Record

PROCESS = "test-worker-1"
AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
JSON = [("Content-Type", "application/json")]


async def add(database: Database, job_id: UUID, *events: str, **overrides: Any) -> None:
    fields = {
        "at": AT,
        "level": "info",
        "attempt": 1,
        "request_id": None,
        "data": {"seconds": 1.5},
    } | overrides
    records = [Record(event=event, job_id=job_id, **fields) for event in events]
    await repository.add_entries(database, PROCESS, records)


async def ask(client: httpx2.AsyncClient, job_id: UUID, **query: Any) -> Any:
    answer = await client.get(f"/v1/media/jobs/{job_id}/logs", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_log_of_a_job_is_its_entries_oldest_first(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job, other = await make_job(database), await make_job(database)
    await add(database, job.id, "attempt_started")
    await add(database, other.id, "attempt_started")
    await add(database, job.id, "attempt_finished", level="warning", request_id="r-1")

    page = await ask(client, job.id)
    first, second = page["items"]
    assert page["next_after"] is None
    assert first == {
        "id": first["id"],
        "at": "2026-11-20T12:00:00Z",
        "level": "info",
        "event": "attempt_started",
        "attempt": 1,
        "process": PROCESS,
        "request_id": None,
        "data": {"seconds": 1.5},
    }
    assert (second["event"], second["level"], second["request_id"]) == ("attempt_finished", "warning", "r-1")
    assert second["id"] > first["id"]


async def test_the_route_answers_without_its_version_too(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)

    answer = await client.get(f"/media/jobs/{job.id}/logs")
    assert (answer.status_code, answer.json()) == (200, {"items": [], "next_after": None})


async def test_pages_follow_each_other_by_the_last_id_and_by_the_link(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)
    await add(database, job.id, *(f"event_{letter}" for letter in "abcde"))
    seen, url = [], f"/v1/media/jobs/{job.id}/logs?limit=2&level=info"
    while url:
        answer = await client.get(url)
        seen += [item["event"][-1] for item in answer.json()["items"]]
        url = answer.links.get("next", {}).get("url", "")

    assert seen == list("abcde")


async def test_whoever_follows_gets_only_what_is_new(client: httpx2.AsyncClient, database: Database) -> None:
    job = await make_job(database)
    await add(database, job.id, "attempt_started")
    [first] = (await ask(client, job.id))["items"]
    await add(database, job.id, "attempt_finished")

    assert [item["event"] for item in (await ask(client, job.id, after=first["id"]))["items"]] == [
        "attempt_finished"
    ]


async def test_entries_are_filtered_by_level_and_attempt(
    client: httpx2.AsyncClient, database: Database
) -> None:
    job = await make_job(database)
    for attempt, level in enumerate(("debug", "info", "warning", "error", "critical"), start=1):
        await add(database, job.id, "something_done", level=level, attempt=attempt)

    worse = await ask(client, job.id, level="warning")
    assert [item["level"] for item in worse["items"]] == ["warning", "error", "critical"]
    assert [item["attempt"] for item in (await ask(client, job.id, attempt=2))["items"]] == [2]
    assert (await ask(client, job.id, attempt=2, level="error"))["items"] == []


async def test_a_traceback_is_not_shown(client: httpx2.AsyncClient, database: Database) -> None:
    job = await make_job(database)
    await add(database, job.id, "attempt_crashed", data={"exception": "Traceback", "error_type": "KeyError"})

    [item] = (await ask(client, job.id))["items"]
    assert item["data"] == {"error_type": "KeyError"}


async def test_the_log_of_somebody_elses_job_is_not_there(api: Api, database: Database) -> None:
    theirs = await make_job(database, owner_id="somebody else")
    await add(database, theirs.id, "attempt_started")
    answers = [
        api.ask("GET", f"/v1/media/jobs/{name}/logs").json() for name in (theirs.id, uuid4(), "nonsense")
    ]

    assert [problem(answer) for answer in answers] == [(404, "not_found")] * 3
    assert len({answer["detail"] for answer in answers}) == 1


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=1e2", "limit"),
        ("after=-1", "after"),
        ("after=x", "after"),
        ("after=99999999999999999999", "after"),
        ("level=loud", "level"),
        ("attempt=0", "attempt"),
        ("attempt=2147483648", "attempt"),
        ("since=1", "since"),
    ],
)
async def test_a_query_that_is_wrong_is_refused_by_name(
    api: Api, database: Database, query: str, pointer: str
) -> None:
    job = await make_job(database)
    answer = api.ask("GET", f"/v1/media/jobs/{job.id}/logs?{query}")

    assert answer.status == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_a_deleted_job_leaves_no_log(client: httpx2.AsyncClient, database: Database) -> None:
    job = await make_completed_job(database)
    await add(database, job.id, "attempt_started")

    assert (await client.delete(f"/v1/media/jobs/{job.id}")).status_code == 204
    assert (await client.get(f"/v1/media/jobs/{job.id}/logs")).status_code == 404
    with sent_statements() as sent:
        await repository.list_entries(database, "local", job.id, repository.EntryFilter(), 1)
    assert "ix_log_entries_job_id_id" in await explain(database, sent[0])


class TestRequests:
    """What the api records of requests."""

    @pytest.fixture
    def home(self, unused_path: Callable[[], Path]) -> Path:
        return unused_path()

    def events(self, api: Api, home: Path, level: str, **flags: Any) -> list[dict[str, Any]]:
        """What a change, a read, and a request for nothing lead to."""
        given = {
            "database_url": api.settings.resolved_database_url,
            "redis_url": api.settings.resolved_redis_url,
            "secret_key": SECRET,
        }
        with logging_configured(level) as written, running_api(home, **given, **flags) as own:
            own.ask("POST", "/media/generate", [*JSON, ("X-Request-ID", "r-1")], b'{"prompt": "x"}')
            own.ask("GET", "/v1/models/demo?signature=abcdefgh")
            own.ask("GET", "/nothing/secret")
        return [event for event in written.events() if event["event"] == "request_finished"]

    def test_changes_are_recorded_with_all_that_is_known_of_them(self, api: Api, home: Path) -> None:
        [event] = self.events(api, home, "info", log_requests=True)

        assert event["request_id"] == "r-1"
        assert event["owner"] == "local"
        assert UUID(event["job_id"])
        assert (event["method"], event["route"], event["status"]) == ("POST", "/v1/media/generate", 202)
        assert event["milliseconds"] > 0

    def test_reads_are_recorded_at_debug_by_their_route_and_never_by_their_query(
        self, api: Api, home: Path
    ) -> None:
        found = self.events(api, home, "debug", log_requests=True)

        assert [(event["route"], event["status"]) for event in found] == [
            ("/v1/media/generate", 202),
            ("/v1/models/{name}", 422),
            ("unmatched", 404),
        ]
        assert "abcdefgh" not in str(found)

    def test_nothing_is_recorded_of_requests_unless_it_is_asked_for(self, api: Api, home: Path) -> None:
        assert self.events(api, home, "debug") == []
