"""What PostgreSQL can hold: words and facts of providers are made to fit, since a job must be able to move.

Its text holds no NUL, UTF-8 no half of a surrogate pair, JSON no NaN; a backend's reply may have all three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json


def storable_text(words: str) -> str:
    """The same words, with `U+FFFD` or `?` for what cannot be stored."""
    return words.replace("\0", "\ufffd").encode(errors="replace").decode()


def storable_json(value: Any) -> str:  # noqa: ANN401  whatever a provider tells
    """JSON text that `jsonb` takes; null for NaN and infinities, `str(object)` for what has no JSON form."""
    return to_json(_storable(value), fallback=lambda other: storable_text(str(other))).decode()


def _storable(value: Any) -> Any:  # noqa: ANN401  any part of it
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {storable_text(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value
