"""Public shapes of results."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from fleek.core.urls import Urls

MEDIA_EXAMPLE: dict[str, Any] = {
    "id": "01920000-0000-7000-8000-0000000000a1",
    "job_id": "01920000-0000-7000-8000-000000000001",
    "index": 0,
    "content_type": "image/png",
    "size_bytes": 482113,
    "width": 1024,
    "height": 1024,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "thumbhash": "1QcSHQRnh493V4dIh4eXh1h4kJUI",
    "seed": 7,
    "created_at": "2026-11-20T12:00:00Z",
    "stored_at": "2026-11-20T12:00:01Z",
    "expires_at": None,
    "content_url": "http://127.0.0.1:8000/v1/media/content/01920000-0000-7000-8000-0000000000a1",
    "signed_url": None,
}


class MediaOut(BaseModel):
    """One result. What is about its bytes is null until they are stored."""

    model_config = ConfigDict(title="Media", json_schema_extra={"examples": [MEDIA_EXAMPLE]})

    id: UUID
    job_id: UUID
    index: int = Field(description="Which output of the job this is, from 0")
    content_type: str | None
    size_bytes: int | None
    width: int | None = Field(description="Pixels")
    height: int | None = Field(description="Pixels")
    sha256: str | None = Field(description="Hex digest of the stored bytes")
    thumbhash: str | None = Field(
        description="Base64 of a blurred placeholder, see evanw.github.io/thumbhash"
    )
    seed: int | None
    created_at: datetime
    stored_at: datetime | None
    expires_at: datetime | None
    content_url: str = Field(description="Answers with a redirect to a signed URL of the bytes")
    signed_url: str | None = Field(description="Only when asked for with `include=signed_url`")

    @classmethod
    def from_row(cls, row: Any, urls: Urls, signed_url: str | None = None) -> MediaOut:  # noqa: ANN401  a media row
        """The public shape of a row of `media`."""
        return cls(
            id=row.id,
            job_id=row.job_id,
            index=row.index,
            content_type=row.content_type,
            size_bytes=row.size_bytes,
            width=row.width,
            height=row.height,
            sha256=row.sha256,
            thumbhash=row.thumbhash,
            seed=row.seed,
            created_at=row.created_at,
            stored_at=row.stored_at,
            expires_at=row.expires_at,
            content_url=urls.content(row.id),
            signed_url=signed_url,
        )


class MediaPage(BaseModel):
    """A page of results, newest first."""

    items: list[MediaOut]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null at the end")


class ContentUrl(BaseModel):
    """A short-lived URL of the bytes."""

    url: str
    expires_at: datetime
