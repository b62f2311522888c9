"""Rows of log records."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Identity, Index, Integer, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from fleek.db.base import Base


class LogEntry(Base):
    """One structured record of a process. Never updated; deleted by age, and with its job.

    It names a job without a foreign key: a record may be written while its job is deleted, and
    keeping records must never make anything else wait or fail.
    """

    __tablename__ = "log_entries"
    __table_args__ = (
        CheckConstraint("level IN ('debug', 'info', 'warning', 'error', 'critical')", name="level"),
        Index("ix_log_entries_job_id_id", "job_id", "id", postgresql_where=text("job_id IS NOT NULL")),
        Index("ix_log_entries_at", "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    """When it happened, by the clock of the process."""
    level: Mapped[str] = mapped_column(Text)
    event: Mapped[str] = mapped_column(Text)
    """A constant name, such as `attempt_failed`."""
    process: Mapped[str] = mapped_column(Text)
    """Which process wrote it: a worker's name, or that of an api process."""
    job_id: Mapped[UUID | None] = mapped_column()
    attempt: Mapped[int | None] = mapped_column(Integer)
    """The fence of the attempt that it belongs to."""
    request_id: Mapped[str | None] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    """The record's facts, secrets taken out."""
