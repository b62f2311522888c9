"""Opaque signed cursors of keyset pagination.

A cursor holds the sort key of the last row of a page. It is signed together with the owner and the
filters of its list, so that a cursor of another list, or an altered one, is refused instead of
giving a page that nobody asked for.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from fleek.core.errors import InvalidCursor

_VERSION = b"\x01"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_BYTES, _ID_BYTES, _SIGNATURE_BYTES = 8, 16, 16
_LENGTH = len(_VERSION) + _TIME_BYTES + _ID_BYTES + _SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class Position:
    """The sort key of a row: newest first by (`created_at`, `id`)."""

    created_at: datetime
    id: UUID


class CursorCodec:
    """Signs and reads cursors with a key that serves no other purpose."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"fleek cursor", hashlib.sha256)

    def encode(self, position: Position, scope: str) -> str:
        """The cursor after `position` in the list that `scope` (owner and filters) names."""
        microseconds = (position.created_at - _EPOCH) // timedelta(microseconds=1)
        payload = _VERSION + microseconds.to_bytes(_TIME_BYTES, signed=True) + position.id.bytes
        return _to_base64(payload + self._sign(payload, scope))

    def decode(self, cursor: str, scope: str) -> Position:
        """The position in a cursor; raises InvalidCursor unless it was made here for this list."""
        raw = _from_base64(cursor)
        payload, signature = raw[:-_SIGNATURE_BYTES], raw[-_SIGNATURE_BYTES:]
        if len(raw) != _LENGTH or not hmac.compare_digest(signature, self._sign(payload, scope)):
            raise InvalidCursor
        microseconds = int.from_bytes(payload[1 : 1 + _TIME_BYTES], signed=True)
        return Position(_EPOCH + timedelta(microseconds=microseconds), UUID(bytes=payload[1 + _TIME_BYTES :]))

    def _sign(self, payload: bytes, scope: str) -> bytes:
        return hmac.digest(self._key, payload + scope.encode(), hashlib.sha256)[:_SIGNATURE_BYTES]


def _to_base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _from_base64(cursor: str) -> bytes:
    """The bytes of a cursor in its one spelling; base64 has several for some."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCursor from None
    if _to_base64(raw) != cursor:
        raise InvalidCursor
    return raw
