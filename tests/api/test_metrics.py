"""The page that Prometheus reads of an api."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.api.serving import Api, running_api
from tests.scraping import Page, parse
from tests.statements import sent_statements

from fleek.local.valkey import ValkeyServer

JSON = [("Content-Type", "application/json")]
NOBODY = "postgresql+asyncpg://fleek@127.0.0.1:1/fleek"
IMPOSSIBLE = "/v1/media/jobs/01920000-0000-7000-8000-000000000001"


@pytest.fixture
def counting(unused_path: Callable[[], Path], database_url: str, valkey: ValkeyServer) -> Iterator[Api]:
    """An api that nobody else asks."""
    with running_api(unused_path(), database_url=database_url, redis_url=valkey.url()) as api:
        yield api


def scrape(api: Api) -> Page:
    answer = api.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(answer.body.decode())


def requests(page: Page) -> dict[tuple[str, ...], float]:
    """By method, route and class of status, but for those of this page."""
    series = page.series("fleek_http_requests_total")
    return {labels: count for labels, count in series.items() if labels[1] != "/metrics"}


def test_requests_are_counted_by_the_template_of_their_route(counting: Api) -> None:
    counting.ask("GET", "/livez")
    for _ in range(3):
        counting.ask("GET", IMPOSSIBLE)
    counting.ask("GET", IMPOSSIBLE.removeprefix("/v1"))
    counting.ask("GET", "/v1/media/jobs/nonsense")
    counting.ask("DELETE", "/v1/media/generate")
    counting.ask("GET", "/docs")
    counting.ask("GET", "/docs/assets/swagger-ui/swagger-ui.css")
    counting.ask("GET", "/livez", [("Host", "evil.example.com")])

    page = scrape(counting)

    assert requests(page) == {
        ("GET", "/livez", "2xx"): 1,
        ("GET", "/v1/media/jobs/{job_id}", "4xx"): 5,
        ("DELETE", "/v1/media/generate", "4xx"): 1,
        ("GET", "other", "2xx"): 2,
        ("GET", "unmatched", "4xx"): 1,
    }
    durations = {"method": "GET", "route": "/v1/media/jobs/{job_id}"}
    assert page.value("fleek_http_request_duration_seconds_count", **durations) == 5
    assert page.value("fleek_http_requests_in_progress") == 1


def test_made_up_paths_and_methods_make_no_new_series(counting: Api) -> None:
    for number in range(200):
        counting.ask(("PROPFIND", "PURGE", "LOCK", "SEARCH")[number % 4], f"/made/up/{number}")
        counting.ask("GET", f"/v1/{number}")
    for method in ("HEAD", "OPTIONS", "PUT", "PATCH"):
        counting.ask(method, "/livez")

    assert requests(scrape(counting)) == {
        ("other", "unmatched", "4xx"): 200,
        ("GET", "unmatched", "4xx"): 200,
        ("HEAD", "/livez", "4xx"): 1,
        ("OPTIONS", "/livez", "4xx"): 1,
        ("PUT", "/livez", "4xx"): 1,
        ("PATCH", "/livez", "4xx"): 1,
    }


def test_accepted_jobs_are_counted_and_shown_as_the_queue_holds_them(counting: Api) -> None:
    for _ in range(3):
        counting.ask("POST", "/v1/media/generate", JSON, b'{"prompt": "a lighthouse"}')

    page = scrape(counting)

    assert page.series("fleek_jobs_accepted_total") == {("new", "demo", "default"): 3}
    assert page.series("fleek_queue_jobs") == {("demo", "default", "due"): 3}
    assert page.value("fleek_database_up") == 1


def test_a_page_takes_one_statement_and_none_within_the_next_seconds(counting: Api) -> None:
    with sent_statements() as sent:
        scrape(counting)
        scrape(counting)

    assert len(sent) == 1


def test_without_its_database_the_page_says_so_and_shows_the_rest(
    unused_path: Callable[[], Path], valkey: ValkeyServer
) -> None:
    with running_api(unused_path(), database_url=NOBODY, redis_url=valkey.url()) as api:
        api.ask("GET", IMPOSSIBLE)
        page = scrape(api)

    assert page.samples["fleek_database_up", frozenset()] == 0
    assert requests(page) == {("GET", "/v1/media/jobs/{job_id}", "5xx"): 1}


def test_it_can_be_switched_off(unused_path: Callable[[], Path], valkey: ValkeyServer) -> None:
    with running_api(unused_path(), database_url=NOBODY, redis_url=valkey.url(), metrics=False) as api:
        assert api.ask("GET", "/metrics").status == 404
