"""Rows of jobs. Every column has a sentence where its name does not say all of it."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Computed,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    Numeric,
    SmallInteger,
    Text,
    desc,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from fleek.core.job import TERMINAL, Reason, Status
from fleek.db.base import Base

_TIMESTAMP = DateTime(timezone=True)
_NOW = text("clock_timestamp()")
_ZERO = text("0")


def _list(values: type[Status | Reason] | frozenset[Status] | tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in sorted(values))


class Job(Base):
    """The moving part of one generation request: narrow, since it is updated often (HOT updates)."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status IN ({_list(Status)})", name="status"),
        CheckConstraint(f"reason IN ({_list(Reason)})", name="reason"),
        CheckConstraint("(status = 'processing') = (lease_expires_at IS NOT NULL)", name="lease"),
        CheckConstraint(f"(status IN ({_list(TERMINAL)})) = (finished_at IS NOT NULL)", name="finished_at"),
        CheckConstraint("status <> 'error' OR error_code IS NOT NULL", name="error_code"),
        CheckConstraint("NOT resuming OR status = 'in_queue'", name="resuming"),
        CheckConstraint("n >= 1", name="n"),
        CheckConstraint("priority BETWEEN -10 AND 10", name="priority"),
        CheckConstraint("max_attempts BETWEEN 1 AND 10", name="max_attempts"),
        CheckConstraint("failures BETWEEN 0 AND max_attempts", name="failures"),
        CheckConstraint("deferrals >= 0 AND crashes >= 0 AND fence >= 0", name="counters"),
        CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
        Index(
            "ix_jobs_queue_due",
            "queue",
            "model",
            "owner_id",
            desc("priority"),
            "available_at",
            "id",
            postgresql_where=text("status = 'in_queue'"),
        ),
        Index(
            "ix_jobs_queue_resuming",
            "queue",
            "available_at",
            postgresql_where=text("status = 'in_queue' AND resuming"),
        ),
        Index("ix_jobs_processing", "id", postgresql_where=text("status = 'processing'")),
        Index("ix_jobs_owner_id_created_at_id", "owner_id", "created_at", "id"),
        # Few jobs fail, and their operator looks for just those: by code, newest first.
        Index(
            "ix_jobs_failed",
            "owner_id",
            "error_code",
            "created_at",
            "id",
            postgresql_where=text("status = 'error'"),
        ),
        # What ended long ago is found by when it ended.
        Index("ix_jobs_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        # A page is rewritten less often when an update finds room in it: HOT, no index touched.
        {"postgresql_with": {"fillfactor": 70}},
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(Text)
    """`local` until keys exist."""
    queue: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    n: Mapped[int] = mapped_column(SmallInteger)
    status: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    """Why the last change happened."""
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=_ZERO)
    """-10..10; orders the jobs of one owner."""
    available_at: Mapped[datetime] = mapped_column(_TIMESTAMP, server_default=_NOW)
    """Not claimed before this."""
    deadline_at: Mapped[datetime] = mapped_column(_TIMESTAMP)
    """Stops new orders and waiting, never the storing of a finished result."""
    failures: Mapped[int] = mapped_column(SmallInteger, server_default=_ZERO)
    max_attempts: Mapped[int] = mapped_column(SmallInteger)
    deferrals: Mapped[int] = mapped_column(Integer, server_default=_ZERO)
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default=_ZERO)
    resuming: Mapped[bool] = mapped_column(Boolean, server_default=text("false"))
    """In the queue with an open order: claimed first, exempt from priority, fairness and caps."""
    fence: Mapped[int] = mapped_column(Integer, server_default=_ZERO)
    """Raised by every claim; a transition applies only under the fence of its own claim."""
    lease_expires_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    worker: Mapped[str | None] = mapped_column(Text)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    progress: Mapped[float | None] = mapped_column(REAL)
    """0..1; NULL means unknown."""
    event_sequence: Mapped[int] = mapped_column(Integer, server_default=_ZERO)
    """The sequence of the job's last event."""
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(_TIMESTAMP, server_default=_NOW)
    started_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    """The first claim."""
    finished_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)


class JobRequest(Base):
    """What was asked. Insert-only, and apart from `jobs` so that its updates stay small."""

    __tablename__ = "job_requests"
    __table_args__ = (
        Index("ix_job_requests_prompt_words", "prompt_words", postgresql_using="gin"),
        Index(
            "ix_job_requests_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
            postgresql_where=text("metadata <> '{}'"),
        ),
    )

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    prompt: Mapped[str] = mapped_column(Text)
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """What every model is asked for: width, height, seed (ours where none was sent), negative_prompt,
    output_format."""
    input: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """What the model itself takes."""
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB)
    deadline_seconds: Mapped[int] = mapped_column(Integer)
    prompt_words: Mapped[Any] = mapped_column(
        TSVECTOR, Computed("to_tsvector('simple', prompt)", persisted=True)
    )


class Attempt(Base):
    """One claim of a job."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint("(finished_at IS NULL) = (outcome IS NULL)", name="finished_at"),
        CheckConstraint(f"outcome IN ({_list(Reason)})", name="outcome"),
    )

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    """The claim's fence: it grows over the job's life and is never reused."""
    worker: Mapped[str] = mapped_column(Text)
    celery_task_id: Mapped[str | None] = mapped_column(Text)
    """The wake-up that led to the claim; NULL where the worker looked by itself."""
    started_at: Mapped[datetime] = mapped_column(_TIMESTAMP, server_default=_NOW)
    run_deadline_at: Mapped[datetime] = mapped_column(_TIMESTAMP)
    """Renewing the lease cannot extend this."""
    finished_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    outcome: Mapped[str | None] = mapped_column(Text)
    """The reason of the change that ended it."""
    error_code: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    metrics: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


class Submission(Base):
    """One order placed with a provider: first the intent, then the handle, then how it ended."""

    __tablename__ = "submissions"
    __table_args__ = (
        CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="resolved_at"),
        CheckConstraint("(handle IS NULL) = (handle_id IS NULL)", name="handle"),
        CheckConstraint(
            f"resolution IN ({_list(('result', 'rejected', 'failed', 'canceled', 'ambiguous'))})",
            name="resolution",
        ),
        Index("uq_submissions_provider_handle_id", "provider", "handle_id", unique=True),
        Index(
            "uq_submissions_open",
            "job_id",
            "first_index",
            unique=True,
            postgresql_where=text("resolved_at IS NULL"),
        ),
    )

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(Integer, primary_key=True)
    """1 for the job's first order."""
    first_index: Mapped[int] = mapped_column(Integer)
    """The first output that this order is for."""
    count: Mapped[int] = mapped_column(Integer)
    provider: Mapped[str] = mapped_column(Text)
    model_ref: Mapped[str] = mapped_column(Text)
    request_hash: Mapped[str] = mapped_column(Text)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    intent_at: Mapped[datetime] = mapped_column(_TIMESTAMP, server_default=_NOW)
    handle: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    handle_id: Mapped[str | None] = mapped_column(Text)
    accepted_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    resolved_at: Mapped[datetime | None] = mapped_column(_TIMESTAMP)
    resolution: Mapped[str | None] = mapped_column(Text)
    cost: Mapped[Decimal | None] = mapped_column(Numeric(12, 6))
    """US dollars."""


class IdempotencyKey(Base):
    """A client's key and the job that it made."""

    __tablename__ = "idempotency_keys"

    owner_id: Mapped[str] = mapped_column(Text, primary_key=True)
    operation: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Text)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(_TIMESTAMP, server_default=_NOW)


class LaneState(Base):
    """A pause of everything a provider's model would do: a 429, a refused key, an operator's order."""

    __tablename__ = "lane_state"

    provider: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    paused_until: Mapped[datetime] = mapped_column(_TIMESTAMP)
    reason: Mapped[str] = mapped_column(Text)
