"""A newer release migrates the database while processes of this one run: they go on, and can be started.

Migrations only add, in the release before the one that needs what they add.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

NEXT_RELEASE = (
    "ALTER TABLE jobs ADD COLUMN region text",
    "ALTER TABLE attempts ADD COLUMN tries integer NOT NULL DEFAULT 1",
    "ALTER TABLE media ADD COLUMN caption text NOT NULL DEFAULT ''",
    "ALTER TABLE events ALTER COLUMN data SET DEFAULT '{}'",
    "CREATE TABLE regions (name text PRIMARY KEY, job_id uuid REFERENCES jobs ON DELETE CASCADE)",
    "CREATE INDEX CONCURRENTLY ix_jobs_region ON jobs (region) WHERE status = 'in_queue'",
    "ALTER TABLE jobs ADD CONSTRAINT ck_jobs_region CHECK (region <> '') NOT VALID",
    "ALTER TABLE jobs VALIDATE CONSTRAINT ck_jobs_region",
    "UPDATE alembic_version SET version_num = 'next_release'",
)
"""The migration of a release to come."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """The invariants hold at the end."""
    with open_cluster() as cluster:
        yield cluster
        check_invariants(cluster)


@pytest.mark.slow
def test_processes_of_this_release_work_on_through_the_migration_of_the_next(cluster: Cluster) -> None:
    is_over, made = threading.Event(), list[str]()

    def submit_all_the_time() -> None:
        while not is_over.is_set():
            made.append(cluster.submit(f"lighthouse {len(made)}", model=PAID))

    client = threading.Thread(target=submit_all_the_time)
    client.start()
    cluster.wait_until(lambda: len(made) >= 3)
    for command in NEXT_RELEASE:
        cluster.query(command)
    before = len(made)
    cluster.wait_until(lambda: len(made) >= before + 3)
    is_over.set()
    client.join()
    ended = [cluster.wait_end(job_id) for job_id in made]
    cluster.workers[0].end()
    cluster.workers[0].start()
    after = cluster.wait_end(cluster.submit("with a worker that was started after it"))

    assert {(job["status"], job["failures"], len(job["attempts"])) for job in [*ended, after]} == {
        ("completed", 0, 1)
    }
