"""Health, with parts that are there and parts that are not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from tests.api.serving import Api, problem, running_api
from tests.statements import sent_statements

from fleek.db.migrate import upgrade
from fleek.local.postgres import PostgresServer
from fleek.local.valkey import ValkeyServer

NOBODY = "postgresql+asyncpg://fleek@127.0.0.1:1/fleek"
NO_BROKER = "redis://127.0.0.1:1"
NOBODY_WORKS = dict.fromkeys(("database", "schema", "broker", "storage"), "ok") | {"celery": "unavailable"}
"""No worker runs beside the api of these tests."""
READ_ONLY = "ALTER DATABASE {} SET default_transaction_read_only = on"


def test_liveness_asks_nobody(api: Api) -> None:
    with sent_statements() as sent:
        answer = api.ask("GET", "/livez")

    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    assert sent == []


@pytest.mark.parametrize("path", ["/readyz", "/health"])
def test_readiness_asks_the_database_alone(api: Api, path: str) -> None:
    with sent_statements() as sent:
        answer = api.ask("GET", path)

    assert (answer.status, answer.json()) == (200, {"status": "ok", "checks": None})
    assert len(sent) == 1


@pytest.mark.parametrize("path", ["/readyz?verbose", "/readyz?verbose=true", "/health?verbose="])
def test_verbose_readiness_names_each_part(api: Api, path: str) -> None:
    answer = api.ask("GET", path)
    checks = answer.json()["checks"]

    assert (answer.status, answer.json()["status"]) == (200, "degraded")
    assert {name: part["status"] for name, part in checks.items()} == NOBODY_WORKS
    assert all(part["latency_ms"] >= 0 for part in checks.values())


@pytest.mark.parametrize("path", ["/readyz?verbose=maybe", "/readyz?loud", "/livez?verbose"])
def test_a_query_that_health_does_not_know_is_refused(api: Api, path: str) -> None:
    assert api.ask("GET", path).status == 422


def test_without_its_database_the_api_lives_and_is_not_ready(
    unused_path: Callable[[], Path], valkey: ValkeyServer
) -> None:
    with running_api(unused_path(), database_url=NOBODY, redis_url=valkey.url()) as api:
        live, ready = api.ask("GET", "/livez"), api.ask("GET", "/readyz")
        verbose = api.ask("GET", "/readyz?verbose").json()
        job = api.ask("GET", "/v1/media/status/01920000-0000-7000-8000-000000000001")

    assert live.status == 200
    assert problem(ready.json()) == problem(verbose) == (503, "database_unavailable")
    assert ready.headers["retry-after"] == "2"
    assert verbose["checks"]["database"]["status"] == verbose["checks"]["schema"]["status"] == "unavailable"
    assert verbose["checks"]["storage"]["status"] == "ok"
    assert problem(job.json()) == (503, "database_unavailable")


def test_without_its_broker_the_api_accepts_and_is_degraded(
    unused_path: Callable[[], Path], database_url: str
) -> None:
    with running_api(unused_path(), database_url=database_url, redis_url=NO_BROKER) as api:
        accepted = api.ask(
            "POST",
            "/v1/media/generate",
            [("Content-Type", "application/json")],
            b'{"prompt": "a lighthouse"}',
        )
        plain, verbose = api.ask("GET", "/readyz"), api.ask("GET", "/readyz?verbose")

    assert accepted.status == 202
    assert (plain.status, plain.json()["status"]) == (200, "ok")
    assert (verbose.status, verbose.json()["status"]) == (200, "degraded")
    assert verbose.json()["checks"]["broker"]["status"] == "unavailable"
    assert verbose.json()["checks"]["celery"]["status"] == "unavailable"


def test_a_database_that_takes_no_writes_is_not_ready_and_says_so(
    unused_path: Callable[[], Path], database_url: str, postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    postgres.query(READ_ONLY.format(make_url(database_url).database), "postgres")
    with running_api(unused_path(), database_url=database_url, redis_url=valkey.url()) as api:
        plain, verbose = api.ask("GET", "/readyz"), api.ask("GET", "/readyz?verbose").json()

    assert problem(plain.json()) == problem(verbose) == (503, "database_read_only")
    assert verbose["checks"]["database"]["status"] == "unavailable"
    assert verbose["checks"]["schema"]["status"] == "ok"


def test_a_schema_that_is_missing_is_told_until_it_is_there(
    unused_path: Callable[[], Path], create_database: Callable[[str], str], valkey: ValkeyServer
) -> None:
    url = create_database("template0")
    with running_api(unused_path(), database_url=url, redis_url=valkey.url(), wait_for_schema=True) as api:
        live, ready = api.ask("GET", "/livez"), api.ask("GET", "/readyz")
        job = api.ask("GET", "/v1/media/status/01920000-0000-7000-8000-000000000001")
        verbose = api.ask("GET", "/readyz?verbose").json()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(upgrade, url).result()
        ready_after = api.ask("GET", "/readyz")
        job_after = api.ask("GET", "/v1/media/status/01920000-0000-7000-8000-000000000001")

    assert live.status == 200
    assert problem(ready.json()) == problem(job.json()) == problem(verbose) == (503, "schema_outdated")
    assert "fleek db upgrade" in ready.json()["detail"]
    assert verbose["checks"]["database"]["status"] == "ok"
    assert verbose["checks"]["schema"]["status"] == "unavailable"
    assert ready_after.status == 200
    assert problem(job_after.json()) == (404, "not_found")


def test_a_schema_that_was_found_right_is_not_looked_at_again(api: Api) -> None:
    api.ask("GET", "/readyz")
    with sent_statements() as sent:
        for _ in range(3):
            api.ask("GET", "/readyz")

    assert not any("alembic_version" in statement.text for statement in sent)
    assert len(sent) == 3
