"""The rules of a model's own parameters, and how a broken one is told to the client."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

from jsonschema_rs import Draft202012Validator, ValidationError

from fleek.core.errors import ConfigurationError, Violation
from fleek.providers.base import JsonSchema

_MAX_VIOLATIONS = 20
_LONGEST_NAME = 100
"""Characters of a parameter's name that a pointer repeats; a longer one was not meant seriously."""
_SCHEMA_FACTS = frozenset(
    {
        "limit",
        "options",
        "types",
        "multiple_of",
        "pattern",
        "format",
        "expected_value",
    }
)
"""Facts of a broken rule that come from the schema; the others may hold what the client sent."""
_MESSAGES: Mapping[str, str] = MappingProxyType(
    {
        "type": "Must be of type {types}",
        "enum": "Must be one of {options}",
        "const": "Must be {expected_value}",
        "minimum": "Must be at least {limit}",
        "maximum": "Must be at most {limit}",
        "exclusiveMinimum": "Must be more than {limit}",
        "exclusiveMaximum": "Must be less than {limit}",
        "multipleOf": "Must be a multiple of {multiple_of}",
        "minLength": "Must have at least {limit} characters",
        "maxLength": "Must have at most {limit} characters",
        "pattern": "Must match {pattern}",
        "format": "Must be in the format {format}",
        "minItems": "Must have at least {limit} items",
        "maxItems": "Must have at most {limit} items",
        "uniqueItems": "Must not have the same item twice",
        "minProperties": "Must have at least {limit} parameters",
        "maxProperties": "Must have at most {limit} parameters",
        "anyOf": "Has none of the forms that are allowed here",
        "oneOf": "Must have exactly one of the forms that are allowed here",
    }
)


class ParameterRules:
    """A JSON Schema (2020-12) of a request's `input`, compiled once."""

    def __init__(self, schema: JsonSchema, *, model: str) -> None:
        """Raises ConfigurationError, which names the model, when the schema is none."""
        self._known = ", ".join(schema.get("properties", {}))
        try:
            # Offline: a schema that refers to an address must not make the start wait for it.
            self._validator = Draft202012Validator(dict(schema), offline=True)
        except ValidationError as error:
            message = f"The parameter schema of the model {model} is not a JSON Schema: {error.message}"
            raise ConfigurationError(message) from error

    def check(self, value: Mapping[str, Any]) -> tuple[Violation, ...]:
        """The broken rules, at most 20 of them; empty when there are none.

        The pointers begin with `/input`; the messages are made of the schema and repeat no value.
        """
        errors = self._validator.iter_errors(dict(value))
        violations = (violation for error in errors for violation in self._explain(error))
        return tuple(islice(violations, _MAX_VIOLATIONS))

    def _explain(self, error: ValidationError) -> Iterator[Violation]:
        """One violation, or one for each parameter that the rule concerns."""
        path: list[str | int] = ["input", *error.instance_path]
        facts: Mapping[str, Any] = error.kind.as_dict()
        unknown = "No such parameter" + ("" if error.instance_path else f"; known: {self._known or 'none'}")
        match error.kind.name:
            case "additionalProperties" | "unevaluatedProperties":
                for name in facts["unexpected"]:
                    yield Violation(_pointer([*path, name]), unknown)
            case "falseSchema" if error.schema_path[-1] == "additionalProperties":
                # An object without any known property: the validator names none of the unknown ones.
                yield Violation(_pointer(path), unknown)
            case "required":
                yield Violation(_pointer([*path, facts["property"]]), "Is required")
            case keyword:
                yield Violation(_pointer(path), _message(keyword, facts))


def _message(keyword: str, facts: Mapping[str, Any]) -> str:
    template = _MESSAGES.get(keyword, f"Does not meet the rule `{keyword}` of the model's parameters")
    return template.format(**{name: _shown(facts[name]) for name in facts if name in _SCHEMA_FACTS})


def _shown(value: object) -> str:
    """A value of the schema, as JSON would spell it, without quotation marks."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return value if isinstance(value, str) else json.dumps(value)


def _pointer(path: Iterable[str | int]) -> str:
    """An RFC 6901 pointer; it ends above a name that is too long to be repeated."""
    tokens: list[str] = []
    for part in path:
        token = str(part).replace("~", "~0").replace("/", "~1")
        if len(token) > _LONGEST_NAME:
            break
        tokens.append(token)
    return "/" + "/".join(tokens)
