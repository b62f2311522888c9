"""Identifiers: UUIDv7 (RFC 9562, section 5.7), so that rows are stored in the order they were made."""

from __future__ import annotations

import secrets
import time
from uuid import UUID

_UNIX_MILLISECONDS_BITS = 48
_RANDOM_BITS = 74


def uuid7(unix_milliseconds: int, randomness: int) -> UUID:
    """The UUIDv7 of a moment and 74 random bits."""
    value = (unix_milliseconds & (1 << _UNIX_MILLISECONDS_BITS) - 1) << 80
    value |= 0x7 << 76
    value |= (randomness >> 62 & 0xFFF) << 64
    value |= 0b10 << 62
    value |= randomness & (1 << 62) - 1
    return UUID(int=value)


def new_id() -> UUID:
    """A fresh id. Its time only orders rows; nothing is decided by it."""
    return uuid7(time.time_ns() // 1_000_000, secrets.randbits(_RANDOM_BITS))


def parse_id(text: str) -> UUID | None:
    """A job's or media's id as sent, or None where it cannot be one of ours."""
    try:
        value = UUID(text)
    except ValueError:
        return None
    return value if value.version == 7 and str(value) == text.lower() else None  # noqa: PLR2004  UUID version 7
