"""Fleek's parameters under the names that a model of Replicate gives them.

What a model takes is in its OpenAPI document. Where that is not known, what practically every picture
model takes is sent: `prompt` and `seed`, and the sides if they were asked for. What the client put into
`input` always wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.core.media import OutputFormat
from fleek.providers.base import GenerationRequest

_PROMPTS = ("prompt", "text_prompt", "text")
_FORMATS = {
    OutputFormat.PNG: ("png",),
    OutputFormat.WEBP: ("webp",),
    OutputFormat.JPEG: ("jpeg", "jpg"),
}
_SIZES = frozenset({"width", "height", "size", "image_size", "aspect_ratio", "resolution", "megapixels"})
"""Inputs by which clients say the size themselves."""
_MAX_REFERENCES = 4
"""References that are followed from one to the next."""


@dataclass(frozen=True, slots=True)
class InputSchema:
    """The inputs of one model: for each its rules, with references resolved."""

    fields: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, document: object) -> Self | None:
        """From a model or a version as the API answers it; None where it holds no schema."""
        version = _dig(document, "latest_version") or document
        components = _dig(version, "openapi_schema", "components", "schemas")
        properties = _dig(components, "Input", "properties")
        if not isinstance(properties, dict):
            return None
        return cls({name: _resolved(rules, components) for name, rules in properties.items()})

    def choices(self, name: str) -> list[Any]:
        """The values that an input is restricted to; empty when it is free, or unknown."""
        values = self.fields.get(name, {}).get("enum")
        return values if isinstance(values, list) else []


def build_input(request: GenerationRequest, schema: InputSchema | None) -> dict[str, Any]:
    """The `input` of a prediction; the same for the same arguments, so that it can be recognised later.

    Raises a ProviderError for a size that the model cannot make.
    """
    if schema is not None:
        return {**dict(_mapped(request, schema)), **request.input}
    sides = {"width": request.width, "height": request.height} if request.size_asked else {}
    return {"prompt": request.prompt, "seed": request.seed, **sides, **request.input}


def _mapped(request: GenerationRequest, schema: InputSchema) -> Iterator[tuple[str, Any]]:
    prompt = next((name for name in _PROMPTS if name in schema.fields), None)
    if prompt is not None:
        yield prompt, request.prompt
    if "seed" in schema.fields:
        yield "seed", _folded(request.seed, schema.fields["seed"].get("maximum"))
    if request.negative_prompt is not None and "negative_prompt" in schema.fields:
        yield "negative_prompt", request.negative_prompt
    chosen = [name for name in _FORMATS[request.output_format] if name in schema.choices("output_format")]
    if chosen:
        yield "output_format", chosen[0]
    if request.size_asked:
        yield from _size(request, schema)


def _folded(seed: int, maximum: object) -> int:
    """A seed of 32 bits in the range of a model that takes fewer."""
    if isinstance(maximum, int) and not isinstance(maximum, bool) and 0 < maximum < seed:
        return seed % (maximum + 1)
    return seed


def _size(request: GenerationRequest, schema: InputSchema) -> Iterator[tuple[str, Any]]:
    """The sides where the model takes them, else the ratio where it offers that very one."""
    ratios = schema.choices("aspect_ratio")
    if "width" in schema.fields and "height" in schema.fields:
        yield "width", request.width
        yield "height", request.height
        if "custom" in ratios:
            # Such a model looks at the sides only when it is told to.
            yield "aspect_ratio", "custom"
        return
    divisor = math.gcd(request.width, request.height)
    ratio = f"{request.width // divisor}:{request.height // divisor}"
    if ratio in ratios:
        yield "aspect_ratio", ratio
    elif not _SIZES & request.input.keys():
        offered = f"; it offers the aspect ratios {', '.join(map(str, ratios))}" if ratios else ""
        asked = f"{request.width} x {request.height} pixels"
        message = f"The model cannot be asked for {asked}{offered}: choose a size in `input`"
        raise ProviderError(ProviderErrorKind.PERMANENT_INPUT, message)


def _resolved(rules: object, components: object) -> dict[str, Any]:
    """One input's rules; cog writes those of a choice as `allOf` with one reference."""
    found: dict[str, Any] = {}
    for _ in range(_MAX_REFERENCES):
        if not isinstance(rules, dict):
            break
        found = {**rules, **found}
        parts = rules.get("allOf")
        reference = parts[0] if isinstance(parts, list) and parts else rules
        target = reference.get("$ref") if isinstance(reference, dict) else None
        if not isinstance(target, str):
            break
        rules = _dig(components, target.rpartition("/")[2])
    return found


def _dig(value: object, *names: str) -> Any:  # noqa: ANN401  any JSON value
    """What lies under a path of names in foreign JSON; None where the path ends early."""
    for name in names:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
