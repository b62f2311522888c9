"""Index failed jobs.

Revision ID: 3c1b6f0d9a52
Revises: e7e9eec221b6
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "3c1b6f0d9a52"
down_revision = "e7e9eec221b6"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not concurrently: that would give up the lock which keeps two migrations apart. Writes wait for one
    # pass over the table.
    op.create_index(
        "ix_jobs_failed",
        "jobs",
        ["owner_id", "error_code", "created_at", "id"],
        postgresql_where=sa.text("status = 'error'"),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_failed", table_name="jobs")
