"""What is configured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from tests.api.serving import Api, problem, running_api

from fleek.api.models import _all
from fleek.providers.registry import Catalog
from fleek.settings import ModelSettings

JSON = [("Content-Type", "application/json")]


def test_the_built_in_model_is_listed_with_what_it_takes(api: Api) -> None:
    items = api.ask("GET", "/v1/models").json()["items"]

    demo = next(item for item in items if item["name"] == "demo")
    assert (demo["available"], demo["unavailable_reason"], demo["provider"]) == (True, None, "demo")
    assert demo["capabilities"]["paid"] is False
    assert "delay_seconds" in demo["parameters"]["properties"]
    Draft202012Validator.check_schema(demo["parameters"])


def test_one_model_is_answered_as_it_is_in_the_list(api: Api) -> None:
    items = api.ask("GET", "/v1/models").json()["items"]

    assert api.ask("GET", "/v1/models/demo").json() == items[0]


@pytest.mark.parametrize("name", ["nope", "demo/x", "%00", "..%2fdemo", "%ff", "a" * 10_000])
def test_a_model_that_is_not_configured_is_not_found(api: Api, name: str) -> None:
    assert problem(api.ask("GET", f"/v1/models/{name}").json()) == (404, "not_found")


def test_a_configured_model_is_listed_with_its_price_and_the_first_is_the_default(
    unused_path: Callable[[], Path], database_url: str, redis_url: str
) -> None:
    models = {"posters/large": ModelSettings(provider="demo", price_per_output="0.003", description="Large")}
    with running_api(unused_path(), database_url=database_url, redis_url=redis_url, models=models) as api:
        model = api.ask("GET", "/v1/models/posters/large").json()
        demo = api.ask("GET", "/v1/models/demo").json()

    assert (model["description"], model["is_default"], demo["is_default"]) == ("Large", True, False)
    assert model["price_per_output"] == {"amount": "0.003", "currency": "USD"}


def test_a_model_that_cannot_be_used_is_listed_with_the_reason_and_no_other_takes_its_place() -> None:
    reason = "The provider sketch needs a package, which is not installed"
    listed = _all(Catalog([], {"sketch": reason}, default="sketch"), {})

    assert [(model.name, model.available, model.unavailable_reason) for model in listed] == [
        ("sketch", False, reason)
    ]
    assert not any(model.is_default for model in listed)


def test_a_model_is_paused_and_resumed(
    unused_path: Callable[[], Path], database_url: str, redis_url: str
) -> None:
    models = {"posters/large": ModelSettings(provider="demo")}
    with running_api(unused_path(), database_url=database_url, redis_url=redis_url, models=models) as api:
        for_good = api.ask(
            "POST", "/v1/models/posters/large/pause", JSON, b'{"reason": "no more ink"}'
        ).json()
        listed = api.ask("GET", "/v1/models").json()["items"]
        for_a_while = api.ask("POST", "/v1/models/posters/large/pause", JSON, b'{"seconds": 900}').json()
        resumed = [api.ask("POST", "/v1/models/posters/large/resume").json() for _ in range(2)]

    assert for_good["pause"] == {"until": None, "reason": "no more ink"}
    assert [(model["name"], model["pause"]) for model in listed] == [
        ("posters/large", for_good["pause"]),
        ("demo", None),
    ]
    assert for_a_while["pause"]["until"] is not None
    assert [model["pause"] for model in resumed] == [None, None]


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_only_a_model_that_is_configured_can_be_paused(api: Api, verb: str) -> None:
    assert problem(api.ask("POST", f"/v1/models/nope/{verb}").json()) == (404, "not_found")


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_model_that_cannot_be_used_here_can_neither_be_paused_nor_resumed_here(
    unused_path: Callable[[], Path],
    database_url: str,
    redis_url: str,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    models = {"paid/one": ModelSettings(provider="replicate")}
    with running_api(unused_path(), database_url=database_url, redis_url=redis_url, models=models) as api:
        shown = api.ask("GET", "/v1/models/paid/one").json()
        answered = api.ask("POST", f"/v1/models/paid/one/{verb}").json()

    assert (shown["available"], shown["pause"]) == (False, None)
    assert problem(answered) == (404, "not_found")


def test_a_model_that_nobody_declared_is_paused_by_its_providers_name(
    unused_path: Callable[[], Path], database_url: str, redis_url: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("r8_nothing")
    providers = {"replicate": {"allow_any": True, "token_file": str(token)}}
    servers = {"database_url": database_url, "redis_url": redis_url}
    with running_api(unused_path(), **servers, providers=providers) as api:
        paused = api.ask("POST", "/v1/models/owner/name/pause", JSON, b'{"reason": "too dear"}').json()
        shown = api.ask("GET", "/v1/models/owner/name").json()
        resumed = api.ask("POST", "/v1/models/owner/name/resume").json()

    assert paused["pause"] == shown["pause"] == {"until": None, "reason": "too dear"}
    assert (resumed["provider"], resumed["pause"]) == ("replicate", None)


@pytest.mark.parametrize(
    "body",
    [
        {"seconds": 0},
        {"seconds": 10**9},
        {"seconds": "900"},
        {"seconds": 1.5},
        {"reason": ""},
        {"reason": "x" * 201},
        {"reason": "a\u0000b"},
        {"until": "tomorrow"},
    ],
)
def test_a_pause_that_makes_no_sense_is_refused(api: Api, body: dict[str, object]) -> None:
    answered = api.ask("POST", "/v1/models/demo/pause", JSON, json.dumps(body).encode())

    assert problem(answered.json()) == (422, "invalid_request")
    assert api.ask("GET", "/v1/models/demo").json()["pause"] is None
