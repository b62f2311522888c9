"""Rows of the history."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Integer, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from fleek.core.events import EventKind
from fleek.db.base import Base

_KINDS = ", ".join(f"'{kind}'" for kind in EventKind)


class Event(Base):
    """One thing that happened to a job, written in the transaction of the change. Never updated."""

    __tablename__ = "events"
    __table_args__ = (CheckConstraint(f"kind IN ({_KINDS})", name="kind"),)

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True)
    """1 for the first event of the job, without gaps; the id of a server-sent event."""
    kind: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("clock_timestamp()"))
