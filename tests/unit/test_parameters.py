"""Broken rules of a model's parameters, as the client is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from fleek.core.errors import ConfigurationError, Violation
from fleek.providers.parameters import ParameterRules

SECRET = "hunter2"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["steps"],
    "properties": {
        "steps": {"type": "integer", "minimum": 1, "maximum": 50, "multipleOf": 2},
        "strength": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "sampler": {"enum": ["euler", "ddim", None, True]},
        "version": {"const": 2},
        "name": {"type": ["string", "null"], "minLength": 2, "maxLength": 20, "pattern": "^[a-z ]+$"},
        "loras": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "uniqueItems": True,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"a/b~c": {"type": "string"}},
            },
        },
        "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "one": {"oneOf": [{"type": "integer"}, {"minimum": 3}]},
        "never": {"not": {"type": "string"}},
        "map": {"type": "object", "minProperties": 1, "maxProperties": 1, "propertyNames": {"maxLength": 3}},
    },
}
KNOWN = "steps, strength, sampler, version, name, loras, either, one, never, map"
RULES = ParameterRules(SCHEMA, model="demo")
# What is sent, the pointer and the message.
BROKEN = [
    ({}, "/input/steps", "Is required"),
    ({"steps": "2"}, "/input/steps", "Must be of type integer"),
    ({"steps": True}, "/input/steps", "Must be of type integer"),
    ({"steps": 0}, "/input/steps", "Must be at least 1"),
    ({"steps": 52}, "/input/steps", "Must be at most 50"),
    ({"steps": 10**40}, "/input/steps", "Must be at most 50"),
    ({"steps": 3}, "/input/steps", "Must be a multiple of 2"),
    ({"strength": 0}, "/input/strength", "Must be more than 0"),
    ({"strength": 1}, "/input/strength", "Must be less than 1"),
    ({"sampler": SECRET}, "/input/sampler", "Must be one of euler, ddim, null, true"),
    ({"version": 1}, "/input/version", "Must be 2"),
    ({"name": 7}, "/input/name", "Must be of type null, string"),
    ({"name": "x"}, "/input/name", "Must have at least 2 characters"),
    ({"name": "x" * 21}, "/input/name", "Must have at most 20 characters"),
    ({"name": SECRET}, "/input/name", "Must match ^[a-z ]+$"),
    ({"loras": []}, "/input/loras", "Must have at least 1 items"),
    ({"loras": [{}, {}]}, "/input/loras", "Must not have the same item twice"),
    ({"loras": [{}, {"a/b~c": ""}, {"a/b~c": "x"}]}, "/input/loras", "Must have at most 2 items"),
    ({"loras": [{"a/b~c": 1}]}, "/input/loras/0/a~1b~0c", "Must be of type string"),
    ({"loras": [{"x": 1}]}, "/input/loras/0/x", "No such parameter"),
    ({"either": 4}, "/input/either", "Has none of the forms that are allowed here"),
    ({"one": 4}, "/input/one", "Must have exactly one of the forms that are allowed here"),
    ({"map": {}}, "/input/map", "Must have at least 1 parameters"),
    ({"map": {"a": 1, "b": 2}}, "/input/map", "Must have at most 1 parameters"),
    ({"map": {SECRET: 1}}, "/input/map", "Does not meet the rule `propertyNames` of the model's parameters"),
    ({"never": SECRET}, "/input/never", "Does not meet the rule `not` of the model's parameters"),
    ({"extra": SECRET}, "/input/extra", f"No such parameter; known: {KNOWN}"),
    ({"x" * 101: 1}, "/input", f"No such parameter; known: {KNOWN}"),
]


@pytest.mark.parametrize(("value", "pointer", "message"), BROKEN, ids=lambda part: str(part)[:30])
def test_a_broken_rule_names_the_parameter_and_the_rule(
    value: dict[str, Any], pointer: str, message: str
) -> None:
    sent = value if value == {} else {"steps": 2} | value

    violations = RULES.check(sent)

    assert violations == (Violation(pointer, message),)
    assert SECRET not in message


@pytest.mark.parametrize(
    "value", [{"steps": 2}, {"steps": 4.0, "name": None}, {"steps": 50, "sampler": "ddim", "map": {"k": 1}}]
)
def test_parameters_that_meet_all_rules_have_no_violations(value: dict[str, Any]) -> None:
    assert RULES.check(value) == ()


def test_each_unknown_parameter_has_its_violation() -> None:
    pointers = [violation.pointer for violation in RULES.check({"steps": 2, "a": 1, "b": 2})]

    assert pointers == ["/input/a", "/input/b"]


def test_no_more_than_twenty_violations_are_told() -> None:
    assert len(RULES.check({"steps": 2} | {f"p{i}": 1 for i in range(1000)})) == 20


def test_a_model_without_parameters_says_so() -> None:
    rules = ParameterRules({"type": "object", "additionalProperties": False}, model="demo")

    assert rules.check({"a": 1}) == (Violation("/input", "No such parameter; known: none"),)


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/schema.json"}])
def test_what_is_no_schema_stops_the_start_and_names_the_model(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="the model flux"):
        ParameterRules(schema, model="flux")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*SCHEMA["properties"], "other"]) | st.text(), JSON, max_size=5))
def test_any_json_is_answered_with_pointers_into_the_input(value: dict[str, Any]) -> None:
    violations = RULES.check(value)

    assert all(v.pointer == "/input" or v.pointer.startswith("/input/") for v in violations)
    assert violations or "steps" in value
