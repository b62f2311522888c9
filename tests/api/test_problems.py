"""The map from errors to answers."""

from __future__ import annotations

import inspect
from datetime import timedelta
from http import HTTPStatus

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core._pydantic_core import list_all_errors
from tests.api.serving import Api, problem

from fleek.api.problems import STATUS_OF, document, message_of, status_of
from fleek.core import errors
from fleek.core.errors import FleekError, Violation
from fleek.db.session import LockTimeoutError

ERRORS = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, FleekError)]


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_of_the_core_has_its_row(error: type[FleekError]) -> None:
    assert error in STATUS_OF


def test_the_map_holds_errors_of_the_core_alone() -> None:
    assert set(STATUS_OF) == set(ERRORS)


def test_an_error_that_is_defined_elsewhere_has_the_status_of_its_parent() -> None:
    assert status_of(LockTimeoutError()) is HTTPStatus.SERVICE_UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MalformedRequest("m"), 400),
        (errors.InvalidRequest("m"), 422),
        (errors.NotFound("job"), 404),
        (errors.NotReady(timedelta(seconds=1)), 409),
        (errors.Gone(), 410),
        (errors.Forbidden(), 403),
        (errors.StorageUnavailable(), 503),
        (errors.LeaseLost(), 500),
    ],
)
def test_an_error_has_the_status_that_the_contract_says(error: FleekError, status: int) -> None:
    assert status_of(error) == status


def test_a_document_names_its_errors_only_where_there_are_any() -> None:
    plain = document(404, "not_found", "No such job", "id-1")
    listed = document(422, "invalid_request", "no", "id-1", (Violation("/n", "too large"),))

    assert plain == {
        "type": "urn:fleek:problem:not_found",
        "title": "Not found",
        "status": 404,
        "detail": "No such job",
        "code": "not_found",
        "request_id": "id-1",
    }
    assert listed["errors"] == [{"pointer": "/n", "message": "too large"}]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    number: int = Field(default=1, ge=3, multiple_of=5)
    text: str = Field(default="abc", min_length=2, pattern="^a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"number": 0}, "Input should be greater than or equal to 3"),
        ({"number": 4}, "Input should be a multiple of 5"),
        ({"text": "a"}, "String should have at least 2 characters"),
        ({"text": "bcd"}, "String should match pattern '^a'"),
        ({"number": "1"}, "Input should be a valid integer"),
        ({"other": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_broken_rule_is_told_in_pydantics_words(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        _Strict.model_validate(values)

    assert [message_of(found) for found in raised.value.errors()] == [message]


def test_no_message_that_pydantic_fills_with_input_is_shown() -> None:
    told = {
        kind["type"]: message_of({"type": kind["type"], "ctx": kind.get("example_context"), "msg": "echo"})
        for kind in list_all_errors()
    }
    echoing = (
        "union_tag_invalid",
        "json_invalid",
        "uuid_parsing",
        "url_parsing",
        "datetime_parsing",
        "mapping_type",
    )

    assert {told[kind] for kind in echoing} == {"Input is not valid"}
    assert told["missing"] == "echo"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/media/generate", "POST"),
        ("DELETE", "/media/generate", "POST"),
        ("POST", "/v1/media/jobs", "GET"),
        ("PATCH", "/v1/media/jobs/x", "DELETE, GET"),
        ("PUT", "/v1/media/x", "DELETE, GET"),
        ("TRACE", "/livez", "GET"),
        ("OPTIONS", "/v1/models/a/b", "GET"),
        ("POST", "/v1/objects/media/x.png", "GET, HEAD"),
    ],
)
def test_a_method_that_a_route_does_not_know_is_a_405_that_names_those_it_knows(
    api: Api, method: str, path: str, allowed: str
) -> None:
    answer = api.ask(method, path)

    assert problem(answer.json()) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/v1", "/v2/media/jobs", "/v1/media/jobs/", "/medias", "/mediajobs", "//livez"]
)
def test_an_unknown_route_is_a_404(api: Api, path: str) -> None:
    answer = api.ask("GET", path)

    assert problem(answer.json()) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_address_that_is_printed_leads_to_the_docs(api: Api) -> None:
    answer = api.ask("GET", "/")

    assert (answer.status, answer.headers["location"]) == (307, "/docs")


def test_every_problem_carries_the_id_of_its_request(api: Api) -> None:
    answer = api.ask("GET", "/nowhere", [("X-Request-ID", "trace-1")])

    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "trace-1"
