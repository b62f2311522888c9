"""The error tree: every class has a code, and its message is safe to show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from fleek.core import errors
from fleek.core.errors import (
    ConfigurationError,
    Conflict,
    DatabaseReadOnly,
    DatabaseUnavailable,
    FleekError,
    Forbidden,
    Gone,
    IdempotencyInFlight,
    IdempotencyMismatch,
    InvalidCursor,
    InvalidIdempotencyKey,
    InvalidRequest,
    JobNotFinished,
    JobNotRetryable,
    LeaseLost,
    MalformedRequest,
    NotFound,
    NotReady,
    OutputError,
    OutputInvalid,
    OutputTooLarge,
    ProviderError,
    ProviderErrorKind,
    SchemaOutdated,
    StorageUnavailable,
    Unavailable,
    Violation,
    WouldPayAgain,
)


def descendants(cls: type[FleekError]) -> Iterator[type[FleekError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from descendants(child)


TREE = list(descendants(FleekError))
WITH_MESSAGE = {
    FleekError: "internal_error",
    ConfigurationError: "configuration_error",
    InvalidRequest: "invalid_request",
    MalformedRequest: "malformed_request",
    Conflict: "conflict",
    Unavailable: "unavailable",
    OutputError: "internal_error",
    OutputInvalid: "output_invalid",
    OutputTooLarge: "output_too_large",
}
WITHOUT_ARGUMENTS = {
    InvalidCursor: "invalid_cursor",
    InvalidIdempotencyKey: "invalid_idempotency_key",
    IdempotencyMismatch: "idempotency_mismatch",
    IdempotencyInFlight: "idempotency_in_flight",
    JobNotFinished: "job_not_finished",
    JobNotRetryable: "job_not_retryable",
    WouldPayAgain: "would_pay_again",
    Gone: "gone",
    Forbidden: "forbidden",
    DatabaseUnavailable: "database_unavailable",
    DatabaseReadOnly: "database_read_only",
    SchemaOutdated: "schema_outdated",
    StorageUnavailable: "storage_unavailable",
    LeaseLost: "lease_lost",
}
OF_THEIR_OWN = {NotFound: "not_found", NotReady: "not_ready", ProviderError: "provider_error"}


def test_every_class_of_the_tree_is_in_one_of_these_tables() -> None:
    assert set(TREE) == {*WITH_MESSAGE, *WITHOUT_ARGUMENTS, *OF_THEIR_OWN}


@pytest.mark.parametrize(("cls", "code"), WITH_MESSAGE.items())
def test_an_error_with_words_keeps_them(cls: type[FleekError], code: str) -> None:
    error = cls("some words")

    assert (error.code, error.message, str(error)) == (code, "some words", "some words")


@pytest.mark.parametrize(("cls", "code"), WITHOUT_ARGUMENTS.items())
def test_an_error_without_words_brings_its_own(cls: Any, code: str) -> None:
    error = cls()

    assert error.code == code
    assert error.message == str(error)
    assert re.fullmatch(r"[A-Z].*[^.]", error.message)


def test_an_invalid_request_names_what_is_wrong_with_it() -> None:
    violation = Violation("/n", "must be at least 1")

    assert InvalidRequest("no").violations == ()
    assert InvalidRequest("no", (violation,)).violations == (violation,)


def test_what_does_not_exist_is_named() -> None:
    assert NotFound("job").message == "No such job"


def test_a_result_that_is_still_made_says_when_to_ask_again() -> None:
    error = NotReady(timedelta(seconds=3))

    assert error.retry_after == timedelta(seconds=3)
    assert error.retryable


@pytest.mark.parametrize("kind", ProviderErrorKind)
def test_a_provider_error_carries_its_kind_and_what_was_asked(kind: ProviderErrorKind) -> None:
    error = ProviderError(kind, "words", retry_after=timedelta(seconds=9))

    assert (error.kind, error.message, error.retry_after) == (kind, "words", timedelta(seconds=9))
    assert ProviderError(kind, "words").retry_after is None


def test_trying_again_helps_exactly_where_nothing_is_wrong_with_the_request() -> None:
    retryable = {cls for cls in TREE if cls.retryable}

    assert retryable == {
        NotReady, IdempotencyInFlight, Unavailable, DatabaseUnavailable, DatabaseReadOnly, SchemaOutdated,
        StorageUnavailable, OutputInvalid,
    }  # fmt: skip


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"(?:├──|└──) (\w+)", errors.__doc__ or "")

    assert sorted(drawn) == sorted(cls.__name__ for cls in TREE if cls is not FleekError)
