"""Signed URLs of Fleek's own, for stores that cannot sign: a disk and memory.

The URL is a path on Fleek's API; whoever holds it may GET that one object until it expires.
"""

from __future__ import annotations

import base64
import hmac
import re
from datetime import datetime
from urllib.parse import urlencode

from fleek.core.errors import Forbidden
from fleek.storage.keys import is_safe_key

OBJECT_PREFIX = "media/"
"""Only results are ever signed, whatever else lies in the store."""

_PURPOSE = b"content-url"
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")


class UrlSigner:
    """Signs and verifies content URLs with a key that is derived for this purpose alone."""

    def __init__(self, key: bytes, path_prefix: str = "/v1/objects/") -> None:
        # The secret also signs cursors: a key per purpose keeps one kind from passing as another.
        self._key = hmac.digest(key, _PURPOSE, "sha256")
        self._path_prefix = path_prefix

    def sign(self, key: str, expires_at: datetime) -> str:
        """The path and query that answer with the object `key` until `expires_at` (aware; whole seconds).

        Raises ValueError for a key that is not that of a result.
        """
        if not _is_signable(key):
            message = f"not the key of a result: {key!r}"
            raise ValueError(message)
        expires = str(int(expires_at.timestamp()))
        query = urlencode({"expires": expires, "signature": self._signature(key, expires)})
        return f"{self._path_prefix}{key}?{query}"

    def verify(self, key: str, expires: str, signature: str, now: datetime) -> None:
        """Raise Forbidden unless `signature` was made for this key and time, and the time has not come.

        `expires` and `signature` are the query's parameters as they arrived: any text is safe here.
        """
        if not _is_signable(key) or _UNIX_SECONDS.fullmatch(expires) is None:
            raise Forbidden
        expected = self._signature(key, expires).encode()
        if not hmac.compare_digest(expected, signature.encode(errors="surrogatepass")):
            raise Forbidden
        if now.timestamp() >= int(expires):
            raise Forbidden

    def _signature(self, key: str, expires: str) -> str:
        message = f"GET\n{key}\n{expires}".encode()
        digest = hmac.digest(self._key, message, "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _is_signable(key: str) -> bool:
    return key.startswith(OBJECT_PREFIX) and is_safe_key(key)
