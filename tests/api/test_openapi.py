"""The OpenAPI document and the page that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from tests.api.serving import Api

from fleek.api.app import create_app
from fleek.settings import load_settings

DOCUMENT: dict[str, Any] = create_app(load_settings()).openapi()
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
ROUTES = {
    "POST /v1/media/generate",
    "GET /v1/media/status/{job_id}",
    "GET /v1/media/jobs/{job_id}",
    "GET /v1/media/jobs",
    "POST /v1/media/jobs/{job_id}/cancel",
    "DELETE /v1/media/jobs/{job_id}",
    "POST /v1/media/jobs/{job_id}/retry",
    "GET /v1/media/jobs/{job_id}/events",
    "GET /v1/media/jobs/{job_id}/logs",
    "GET /v1/media/{media_id}",
    "GET /v1/media",
    "GET /v1/media/content/{media_id}",
    "DELETE /v1/media/{media_id}",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "POST /v1/models/{name}/pause",
    "POST /v1/models/{name}/resume",
    "GET /v1/objects/{key}",
    "GET /livez",
    "GET /readyz",
    "GET /health",
    "GET /tools/status",
    "GET /tools/celery_status",
    "GET /v1/info",
}


def schema_examples() -> Iterator[tuple[str, Any, Any]]:
    """Where an example stands, its schema, and its value."""
    for name, operation in OPERATIONS.items():
        contents = {"request": operation.get("requestBody", {})} | operation["responses"]
        for status, holder in contents.items():
            for media_type, content in holder.get("content", {}).items():
                for label, example in content.get("examples", {}).items():
                    yield f"{name} {status} {media_type} {label}", content["schema"], example["value"]
        for parameter in operation.get("parameters", ()):
            for value in [parameter.get("example"), *parameter["schema"].get("examples", ())]:
                if value is not None:
                    yield f"{name} {parameter['name']} {value}", parameter["schema"], value


EXAMPLES = {place: (schema, value) for place, schema, value in schema_examples()}


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)

    assert DOCUMENT["openapi"].startswith("3.1")


def test_the_document_holds_every_route_of_the_contract_and_no_alias() -> None:
    assert set(OPERATIONS) == ROUTES
    assert "/media/generate" in DOCUMENT["info"]["description"]


@pytest.mark.parametrize(("schema", "value"), EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_fits_the_schema_that_it_stands_beside(schema: Any, value: Any) -> None:
    whole = schema | {"components": DOCUMENT["components"]}

    assert [error.message for error in Draft202012Validator(whole).iter_errors(value)] == []


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_route_says_what_it_is_for_and_shows_every_json_that_it_answers(
    operation: dict[str, Any],
) -> None:
    json = [
        content
        for response in operation["responses"].values()
        for media_type, content in response.get("content", {}).items()
        if "json" in media_type
    ]

    assert operation["description"]
    assert operation["tags"]
    assert json or operation["operationId"] == "get_object"
    assert all(content["examples"] for content in json)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_error_is_a_problem_and_every_answer_has_a_request_id(operation: dict[str, Any]) -> None:
    failures = [answer for status, answer in operation["responses"].items() if status >= "400"]

    assert failures
    assert all(list(answer["content"]) == ["application/problem+json"] for answer in failures)
    assert all("X-Request-ID" in answer["headers"] for answer in operation["responses"].values())


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_every_parameter_says_what_it_is_for(operation: dict[str, Any]) -> None:
    unnamed = [each["name"] for each in operation.get("parameters", ()) if not each.get("description")]

    assert unnamed == []


def test_shapes_have_their_public_names_and_no_optional_field_in_answers() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    answers = {
        "Job",
        "JobStatus",
        "Media",
        "Attempt",
        "Submission",
        "JobError",
        "JobPage",
        "MediaPage",
        "Model",
    }

    assert answers <= set(schemas)
    assert all(set(schemas[name]["required"]) == set(schemas[name]["properties"]) for name in answers)


def test_the_document_is_served(api: Api) -> None:
    answer = api.ask("GET", "/openapi.json")

    assert answer.status == 200
    assert answer.json()["paths"].keys() == DOCUMENT["paths"].keys()


def test_the_docs_page_loads_nothing_from_elsewhere(api: Api) -> None:
    page = api.ask("GET", "/docs")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.body.decode())

    assert page.status == 200
    assert {api.ask("GET", f"/{link}").status for link in links} == {200}
    assert not [link for link in links if "//" in link]
    assert "<script>" not in page.body.decode()
    assert "script-src 'self';" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["/docs/assets/../docs.py", "/docs/assets/%2e%2e/docs.py", "/docs/assets/none"]
)
def test_the_docs_serve_their_own_files_alone(api: Api, path: str) -> None:
    answer = api.ask("GET", path)

    assert answer.status == 404
    assert answer.json()["code"] == "not_found"
