"""Replicate's published OpenAPI document as validators, and the documents of the fake's models."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema_rs import Draft202012Validator

_DOCUMENT = Path(__file__).parent / "data" / "replicate-openapi.json"


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator of one of the document's `components.schemas`."""
    document = json.loads(_DOCUMENT.read_text())
    schemas = {key: _as_json_schema(schema) for key, schema in document["components"]["schemas"].items()}
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}},
        offline=True,
        validate_formats=True,
    )


def schemas_of(owner: str) -> dict[str, Any]:
    """The components of a model's document, as cog writes them: `acme` has sides, all others ratios."""
    fields: dict[str, Any] = {
        "prompt": {"type": "string", "title": "Prompt", "x-order": 0},
        "seed": {"type": "integer", "title": "Seed", "maximum": 2**31 - 1},
        "num_outputs": {"type": "integer", "default": 1, "minimum": 1, "maximum": 4},
        "output_format": {"allOf": [{"$ref": "#/components/schemas/output_format"}], "default": "webp"},
    }
    if owner == "acme":
        fields |= {"width": {"type": "integer"}, "height": {"type": "integer"}, "negative_prompt": {}}
    else:
        fields["aspect_ratio"] = {"allOf": [{"$ref": "#/components/schemas/aspect_ratio"}], "default": "1:1"}
    return {
        "Input": {"type": "object", "title": "Input", "required": ["prompt"], "properties": fields},
        "aspect_ratio": {"enum": ["1:1", "16:9", "3:2"], "type": "string"},
        "output_format": {"enum": ["webp", "jpg", "png"], "type": "string"},
    }


def _as_json_schema(value: Any) -> Any:
    """OpenAPI 3.0 writes `nullable: true` where JSON Schema has a second type.

    The document's one `oneOf` has two branches that both fit "hidden", which Replicate answers all the time:
    what is meant is `anyOf`.
    """
    if isinstance(value, list):
        return [_as_json_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {("anyOf" if key == "oneOf" else key): _as_json_schema(item) for key, item in value.items()}
    if schema.pop("nullable", False) and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    return schema
