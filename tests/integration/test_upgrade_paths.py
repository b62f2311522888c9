"""Migrations with data in the way: from each earlier revision to the newest one and back, nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from tests.queueing import Queue

from fleek.core.job import Reason, Status
from fleek.db import migrate
from fleek.db.session import Database
from fleek.local.postgres import PostgresServer

CreateDatabase = Callable[[str], str]

FIRST_ROWS = """
INSERT INTO jobs (
    id, owner_id, queue, model, n, status, reason, priority, max_attempts, deadline_at, event_sequence, fence,
    failures, resuming, lease_expires_at, worker, error_code, error_message, finished_at, progress
)
SELECT
    ('01980000-0000-7000-8000-00000000000' || number)::uuid, 'local', 'default', 'fake', 1, status, reason,
    number, 4, now() + interval '1 day', events, fence, failures, resuming,
    CASE WHEN status = 'processing' THEN now() - interval '1 hour' END,
    CASE WHEN status = 'processing' THEN 'worker-1' END,
    CASE WHEN status = 'error' THEN 'transient' END, CASE WHEN status = 'error' THEN 'no \u2603' END,
    CASE WHEN status IN ('completed', 'error', 'canceled') THEN now() END,
    CASE WHEN status = 'completed' THEN 1 END
FROM (VALUES
    (1, 'in_queue', 'accepted', 1, 0, 0, false), (2, 'in_queue', 'retry_scheduled', 3, 1, 1, false),
    (3, 'in_queue', 'interrupted', 3, 1, 0, true), (4, 'processing', 'claimed', 2, 1, 0, false),
    (5, 'completed', 'completed', 3, 1, 0, false), (6, 'error', 'failed', 3, 1, 1, false),
    (7, 'canceled', 'canceled', 2, 0, 0, false), (8, 'error', 'ambiguous_submission', 3, 1, 0, false)
) AS job (number, status, reason, events, fence, failures, resuming);
INSERT INTO job_requests (job_id, prompt, parameters, input, metadata, deadline_seconds)
SELECT id, 'a lighthouse ' || priority, '{"seed": 7, "width": null, "height": null, "negative_prompt": null, \
"output_format": "png"}', '{"steps": 4}', '{"order": "1234"}', 86400 FROM jobs;
INSERT INTO attempts (
    job_id, number, worker, run_deadline_at, finished_at, outcome, error_code, metrics, celery_task_id
)
SELECT id, 1, 'worker-1', now(), CASE WHEN status <> 'processing' THEN now() END,
    CASE WHEN status <> 'processing' THEN reason END, error_code, '{"seconds": 1.5}', 'task'
FROM jobs WHERE fence = 1;
INSERT INTO submissions (
    job_id, ordinal, first_index, count, provider, model_ref, request_hash, seed, handle, handle_id,
    accepted_at, resolved_at, resolution, cost
)
SELECT id, 1, 0, 1, 'fake', 'vendor/fake', 'hash', 7,
    CASE WHEN priority <> 8 THEN '{"id": "x"}'::jsonb END, CASE WHEN priority <> 8 THEN 'h' || priority END,
    now(), CASE WHEN status <> 'in_queue' THEN now() END,
    CASE WHEN status = 'completed' THEN 'result' WHEN status = 'error' THEN 'ambiguous' END,
    CASE WHEN status = 'completed' THEN 0.003 END
FROM jobs WHERE priority IN (3, 5, 8);
INSERT INTO media (
    id, job_id, owner_id, index, seed, key, content_type, size_bytes, width, height, sha256, thumbhash,
    stored_at
)
SELECT ('01980000-0000-7000-8000-10000000000' || priority)::uuid, id, owner_id, 0, 7,
    CASE WHEN done THEN 'media/' || id || '/x/1.png' END, CASE WHEN done THEN 'image/png' END,
    CASE WHEN done THEN 100 END, CASE WHEN done THEN 8 END, CASE WHEN done THEN 8 END,
    CASE WHEN done THEN repeat('0', 64) END, CASE WHEN done THEN 'abc' END, CASE WHEN done THEN now() END
FROM (SELECT *, status = 'completed' AS done FROM jobs) AS job;
INSERT INTO events (job_id, sequence, kind, data)
SELECT id, sequence, kind[sequence], '{"reason": "x"}' FROM jobs, LATERAL (
    SELECT ARRAY['accepted', CASE WHEN fence = 0 THEN 'canceled' ELSE 'claimed' END, CASE
        WHEN reason = 'retry_scheduled' THEN 'retry_scheduled' WHEN status = 'in_queue' THEN 'deferred'
        WHEN status = 'error' THEN 'failed' ELSE 'completed' END] AS kind
) AS history, generate_series(1, event_sequence) AS sequence;
INSERT INTO idempotency_keys (owner_id, operation, key, fingerprint, job_id)
SELECT 'local', 'generate', 'key-' || priority, 'print', id FROM jobs;
INSERT INTO lane_state VALUES ('fake', 'another', now() + interval '1 day', 'paused by an operator')
"""
"""Every table of the first revision, a job in every state, and orders that are open, done and lost."""

ROWS = {
    "e7e9eec221b6": FIRST_ROWS,
    "3c1b6f0d9a52": "",
    "9d2e4c71ab05": "INSERT INTO log_entries (at, level, event, process, job_id) "
    "SELECT now(), 'warning', 'attempt_failed', 'worker-1', id FROM jobs",
}
"""What each revision makes room for, beside what is there already."""

_SCRIPTS = ScriptDirectory(str(migrate._SCRIPTS))
REVISIONS = [script.revision for script in reversed(list(_SCRIPTS.walk_revisions()))]
"""The oldest first."""


class Upgraded:
    """One database, at whatever revision the test has moved it to."""

    def __init__(self, postgres: PostgresServer, url: str) -> None:
        self._postgres = postgres
        self.url = url
        self._name = str(make_url(url).database)

    def move(self, revision: str) -> None:
        """Up or down, in a thread: migrations run an event loop of their own."""
        with ThreadPoolExecutor(1) as pool:
            now = self.query("SELECT to_regclass('alembic_version')") and self.query(
                "SELECT version_num FROM alembic_version"
            )
            is_up = not now or REVISIONS.index(now) < REVISIONS.index(revision)
            pool.submit(migrate.upgrade if is_up else migrate.downgrade, self.url, revision).result()

    def query(self, sql: str) -> str:
        return self._postgres.query(sql, self._name)

    def tables(self) -> list[str]:
        found = self.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        return [name for name in found.splitlines() if name != "alembic_version"]

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """Every row of every table."""
        ordered = "SELECT coalesce(json_agg(to_jsonb(t) ORDER BY t::text), '[]') FROM {} AS t"
        return {name: json.loads(self.query(ordered.format(name))) for name in self.tables()}


@pytest.fixture
def database(postgres: PostgresServer, create_database: CreateDatabase) -> Upgraded:
    """An empty one."""
    return Upgraded(postgres, create_database("template0"))


def fill(database: Upgraded, revision: str) -> None:
    """Everything that the revision has room for."""
    for known in REVISIONS[: REVISIONS.index(revision) + 1]:
        if ROWS[known]:
            database.query(ROWS[known])


def lost(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of which none says the same, or more, any longer."""
    return [
        row
        for row in old
        if not any(all(one.get(name) == value for name, value in row.items()) for one in new)
    ]


def test_every_revision_has_rows_to_migrate() -> None:
    assert list(ROWS) == REVISIONS


def test_the_rows_fill_every_table_and_every_state(database: Upgraded) -> None:
    database.move(REVISIONS[-1])
    fill(database, REVISIONS[-1])
    rows = database.rows()

    assert [name for name, found in rows.items() if not found] == []
    assert {row["status"] for row in rows["jobs"]} == set(Status)
    assert {row["reason"] for row in rows["jobs"]} < set(Reason)


@pytest.mark.parametrize("revision", REVISIONS[:-1])
async def test_data_of_an_earlier_revision_goes_up_and_down_and_can_be_worked_with(
    database: Upgraded, revision: str
) -> None:
    database.move(revision)
    fill(database, revision)
    before = database.rows()
    database.move(REVISIONS[-1])
    after = database.rows()
    broken = database.query(
        "SELECT conname FROM pg_constraint WHERE NOT convalidated "
        "UNION SELECT indexrelid::regclass::name FROM pg_index WHERE NOT indisvalid"
    )
    database.move(revision)
    back = database.rows()
    database.move(REVISIONS[-1])

    assert [row for name, rows in before.items() for row in lost(rows, after[name])] == []
    assert {name: len(rows) for name, rows in before.items()} == {name: len(after[name]) for name in before}
    assert broken == ""
    assert back == before
    await work_with(database.url)


async def work_with(url: str) -> None:
    """This release claims, completes, rescues, retries and deletes what the earlier one has left."""
    database = Database(url)
    queue = Queue(database)
    try:
        await queue.check_histories()
        await queue.rescue_all()
        await queue.make_due()
        for job in await queue.claim(9):
            assert await queue.finish(job)
        failed = await queue.query("SELECT id FROM jobs WHERE reason = 'failed'")
        assert await queue.retry(failed[0].id) is not None
        assert await queue.finish(await queue.claim_one())
        await queue.check_histories()
        states = {row.status for row in await queue.query("SELECT status FROM jobs")}
        await queue.change("DELETE FROM jobs")
    finally:
        await database.aclose()

    assert states == {Status.COMPLETED, Status.ERROR, Status.CANCELED}
