"""The schema: it goes up and down, is what the models say, and refuses what must not be true."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from tests.queueing import Queue

from fleek.bootstrap.tables import load_metadata
from fleek.db import migrate

BARE = "template0"
CreateDatabase = Callable[[str], str]

_DEFINITIONS = """
SELECT 'table ' || relname AS name, coalesce(array_to_string(reloptions, ','), '') AS definition
FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'column ' || table_name || '.' || column_name,
    concat_ws(' ', data_type, is_nullable, column_default, generation_expression)
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL
SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT 'constraint ' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
"""


def definitions(url: str) -> dict[str, str]:
    """Every table, column, index and constraint of Fleek's, as PostgreSQL describes it."""

    def read(connection: Connection) -> dict[str, str]:
        rows = connection.execute(text(_DEFINITIONS))
        return {row.name: row.definition for row in rows if "alembic" not in row.name}

    return asyncio.run(with_connection(url, read))


async def with_connection(url: str, work: Callable[[Connection], Any]) -> Any:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        found = await connection.run_sync(work)
    await engine.dispose()
    return found


def test_the_schema_goes_up_down_to_nothing_and_up_again(create_database: CreateDatabase) -> None:
    url = create_database(BARE)
    assert asyncio.run(migrate.current(url)) is None

    migrate.upgrade(url)
    first = definitions(url)
    migrate.downgrade(url, "base")
    nothing = definitions(url)
    after = asyncio.run(migrate.current(url))
    migrate.upgrade(url)

    assert first["table jobs"] == "fillfactor=70"
    assert nothing == {}
    assert after is None
    assert definitions(url) == first
    assert asyncio.run(migrate.current(url)) == migrate.head()


@pytest.mark.slow
def test_a_server_that_does_not_tell_the_revision_is_given_up(create_database: CreateDatabase) -> None:
    async def ask_while_locked(url: str) -> None:
        engine = create_async_engine(url, poolclass=NullPool)
        async with engine.connect() as connection:
            await connection.execute(text("LOCK TABLE alembic_version"))
            try:
                async with asyncio.timeout(30):
                    await migrate.current(url)
            finally:
                await connection.rollback()
        await engine.dispose()

    url = create_database(BARE)
    migrate.upgrade(url)
    began = time.monotonic()

    with pytest.raises(TimeoutError):
        asyncio.run(ask_while_locked(url))

    assert time.monotonic() - began < 20


def test_the_schema_goes_down_by_steps(create_database: CreateDatabase, template_database: str) -> None:
    url = create_database(template_database)

    migrate.downgrade(url, "-1")

    assert asyncio.run(migrate.current(url)) != migrate.head()


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(
    create_database: CreateDatabase, template_database: str
) -> None:
    url = create_database(template_database)
    before = definitions(url)

    migrate.upgrade(url)

    assert definitions(url) == before


def test_of_many_processes_that_upgrade_at_once_one_does_the_work(create_database: CreateDatabase) -> None:
    url = create_database(BARE)
    program = "import sys; from fleek.db.migrate import upgrade; upgrade(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, url], stderr=subprocess.PIPE) for _ in range(3)
    ]

    errors = [process.communicate(timeout=60)[1].decode() for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert asyncio.run(migrate.current(url)) == migrate.head()


def test_the_models_and_the_migrations_agree(create_database: CreateDatabase, template_database: str) -> None:
    def compare(connection: Connection) -> Any:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), load_metadata())

    def create_all(connection: Connection) -> None:
        load_metadata().create_all(connection)
        connection.commit()

    modelled, migrated = create_database(BARE), create_database(template_database)
    asyncio.run(with_connection(modelled, create_all))

    assert asyncio.run(with_connection(migrated, compare)) == []
    assert definitions(migrated) == definitions(modelled)


def test_every_check_is_tried_by_these_tests(create_database: CreateDatabase, template_database: str) -> None:
    found = {name.partition(" ")[2] for name in definitions(create_database(template_database))}

    assert {name for name in found if name.startswith("ck_")} == {
        name for name, _ in BROKEN if name.startswith("ck_")
    }


def test_the_sql_can_be_written_out_for_a_database_administrator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command.upgrade(migrate._config("postgresql+asyncpg://fleek@/fleek"), "head", sql=True)

    written = capsys.readouterr().out
    assert "CREATE TABLE jobs" in written
    assert written.count("COMMIT") == 1


BROKEN = [
    ("ck_jobs_status", "UPDATE jobs SET status = 'canceling'"),
    ("ck_jobs_reason", "UPDATE jobs SET reason = 'because'"),
    ("ck_jobs_lease", "UPDATE jobs SET lease_expires_at = now()"),
    ("ck_jobs_lease", "UPDATE jobs SET status = 'processing'"),
    ("ck_jobs_finished_at", "UPDATE jobs SET finished_at = now()"),
    ("ck_jobs_finished_at", "UPDATE jobs SET status = 'completed'"),
    ("ck_jobs_finished_at", "UPDATE jobs SET status = 'canceled'"),
    ("ck_jobs_error_code", "UPDATE jobs SET status = 'error', finished_at = now()"),
    ("ck_jobs_resuming", "UPDATE jobs SET resuming = true, status = 'canceled', finished_at = now()"),
    ("ck_jobs_n", "UPDATE jobs SET n = 0"),
    ("ck_jobs_priority", "UPDATE jobs SET priority = 11"),
    ("ck_jobs_priority", "UPDATE jobs SET priority = -11"),
    ("ck_jobs_max_attempts", "UPDATE jobs SET max_attempts = 0"),
    ("ck_jobs_max_attempts", "UPDATE jobs SET max_attempts = 11"),
    ("ck_jobs_failures", "UPDATE jobs SET failures = max_attempts + 1"),
    ("ck_jobs_failures", "UPDATE jobs SET failures = -1"),
    ("ck_jobs_counters", "UPDATE jobs SET deferrals = -1"),
    ("ck_jobs_counters", "UPDATE jobs SET crashes = -1"),
    ("ck_jobs_counters", "UPDATE jobs SET fence = -1"),
    ("ck_jobs_progress", "UPDATE jobs SET progress = 1.1"),
    ("ck_jobs_progress", "UPDATE jobs SET progress = 'NaN'"),
    ("ck_attempts_finished_at", "UPDATE attempts SET outcome = 'completed'"),
    ("ck_attempts_finished_at", "UPDATE attempts SET finished_at = now()"),
    ("ck_attempts_outcome", "UPDATE attempts SET outcome = 'lost', finished_at = now()"),
    ("ck_submissions_resolved_at", "UPDATE submissions SET resolution = 'failed'"),
    ("ck_submissions_resolved_at", "UPDATE submissions SET resolved_at = now()"),
    ("ck_submissions_resolution", "UPDATE submissions SET resolution = 'paid', resolved_at = now()"),
    ("ck_submissions_handle", "UPDATE submissions SET handle_id = 'x'"),
    ("ck_submissions_handle", "UPDATE submissions SET handle = '{}'"),
    ("ck_media_stored_whole", "UPDATE media SET key = 'x'"),
    ("ck_media_stored_whole", "UPDATE media SET stored_at = now()"),
    ("ck_media_index", "UPDATE media SET index = -1"),
    (
        "ck_media_size_bytes",
        "UPDATE media SET stored_at = now(), key = 'x', content_type = 'x', size_bytes = 0, sha256 = 'x'",
    ),
    ("ck_events_kind", "UPDATE events SET kind = 'exploded'"),
    (
        "ck_log_entries_level",
        "INSERT INTO log_entries (at, level, event, process) VALUES (now(), 'loud', 'x', 'x')",
    ),
    (
        "uq_submissions_open",
        "INSERT INTO submissions SELECT (jsonb_populate_record(s, '{\"ordinal\": 9}')).* FROM submissions s",
    ),
    ("uq_media_job_id_index", "UPDATE media SET index = 0"),
    ("pk_attempts", "INSERT INTO attempts SELECT * FROM attempts"),
]


@pytest.mark.parametrize(("constraint", "statement"), BROKEN)
async def test_the_database_refuses_what_must_not_be_true(
    queue: Queue, constraint: str, statement: str
) -> None:
    running = await queue.accept_and_claim(n=2)
    await queue.order(running)
    if statement.startswith("UPDATE jobs"):
        await queue.change("DELETE FROM jobs")
        await queue.accept()

    with pytest.raises(IntegrityError, match=constraint):
        await queue.change(statement)
