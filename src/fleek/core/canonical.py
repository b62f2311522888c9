"""One body, one fingerprint: what decides whether two requests with one Idempotency-Key are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(body: Any) -> str:  # noqa: ANN401  any JSON value
    """SHA-256 (hex) of a JSON value's canonical form: keys sorted, no white space, UTF-8.

    It is taken of the body as it was sent, before any default is filled in, so that a default that
    changes between releases does not make an old key mean another body.
    """
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # JSON may escape half of a surrogate pair: such a body is refused elsewhere, and must not crash here.
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()
