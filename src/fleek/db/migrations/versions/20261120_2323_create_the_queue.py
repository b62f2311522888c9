"""Create the queue: jobs, what was asked, attempts, orders, results, history.

Revision ID: e7e9eec221b6
Revises: nothing
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "e7e9eec221b6"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("n", sa.SmallInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "available_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failures", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("max_attempts", sa.SmallInteger(), nullable=False),
        sa.Column("deferrals", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("crashes", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("resuming", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.REAL(), nullable=True),
        sa.Column("event_sequence", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status = 'processing') = (lease_expires_at IS NOT NULL)", name=op.f("ck_jobs_lease")
        ),
        sa.CheckConstraint(
            "(status IN ('canceled', 'completed', 'error')) = (finished_at IS NOT NULL)",
            name=op.f("ck_jobs_finished_at"),
        ),
        sa.CheckConstraint("NOT resuming OR status = 'in_queue'", name=op.f("ck_jobs_resuming")),
        sa.CheckConstraint(
            "reason IN ('accepted', 'ambiguous_submission', 'canceled', 'claimed', 'completed', 'crash_loop', 'deadline_passed', 'deferred', 'failed', 'interrupted', 'lease_expired', 'retried_by_client', 'retry_scheduled')",
            name=op.f("ck_jobs_reason"),
        ),
        sa.CheckConstraint("status <> 'error' OR error_code IS NOT NULL", name=op.f("ck_jobs_error_code")),
        sa.CheckConstraint(
            "status IN ('canceled', 'completed', 'error', 'in_queue', 'processing')",
            name=op.f("ck_jobs_status"),
        ),
        sa.CheckConstraint("deferrals >= 0 AND crashes >= 0 AND fence >= 0", name=op.f("ck_jobs_counters")),
        sa.CheckConstraint("failures BETWEEN 0 AND max_attempts", name=op.f("ck_jobs_failures")),
        sa.CheckConstraint("max_attempts BETWEEN 1 AND 10", name=op.f("ck_jobs_max_attempts")),
        sa.CheckConstraint("n >= 1", name=op.f("ck_jobs_n")),
        sa.CheckConstraint("priority BETWEEN -10 AND 10", name=op.f("ck_jobs_priority")),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name=op.f("ck_jobs_progress")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("ix_jobs_owner_id_created_at_id", "jobs", ["owner_id", "created_at", "id"], unique=False)
    op.create_index(
        "ix_jobs_processing", "jobs", ["id"], unique=False, postgresql_where=sa.text("status = 'processing'")
    )
    op.create_index(
        "ix_jobs_queue_due",
        "jobs",
        ["queue", "model", "owner_id", sa.literal_column("priority DESC"), "available_at", "id"],
        unique=False,
        postgresql_where=sa.text("status = 'in_queue'"),
    )
    op.create_index(
        "ix_jobs_queue_resuming",
        "jobs",
        ["queue", "available_at"],
        unique=False,
        postgresql_where=sa.text("status = 'in_queue' AND resuming"),
    )
    op.create_table(
        "lane_state",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("provider", "model", name=op.f("pk_lane_state")),
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("celery_task_id", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("run_deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('accepted', 'ambiguous_submission', 'canceled', 'claimed', 'completed', 'crash_loop', 'deadline_passed', 'deferred', 'failed', 'interrupted', 'lease_expired', 'retried_by_client', 'retry_scheduled')",
            name=op.f("ck_attempts_outcome"),
        ),
        sa.CheckConstraint("(finished_at IS NULL) = (outcome IS NULL)", name=op.f("ck_attempts_finished_at")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "events",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column(
            "at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "kind IN ('accepted', 'claimed', 'submitted', 'resumed', 'deferred', 'retry_scheduled', 'completed', 'failed', 'canceled', 'retried')",
            name=op.f("ck_events_kind"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "sequence", name=op.f("pk_events")),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_idempotency_keys_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "operation", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_job_id"), "idempotency_keys", ["job_id"], unique=False)
    op.create_table(
        "job_requests",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("input", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("metadata", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("deadline_seconds", sa.Integer(), nullable=False),
        sa.Column(
            "prompt_words",
            postgresql.TSVECTOR(),
            sa.Computed("to_tsvector('simple', prompt)", persisted=True),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_requests_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_requests")),
    )
    op.create_index(
        "ix_job_requests_metadata",
        "job_requests",
        ["metadata"],
        unique=False,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=sa.text("metadata <> '{}'"),
    )
    op.create_index(
        "ix_job_requests_prompt_words", "job_requests", ["prompt_words"], unique=False, postgresql_using="gin"
    )
    op.create_table(
        "media",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("thumbhash", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(stored_at IS NULL) = (key IS NULL) AND (stored_at IS NULL) = (content_type IS NULL) AND (stored_at IS NULL) = (size_bytes IS NULL) AND (stored_at IS NULL) = (sha256 IS NULL)",
            name=op.f("ck_media_stored_whole"),
        ),
        sa.CheckConstraint("index >= 0", name=op.f("ck_media_index")),
        sa.CheckConstraint("size_bytes > 0", name=op.f("ck_media_size_bytes")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_media_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_media")),
    )
    op.create_index(
        "ix_media_expires_at",
        "media",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_index(
        "ix_media_owner_id_created_at_id", "media", ["owner_id", "created_at", "id"], unique=False
    )
    op.create_index("uq_media_job_id_index", "media", ["job_id", "index"], unique=True)
    op.create_table(
        "submissions",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("first_index", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("model_ref", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column(
            "intent_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("handle", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("handle_id", sa.Text(), nullable=True),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.Column("cost", sa.Numeric(precision=12, scale=6), nullable=True),
        sa.CheckConstraint(
            "resolution IN ('ambiguous', 'canceled', 'failed', 'rejected', 'result')",
            name=op.f("ck_submissions_resolution"),
        ),
        sa.CheckConstraint("(handle IS NULL) = (handle_id IS NULL)", name=op.f("ck_submissions_handle")),
        sa.CheckConstraint(
            "(resolved_at IS NULL) = (resolution IS NULL)", name=op.f("ck_submissions_resolved_at")
        ),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_submissions_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "ordinal", name=op.f("pk_submissions")),
    )
    op.create_index(
        "uq_submissions_open",
        "submissions",
        ["job_id", "first_index"],
        unique=True,
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_index(
        "uq_submissions_provider_handle_id", "submissions", ["provider", "handle_id"], unique=True
    )


def downgrade() -> None:
    op.drop_index("uq_submissions_provider_handle_id", table_name="submissions")
    op.drop_index(
        "uq_submissions_open", table_name="submissions", postgresql_where=sa.text("resolved_at IS NULL")
    )
    op.drop_table("submissions")
    op.drop_index("uq_media_job_id_index", table_name="media")
    op.drop_index("ix_media_owner_id_created_at_id", table_name="media")
    op.drop_index("ix_media_expires_at", table_name="media", postgresql_where=sa.text("deleted_at IS NULL"))
    op.drop_table("media")
    op.drop_index("ix_job_requests_prompt_words", table_name="job_requests", postgresql_using="gin")
    op.drop_index(
        "ix_job_requests_metadata",
        table_name="job_requests",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=sa.text("metadata <> '{}'"),
    )
    op.drop_table("job_requests")
    op.drop_index(op.f("ix_idempotency_keys_job_id"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_table("events")
    op.drop_table("attempts")
    op.drop_table("lane_state")
    op.drop_index(
        "ix_jobs_queue_resuming",
        table_name="jobs",
        postgresql_where=sa.text("status = 'in_queue' AND resuming"),
    )
    op.drop_index("ix_jobs_queue_due", table_name="jobs", postgresql_where=sa.text("status = 'in_queue'"))
    op.drop_index("ix_jobs_processing", table_name="jobs", postgresql_where=sa.text("status = 'processing'"))
    op.drop_index("ix_jobs_owner_id_created_at_id", table_name="jobs")
    op.drop_table("jobs")
