"""Rows of results."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, Integer, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from fleek.db.base import Base

_TIMESTAMP = DateTime(timezone=True)


class Media(Base):
    """One result. The row exists from accept on; what is about its bytes is empty until they are stored."""

    __tablename__ = "media"
    __table_args__ = (
        CheckConstraint(
            "(stored_at IS NULL) = (key IS NULL) AND (stored_at IS NULL) = (content_type IS NULL)"
            " AND (stored_at IS NULL) = (size_bytes IS NULL) AND (stored_at IS NULL) = (sha256 IS NULL)",
            name="stored_whole",
        ),
        CheckConstraint("index >= 0", name="index"),
        CheckConstraint("size_bytes > 0", name="size_bytes"),
        Index("uq_media_job_id_index", "job_id", "index", unique=True),
        Index("ix_media_owner_id_created_at_id", "owner_id", "created_at", "id"),
        Index("ix_media_expires_at", "expires_at", postgresql_where=text("deleted_at IS NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    owner_id: Mapped[str] = mapped_column(Text)
    index: Mapped[int] = mapped_column(Integer)
    """Which output of the job this is, from 0."""
    seed: Mapped[int | None] = mapped_column(BigInteger)
    key: Mapped[str | None] = mapped_column(Text)
    """Where the object store has the bytes; the fence of the attempt that stored them is in it."""
    content_type: Mapped[str | None] = mapped_column(Text)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    width: Mapped[int | None] = mapped_column(Integer)
    height: Mapped[int | None] = mapped_column(Integer)
    sha256: Mapped[str | None] = mapped_column(Text)
    """Hex digest of the stored bytes."""
    thumbhash: Mapped[str | None] = mapped_column(Text)
    """Base64 of a placeholder of about 25 bytes (https://evanw.github.io/thumbhash)."""
    created_at: Mapped[datetime] = mapped_column(_TIMESTAMP, server_default=text("clock_timestamp()"))
    stored_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    expires_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    deleted_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
