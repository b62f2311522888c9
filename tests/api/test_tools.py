"""What people ask of a running Fleek, with nobody at work beside it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy.engine import make_url
from tests.api.serving import Api, problem, running_api

from fleek import __version__
from fleek.db.revisions import shipped_revisions
from fleek.local.postgres import PostgresServer
from fleek.local.valkey import ValkeyServer

NOBODY = "postgresql+asyncpg://fleek@127.0.0.1:1/fleek"
NO_BROKER = "redis://127.0.0.1:1"


def test_the_status_is_the_verbose_readiness_and_the_version(api: Api) -> None:
    status, ready = api.ask("GET", "/tools/status"), api.ask("GET", "/readyz?verbose")

    assert status.status == 200
    assert status.json()["version"] == __version__
    assert status.json()["status"] == ready.json()["status"] == "degraded"
    assert status.json()["checks"].keys() == ready.json()["checks"].keys()


def test_without_its_database_the_status_is_a_problem_that_names_each_part(
    unused_path: Callable[[], Path], valkey: ValkeyServer
) -> None:
    with running_api(unused_path(), database_url=NOBODY, redis_url=valkey.url()) as api:
        status = api.ask("GET", "/tools/status").json()

    assert problem(status) == (503, "database_unavailable")
    assert status["version"] == __version__
    assert status["checks"]["broker"]["status"] == "ok"


def test_with_no_worker_celery_is_unavailable(api: Api) -> None:
    answer = api.ask("GET", "/tools/celery_status")

    assert (answer.status, answer.json()["status"]) == (200, "unavailable")
    assert [(queue["queue"], queue["worker"]) for queue in answer.json()["queues"]] == [("default", None)]


def test_without_a_broker_nothing_is_known_of_celery(
    unused_path: Callable[[], Path], database_url: str
) -> None:
    with running_api(unused_path(), database_url=database_url, redis_url=NO_BROKER) as api:
        answer = api.ask("GET", "/tools/celery_status")

    assert problem(answer.json()) == (503, "unavailable")


def test_a_crowd_of_probes_puts_one_message_into_a_queue_that_nobody_serves(
    unused_path: Callable[[], Path], database_url: str, redis_url: str
) -> None:
    with (
        running_api(unused_path(), database_url=database_url, redis_url=redis_url) as api,
        Redis.from_url(redis_url) as redis,
        ThreadPoolExecutor(20) as crowd,
    ):
        answers = list(crowd.map(lambda _: api.ask("GET", "/readyz?verbose"), range(20)))
        waiting = redis.llen("fleek.default")

    assert {answer.json()["checks"]["celery"]["status"] for answer in answers} == {"unavailable"}
    assert waiting == 1


def test_info_names_the_version_the_schema_and_the_models(api: Api) -> None:
    info = api.ask("GET", "/v1/info").json()
    head = shipped_revisions().head

    assert info["version"] == __version__
    assert info["api_version"] == "v1"
    assert info["migration"] == {"current": head, "head": head, "status": "current"}
    assert {"name": "demo", "provider": "demo", "available": True} in info["models"]


def test_info_answers_without_a_database(unused_path: Callable[[], Path], valkey: ValkeyServer) -> None:
    with running_api(unused_path(), database_url=NOBODY, redis_url=valkey.url()) as api:
        info = api.ask("GET", "/v1/info")

    assert info.status == 200
    assert info.json()["migration"]["current"] is None
    assert info.json()["migration"]["status"] == "unknown"


def test_a_schema_of_a_later_release_is_worked_with_and_told(
    unused_path: Callable[[], Path], database_url: str, postgres: PostgresServer, valkey: ValkeyServer
) -> None:
    newer = "UPDATE alembic_version SET version_num = 'of_next_year'"
    postgres.query(newer, str(make_url(database_url).database))
    with running_api(unused_path(), database_url=database_url, redis_url=valkey.url()) as api:
        ready, info = api.ask("GET", "/readyz"), api.ask("GET", "/v1/info").json()

    assert ready.status == 200
    assert info["migration"]["current"] == "of_next_year"
    assert info["migration"]["status"] == "newer"


@pytest.mark.parametrize("path", ["/tools/status?verbose", "/tools/celery_status?a=1", "/v1/info?a=1"])
def test_a_query_is_refused(api: Api, path: str) -> None:
    assert api.ask("GET", path).status == 422
