"""PostgreSQL crashes, is cut off at the worst moments, falls silent, is full or slow: rows 21 to 25.

Requests are told so at once, nothing that was accepted is lost, and all heals without a restart.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from tests.cluster.cluster import PAID, Cluster, open_cluster
from tests.cluster.invariants import check_invariants
from tests.cluster.load import Answer, Load, ask, at_once, generate, wait_all
from tests.cluster.proxy import FaultProxy

from fleek.local.postgres import DATABASE, ROLE

REFUSED_SECONDS = 6.0
"""Three times what a request may take to be told that the database is away."""
SMALL_DISK = 8 * 1024 * 1024
"""Bytes."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with open_cluster(apis=1, workers=2, database_statement_timeout="3") as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    pids = [part.pid for part in (*shared.apis, *shared.workers)]
    yield shared
    shared.heal()
    wait_until_accepting(shared)

    assert [part.exit_code for part in (*shared.apis, *shared.workers)] == [None] * 3
    assert [part.pid for part in (*shared.apis, *shared.workers)] == pids
    wait_until_all_ended(shared)
    check_invariants(shared)


def wait_until_accepting(cluster: Cluster) -> None:
    """Nobody restarts anything: the pools heal by themselves."""
    with cluster.client() as client:
        cluster.wait_until(lambda: generate(client, "are you well?").status == 202, 20)


def wait_until_all_ended(cluster: Cluster) -> None:
    cluster.wait_until(lambda: not cluster.query("SELECT id FROM jobs WHERE finished_at IS NULL"), 40)


def assert_told(answers: list[Answer]) -> None:
    """Each request was accepted, or refused with a time to come back, or its connection broke."""
    assert {answer.status for answer in answers} <= {202, 503, None}
    refused = [answer for answer in answers if answer.status == 503]
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert max(answer.seconds for answer in answers) < REFUSED_SECONDS


def assert_refused(answer: Answer) -> None:
    assert_told([answer])
    assert (answer.status, answer.body["code"]) == (503, "database_unavailable")


def readiness(cluster: Cluster) -> int | None:
    with cluster.client() as client:
        return ask(client, "GET", "/readyz").status


def jobs_of(cluster: Cluster, prompt: str) -> list[str]:
    rows = cluster.query("SELECT job_id FROM job_requests WHERE prompt = $1", prompt)
    return [str(row["job_id"]) for row in rows]


def completions(cluster: Cluster, job_id: str) -> int:
    sql = "SELECT FROM events WHERE job_id = $1::uuid AND kind = 'completed'"
    return len(cluster.query(sql, job_id))


def test_a_crash_of_the_database_under_load_loses_no_accepted_job(cluster: Cluster) -> None:
    with Load(cluster, "crashed") as load:
        time.sleep(0.5)
        cluster.crash_postgres()
        time.sleep(0.5)
        cluster.start_postgres()
        time.sleep(1)

    assert_told(load.answers)
    assert 503 in {answer.status for answer in load.answers}
    wait_all(cluster, load.accepted)


def test_a_database_that_refuses_connections_is_told_at_once(cluster: Cluster) -> None:
    cluster.proxies.postgres.refuse()
    with cluster.client() as client:
        answers = [generate(client, f"refused {number}") for number in range(5)]

    assert {answer.status for answer in answers} == {503}
    assert_told(answers)
    assert readiness(cluster) == 503


def test_an_accept_whose_commit_was_not_seen_makes_one_job(cluster: Cluster) -> None:
    prompt = "a commit that nobody saw"
    cluster.proxies.postgres.lose_reply_to(prompt.encode())
    with cluster.client() as client:
        first = generate(client, prompt, key="unseen-accept")
        again = generate(client, prompt, key="unseen-accept")

    assert cluster.proxies.postgres.has_lost_reply
    assert_refused(first)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (202, "true")
    assert jobs_of(cluster, prompt) == [again.job_id]


def test_a_finish_whose_commit_was_not_seen_completes_the_job_once(cluster: Cluster) -> None:
    job = cluster.submit("a finish that nobody saw", model=PAID, input={"fake": {"seconds": 1}})
    # The names of the stored objects travel in the finishing statement only.
    cluster.proxies.postgres.lose_reply_to(f"media/{job}/".encode())
    ended = cluster.wait_end(job)

    assert cluster.proxies.postgres.has_lost_reply
    assert (ended["status"], len(ended["attempts"])) == ("completed", 1)
    assert (completions(cluster, job), len(cluster.paid(job))) == (1, 1)


def test_a_handle_whose_commit_was_not_seen_is_recorded_once(cluster: Cluster) -> None:
    # A handle's own data travel in the recording statement only.
    cluster.proxies.postgres.lose_reply_to(b'"accepted_at"')
    job = cluster.submit("a handle that nobody saw", model=PAID)
    ended = cluster.wait_end(job)

    assert cluster.proxies.postgres.has_lost_reply
    assert (ended["status"], len(ended["attempts"]), len(ended["submissions"])) == ("completed", 1, 1)
    assert len(cluster.paid(job)) == 1


@pytest.mark.slow
def test_a_silent_database_is_told_quickly_and_running_jobs_survive_it(cluster: Cluster) -> None:
    job = cluster.submit("in silence", model=PAID, input={"fake": {"seconds": 1}})
    cluster.wait_for(job, lambda found: found["submissions"] and found["submissions"][0]["accepted_at"])
    cluster.proxies.postgres.fall_silent()
    answers = at_once(cluster, [lambda client: generate(client, "silent")] * 8)
    is_ready = readiness(cluster)
    cluster.heal()

    assert [answer.status for answer in answers] == [503] * 8
    assert_told(answers)
    assert is_ready == 503
    assert cluster.wait_end(job)["status"] == "completed"
    assert len(cluster.paid(job)) == 1


@pytest.mark.slow
def test_after_a_minute_of_silence_all_goes_on(cluster: Cluster) -> None:
    jobs = [
        cluster.submit(f"a long silence {number}", model=PAID, input={"fake": {"seconds": 2}})
        for number in range(8)
    ]
    cluster.wait_for(jobs[-1], lambda found: found["submissions"])
    cluster.proxies.postgres.fall_silent()
    answers = []
    until = time.monotonic() + 60
    with cluster.client() as client:
        while time.monotonic() < until:
            answers.append(generate(client, "a long silence"))
            time.sleep(0.5)
    cluster.heal()

    assert {answer.status for answer in answers} == {503}
    assert_told(answers)
    wait_all(cluster, jobs)
    assert [len(cluster.paid(job)) for job in jobs] == [1] * 8


@pytest.mark.slow
def test_a_worker_that_lost_its_lease_in_silence_writes_nothing_when_it_hears_again() -> None:
    """Only one worker is cut off, so that the other one can take its job meanwhile."""
    with open_cluster(apis=1, workers=2, start=False) as cluster:
        cluster.apis[0].start()
        cut_off, healthy = cluster.workers
        sockets = next(cluster.postgres.socket_dir.glob(".s.PGSQL.*[0-9]"))
        with FaultProxy(sockets) as proxy:
            cut_off.start(FLEEK_DATABASE_URL=f"postgresql://{ROLE}@127.0.0.1:{proxy.port}/{DATABASE}")
            job = cluster.submit("cut off", model=PAID, input={"fake": {"seconds": 12}})
            cluster.wait_for(
                job, lambda found: found["submissions"] and found["submissions"][0]["accepted_at"]
            )
            proxy.fall_silent()
            healthy.start()
            cluster.wait_for(job, lambda found: len(found["attempts"]) == 2)
            proxy.heal()
            ended = cluster.wait_end(job)
            cluster.wait_until(lambda: "lease_lost" in cut_off.said, 30)

        assert ended["status"] == "completed"
        assert [attempt["outcome"] for attempt in ended["attempts"]] == ["lease_expired", "completed"]
        assert str(healthy.pid) in ended["attempts"][1]["worker"]
        assert len(cluster.paid(job)) == 1
        check_invariants(cluster)


class Crowd:
    """Sessions that take every connection that PostgreSQL has, as soon as it is free."""

    def __init__(self, cluster: Cluster) -> None:
        self._host = str(cluster.postgres.socket_dir)
        self._ended = threading.Event()
        self.is_full = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._fill()))

    @contextmanager
    def present(self) -> Iterator[None]:
        self._thread.start()
        try:
            assert self.is_full.wait(30)
            yield
        finally:
            self._ended.set()
            self._thread.join()

    async def _fill(self) -> None:
        sessions = []
        while not self._ended.is_set():
            try:
                sessions.append(await asyncpg.connect(host=self._host, user=ROLE, database=DATABASE))
            except asyncpg.TooManyConnectionsError:
                self.is_full.set()
                await asyncio.sleep(0.005)
        for session in sessions:
            await session.close()


@pytest.mark.slow
def test_a_database_without_free_connections_is_told_and_heals(cluster: Cluster) -> None:
    crowd = Crowd(cluster)
    with crowd.present(), cluster.client() as client:
        # Those of Fleek are lost, and the crowd takes their places.
        for _ in range(20):
            cluster.proxies.postgres.cut()
            time.sleep(0.05)
        answer = generate(client, "no connection left")
        is_ready = readiness(cluster)

    assert_refused(answer)
    assert is_ready == 503
    wait_until_accepting(cluster)
    assert readiness(cluster) == 200


@pytest.mark.slow
def test_a_locked_table_is_told_after_the_lock_timeout(cluster: Cluster) -> None:
    answers: list[Answer] = []

    async def lock() -> None:
        session = await asyncpg.connect(host=str(cluster.postgres.socket_dir), user=ROLE, database=DATABASE)
        try:
            async with session.transaction():
                await session.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
                answers.extend(
                    await asyncio.to_thread(
                        at_once, cluster, [lambda client: generate(client, "locked out")] * 4
                    )
                )
        finally:
            await session.close()

    thread = threading.Thread(target=lambda: asyncio.run(lock()))
    thread.start()
    thread.join()

    assert [answer.status for answer in answers] == [503] * 4
    assert_told(answers)


@pytest.mark.slow
def test_a_statement_that_takes_too_long_is_given_up(cluster: Cluster) -> None:
    cluster.query(
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$"
    )
    cluster.query(
        "CREATE TRIGGER pause BEFORE INSERT ON job_requests FOR EACH ROW"
        " WHEN (NEW.prompt = 'too slow') EXECUTE FUNCTION pause()"
    )
    try:
        with cluster.client() as client:
            answer = generate(client, "too slow")
    finally:
        cluster.query("DROP FUNCTION pause CASCADE")

    # The statement's own limit, and what a refusal may take.
    assert answer.status == 503
    assert answer.seconds < 3 + REFUSED_SECONDS
    assert jobs_of(cluster, "too slow") == []


@pytest.mark.slow
def test_a_database_that_answers_late_is_not_ready(cluster: Cluster) -> None:
    cluster.proxies.postgres.slow_down(0.7)
    is_ready = readiness(cluster)

    assert is_ready == 503


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, which only root can make."""
    folder.mkdir()
    options = f"size={SMALL_DISK},mode=0777"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False)
    if made.returncode != 0:
        pytest.skip("a small disk can be made by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="needs a small disk of its own")
def test_a_full_disk_is_told_and_forgotten_once_there_is_room() -> None:
    with open_cluster() as cluster, small_disk(cluster.folder / "disk") as disk:
        own = disk / "tables"
        own.mkdir()
        shutil.chown(own, cluster.postgres.data.stat().st_uid, cluster.postgres.data.stat().st_gid)
        cluster.query(f"CREATE TABLESPACE small LOCATION '{own}'")
        cluster.query("ALTER TABLE job_requests SET TABLESPACE small")
        before = cluster.submit("before the disk is full")
        cluster.wait_end(before)
        stuffing = disk / "stuffing"
        with pytest.raises(OSError, match="No space left"):
            stuffing.write_bytes(bytes(SMALL_DISK))
        with cluster.client() as client:
            answers = [generate(client, f"{number} " + "full " * 700) for number in range(60)]
        stuffing.unlink()

        assert answers[-1].status == 503
        assert_told(answers)
        wait_until_accepting(cluster)
        wait_until_all_ended(cluster)
        check_invariants(cluster)
