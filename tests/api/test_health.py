"""Health, with parts that are there and parts that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.api.serving import Api, problem, running_api
from tests.statements import sent_statements

from fleek.local.valkey import ValkeyServer

NOBODY = "postgresql+asyncpg://fleek@127.0.0.1:1/fleek"
NO_BROKER = "redis://127.0.0.1:1"


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
    assert [statement.text for statement in sent] == ["SELECT 1"]


@pytest.mark.parametrize("path", ["/readyz?verbose", "/readyz?verbose=true", "/health?verbose="])
def test_verbose_readiness_names_each_part(api: Api, path: str) -> None:
    checks = api.ask("GET", path).json()["checks"]

    assert {name: part["status"] for name, part in checks.items()} == dict.fromkeys(
        ("database", "broker", "storage"), "ok"
    )
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
    assert verbose["checks"]["database"]["status"] == "unavailable"
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
