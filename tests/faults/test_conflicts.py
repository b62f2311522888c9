"""PostgreSQL rolls statements back so that others can go on: they are repeated, and nobody sees it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants

STATEMENTS = {
    "accepting": ("INSERT", "jobs"),
    "claiming": ("INSERT", "attempts"),
    "intending": ("INSERT", "submissions"),
    "recording": ("UPDATE", "submissions"),
    "storing": ("UPDATE", "media"),
    "finishing": ("UPDATE", "attempts"),
}
"""What a job's life writes; each is rolled back the first two times."""

_TROUBLE = """
DO $do$ BEGIN
CREATE SEQUENCE {name};
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- What a sequence has given is not taken back with its transaction.
    IF nextval('{name}') <= 2 THEN RAISE EXCEPTION 'as the test asks' USING ERRCODE = '{code}'; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER {name} AFTER {verb} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {name}();
END $do$
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The invariants hold at the end."""
    with open_cluster() as cluster:
        yield cluster
        check_invariants(cluster)


@pytest.mark.parametrize("code", ["40001", "40P01"], ids=["serialization-failure", "deadlock"])
def test_a_job_lives_on_as_if_nothing_had_been_rolled_back(cluster: Cluster, code: str) -> None:
    names = {f"trouble_{code}_{name}".lower(): where for name, where in STATEMENTS.items()}
    for name, (verb, table) in names.items():
        cluster.query(_TROUBLE.format(name=name, code=code, verb=verb, table=table))

    job = cluster.wait_end(cluster.submit(f"a lighthouse, {code}", model=PAID))

    troubles = [cluster.query(f"SELECT last_value FROM {name}")[0]["last_value"] for name in names]  # noqa: S608  names of ours
    assert min(troubles) >= 3
    assert (job["status"], job["failures"], len(job["attempts"])) == ("completed", 0, 1)
    assert len(cluster.paid(job["id"])) == 1


def test_a_cancel_that_is_rolled_back_is_repeated(cluster: Cluster) -> None:
    cluster.workers[0].kill()
    job = cluster.submit("a lighthouse to cancel")
    cluster.query(_TROUBLE.format(name="trouble_canceling", code="40P01", verb="UPDATE", table="jobs"))

    answer = cluster.post(f"/v1/media/jobs/{job}/cancel")
    cluster.workers[0].start()

    assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
