"""Which object keys Fleek uses: the same rule for a disk, a bucket and a signed URL."""

from __future__ import annotations

import re

MAX_KEY_LENGTH = 512
"""Characters; S3 allows 1,024 bytes and a prefix may stand in front of it."""

_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def is_safe_key(key: str) -> bool:
    """Whether `key` is made of plain segments: none is empty, hidden, `.` or `..`, none needs escaping."""
    return len(key) <= MAX_KEY_LENGTH and _KEY.fullmatch(key) is not None


def require_safe_key(key: str) -> None:
    """Raise ValueError for a key that no part of Fleek makes: it could leave the store's folder."""
    if not is_safe_key(key):
        message = f"not an object key: {key[:MAX_KEY_LENGTH]!r}"
        raise ValueError(message)
