"""Fleek's parameters under the names that a model of Replicate gives them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st
from tests.replicate_openapi import schemas_of

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.core.media import OutputFormat
from fleek.providers.base import GenerationRequest
from fleek.providers.replicate_inputs import InputSchema, build_input

REQUEST = GenerationRequest("m", "acme/m", "a lighthouse", seed=7, width=768, height=512)
SIZED = replace(REQUEST, size_asked=True)


def schema(properties: dict[str, Any], **others: Any) -> InputSchema:
    document = {"openapi_schema": {"components": {"schemas": {"Input": {"properties": properties}} | others}}}
    found = InputSchema.read(document)
    assert found is not None
    return found


def schema_of(owner: str) -> InputSchema:
    """A whole document as cog writes it, as the route of a model answers it."""
    version = {"id": "v", "openapi_schema": {"components": {"schemas": schemas_of(owner)}}}
    found = InputSchema.read({"owner": owner, "latest_version": version})
    assert found is not None
    return found


PROMPT: dict[str, Any] = {"prompt": {"type": "string"}}


@pytest.mark.parametrize(
    ("request_", "known", "expected"),
    [
        (REQUEST, None, {"prompt": "a lighthouse", "seed": 7}),
        (SIZED, None, {"prompt": "a lighthouse", "seed": 7, "width": 768, "height": 512}),
        (
            replace(REQUEST, negative_prompt="fog", input={"steps": 4, "seed": 8, "prompt": "mine"}),
            None,
            {"prompt": "mine", "seed": 8, "steps": 4},
        ),
        (REQUEST, schema({}), {}),
        (REQUEST, schema(PROMPT), {"prompt": "a lighthouse"}),
        (REQUEST, schema({"text": {}}), {"text": "a lighthouse"}),
        (REQUEST, schema(PROMPT | {"text": {}}), {"prompt": "a lighthouse"}),
        (REQUEST, schema(PROMPT | {"seed": {}}), {"prompt": "a lighthouse", "seed": 7}),
        (
            replace(REQUEST, negative_prompt="fog"),
            schema(PROMPT | {"negative_prompt": {}}),
            {"prompt": "a lighthouse", "negative_prompt": "fog"},
        ),
        (REQUEST, schema(PROMPT | {"negative_prompt": {}}), {"prompt": "a lighthouse"}),
        (replace(REQUEST, negative_prompt="fog"), schema(PROMPT), {"prompt": "a lighthouse"}),
        (
            REQUEST,
            schema(PROMPT | {"output_format": {"enum": ["webp", "png"]}}),
            {"prompt": "a lighthouse", "output_format": "png"},
        ),
        (
            replace(REQUEST, output_format=OutputFormat.JPEG),
            schema(PROMPT | {"output_format": {"enum": ["webp", "jpg"]}}),
            {"prompt": "a lighthouse", "output_format": "jpg"},
        ),
        (REQUEST, schema(PROMPT | {"output_format": {"enum": ["mp4"]}}), {"prompt": "a lighthouse"}),
        (REQUEST, schema(PROMPT | {"output_format": {"type": "string"}}), {"prompt": "a lighthouse"}),
        (REQUEST, schema(PROMPT | {"width": {}, "height": {}}), {"prompt": "a lighthouse"}),
        (
            SIZED,
            schema(PROMPT | {"width": {}, "height": {}}),
            {"prompt": "a lighthouse", "width": 768, "height": 512},
        ),
        (
            SIZED,
            schema(PROMPT | {"width": {}, "height": {}, "aspect_ratio": {"enum": ["1:1", "custom"]}}),
            {"prompt": "a lighthouse", "width": 768, "height": 512, "aspect_ratio": "custom"},
        ),
        (
            SIZED,
            schema(PROMPT | {"aspect_ratio": {"enum": ["1:1", "3:2"]}}),
            {"prompt": "a lighthouse", "aspect_ratio": "3:2"},
        ),
        (
            replace(SIZED, input={"aspect_ratio": "1:1"}),
            schema(PROMPT | {"aspect_ratio": {"enum": ["1:1", "3:2"]}}),
            {"prompt": "a lighthouse", "aspect_ratio": "1:1"},
        ),
        (
            replace(SIZED, input={"megapixels": "1"}),
            schema(PROMPT | {"aspect_ratio": {"enum": ["1:1"]}}),
            {"prompt": "a lighthouse", "megapixels": "1"},
        ),
        (REQUEST, schema_of("flux"), {"prompt": "a lighthouse", "seed": 7, "output_format": "png"}),
        (
            SIZED,
            schema_of("flux"),
            {"prompt": "a lighthouse", "seed": 7, "output_format": "png", "aspect_ratio": "3:2"},
        ),
        (
            SIZED,
            schema_of("acme"),
            {"prompt": "a lighthouse", "seed": 7, "output_format": "png", "width": 768, "height": 512},
        ),
    ],
)
def test_a_request_becomes_the_models_input(
    request_: GenerationRequest, known: InputSchema | None, expected: dict[str, Any]
) -> None:
    assert build_input(request_, known) == expected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (PROMPT, "asked for 768 x 512 pixels: choose"),
        (PROMPT | {"aspect_ratio": {"enum": ["1:1", "16:9"]}}, "it offers the aspect ratios 1:1, 16:9"),
        (PROMPT | {"width": {}}, "asked for 768 x 512 pixels: choose"),
    ],
)
def test_a_size_that_the_model_cannot_be_asked_for_is_refused_before_anything_is_paid(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProviderError, match=said) as caught:
        build_input(SIZED, schema(fields))

    assert caught.value.kind is ProviderErrorKind.PERMANENT_INPUT


@pytest.mark.parametrize(
    ("seed", "maximum", "sent"),
    [
        (2**32 - 1, 2**31 - 1, 2**31 - 1),
        (2**31, 2**31 - 1, 0),
        (5, 2**31 - 1, 5),
        (2**32 - 1, None, 2**32 - 1),
        (10, 9, 0),
        (10, 0, 10),
        (10, "9", 10),
        (10, True, 10),
    ],
)
def test_a_seed_is_folded_into_what_the_model_takes(seed: int, maximum: object, sent: int) -> None:
    values = build_input(replace(REQUEST, seed=seed), schema(PROMPT | {"seed": {"maximum": maximum}}))

    assert values["seed"] == sent


def test_a_choice_is_found_behind_references_even_in_a_circle() -> None:
    known = schema(
        {"output_format": {"allOf": [{"$ref": "#/components/schemas/a"}]}, "loop": {"$ref": "#/x/b"}},
        a={"$ref": "#/components/schemas/format"},
        format={"enum": ["png"]},
        b={"$ref": "#/x/b"},
    )

    assert known.choices("output_format") == ["png"]
    assert known.choices("loop") == known.choices("nothing") == []


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                [
                    "openapi_schema",
                    "components",
                    "schemas",
                    "Input",
                    "properties",
                    "latest_version",
                    "allOf",
                    "$ref",
                    "enum",
                    "seed",
                    "maximum",
                    "aspect_ratio",
                    "output_format",
                ]
            ),
            inner,
        )
    ),
    max_leaves=30,
)


def refuses_at_most_the_size(known: InputSchema) -> bool:
    """Whether an input is built, or the request refused in the one way that there is."""
    try:
        return isinstance(build_input(replace(SIZED, seed=2**32 - 1), known), dict)
    except ProviderError as error:
        return error.kind is ProviderErrorKind.PERMANENT_INPUT


@given(json)
def test_no_document_breaks_it(document: object) -> None:
    known = InputSchema.read(document)

    assert known is None or refuses_at_most_the_size(known)


@given(json)
def test_no_rules_of_an_input_break_it(rules: object) -> None:
    known = schema(dict.fromkeys(("prompt", "seed", "aspect_ratio", "output_format", "width"), rules))

    assert refuses_at_most_the_size(known)
