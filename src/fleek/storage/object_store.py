"""Opens the object store that a URL names."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from fleek.core.errors import ConfigurationError
from fleek.storage.adapter import StoreLimits
from fleek.storage.base import ObjectStorage
from fleek.storage.disk import DiskStorage, MemoryStorage
from fleek.storage.s3 import S3Location, S3Storage
from fleek.storage.signed_urls import UrlSigner

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXAMPLES = "file:///var/lib/fleek/media, s3://bucket/prefix or memory://"


def utc_now() -> datetime:
    """The time that signed URLs expire by."""
    return datetime.now(UTC)


def open_storage(  # noqa: PLR0913  one argument a setting
    url: str,
    *,
    signer: UrlSigner,
    endpoint: str | None = None,
    public_endpoint: str | None = None,
    region: str = "us-east-1",
    path_style: bool = True,
    limits: StoreLimits | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> ObjectStorage:
    """The store behind `file:///folder`, `s3://bucket/prefix` or `memory://`.

    `signer` signs for stores that cannot; the other arguments are for S3. A folder is made, closed
    to other users; `prepare` makes a bucket. Raises ConfigurationError for any other URL.
    """
    parts = urlsplit(url)
    limits = limits or StoreLimits()
    if parts.scheme == "memory":
        return MemoryStorage(signer, limits, clock)
    if parts.scheme == "file":
        return DiskStorage(_folder(parts), signer, limits, clock)
    if parts.scheme == "s3" and parts.hostname:
        location = S3Location(
            bucket=_bucket(parts),
            prefix=parts.path.strip("/"),
            region=region,
            path_style=path_style,
            endpoint=endpoint,
            public_endpoint=public_endpoint,
        )
        return S3Storage(location, limits, clock)
    message = f"FLEEK_STORAGE_URL: must look like {_EXAMPLES}"
    raise ConfigurationError(message)


def _bucket(parts: SplitResult) -> str:
    if _BUCKET.fullmatch(parts.netloc) is None or parts.query or parts.fragment:
        message = (
            "FLEEK_STORAGE_URL: must be a bucket and a prefix only, such as s3://bucket/prefix; keys stand "
            "in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, an address in FLEEK_STORAGE_ENDPOINT"
        )
        raise ConfigurationError(message)
    return parts.netloc


def _folder(parts: SplitResult) -> Path:
    folder = Path(unquote(parts.path))
    if parts.netloc not in {"", "localhost"} or not folder.is_absolute():
        message = "FLEEK_STORAGE_URL: a file URL has three slashes and an absolute path: file:///folder"
        raise ConfigurationError(message)
    return folder
