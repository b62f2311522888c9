"""Waiting for jobs: announcements as hints, the sweep as truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from structlog.testing import capture_logs
from tests.api.states import delete, eventually, give_back
from tests.factories import MadeJob, make_job
from tests.statements import Sent, sent_statements

from fleek.core.errors import DatabaseUnavailable
from fleek.core.ids import new_id
from fleek.core.job import Status
from fleek.db.session import Database
from fleek.jobs import waiting
from fleek.jobs.waiting import Change, Waiters
from fleek.queue.base import Announcement

LONG, SHORT = 30.0, 0.05


class LocalPubSub:
    """Announcements within the process, as the port has it."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Callable[[Announcement], None], Callable[[], None]]] = []

    def announce(self, announcement: Announcement) -> None:
        for on_announcement, _ in self._listeners:
            on_announcement(announcement)

    def connect(self) -> None:
        for _, on_connect in self._listeners:
            on_connect()

    def listen(self, on_announcement: Callable[[Announcement], None], on_connect: Callable[[], None]) -> None:
        self._listeners.append((on_announcement, on_connect))

    async def start(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.aclose()


@pytest.fixture
def pubsub() -> LocalPubSub:
    return LocalPubSub()


@pytest.fixture
async def waiters(database: Database, pubsub: LocalPubSub) -> AsyncIterator[Waiters]:
    """Waiters whose sweep runs."""
    waiters = Waiters(database, pubsub)
    await waiters.start()
    yield waiters
    await waiters.aclose()


@pytest.fixture
def deaf(database: Database, pubsub: LocalPubSub) -> Waiters:
    """Waiters that never sweep: whatever they note was announced."""
    return Waiters(database, pubsub)


def names(sent: list[Sent], job: MadeJob) -> bool:
    """Whether a statement asked for this job; another test's server in this process may ask for its own."""
    return any(str(job.id) in str(statement.parameters) for statement in sent)


async def settle(watch: waiting.Watch) -> None:
    """The first sweep wakes every waiter once, since it cannot know what was before it."""
    assert await watch.changed(LONG) is Change.MOVED


async def test_an_announcement_wakes_whoever_waits_for_that_job(deaf: Waiters, pubsub: LocalPubSub) -> None:
    ours, other = new_id(), new_id()
    async with deaf.watch(ours) as watch, deaf.watch(ours) as second, deaf.watch(other) as third:
        pubsub.announce(Announcement(ours))

        assert await watch.changed(LONG) is Change.MOVED
        assert await second.changed(LONG) is Change.MOVED
        assert await third.changed(SHORT) is Change.NOTHING


async def test_what_happens_before_the_waiting_begins_is_not_lost(deaf: Waiters, pubsub: LocalPubSub) -> None:
    job_id = new_id()
    async with deaf.watch(job_id) as watch:
        pubsub.announce(Announcement(job_id))
        await asyncio.sleep(0)

        assert await watch.changed(LONG) is Change.MOVED
        assert await watch.changed(SHORT) is Change.NOTHING


async def test_progress_wakes_only_those_who_want_it_and_is_remembered(
    deaf: Waiters, pubsub: LocalPubSub
) -> None:
    job_id = new_id()
    async with deaf.watch(job_id) as watch:
        pubsub.announce(Announcement(job_id, progress=0.5))

        assert await watch.changed(LONG, at_least=Change.PROGRESS) is Change.PROGRESS
        assert watch.progress == 0.5

        pubsub.announce(Announcement(job_id, progress=0.75))
        assert await watch.changed(SHORT) is Change.PROGRESS
        assert watch.progress == 0.75


async def test_a_move_outranks_the_progress_that_came_with_it(deaf: Waiters, pubsub: LocalPubSub) -> None:
    job_id = new_id()
    async with deaf.watch(job_id) as watch:
        pubsub.announce(Announcement(job_id))
        pubsub.announce(Announcement(job_id, progress=0.5))

        assert await watch.changed(LONG, at_least=Change.PROGRESS) is Change.MOVED


async def test_a_change_that_nobody_announced_is_found(waiters: Waiters, database: Database) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    async with waiters.watch(job.id) as watch:
        await settle(watch)
        await give_back(database, job)

        assert await watch.changed(LONG) is Change.MOVED


async def test_progress_in_the_row_is_found_and_told_as_it_was_meant(
    waiters: Waiters, database: Database
) -> None:
    job = await make_job(database, status=Status.PROCESSING, progress=0.4)
    async with waiters.watch(job.id) as watch:
        await settle(watch)

        assert watch.progress == 0.4


async def test_a_job_in_which_nothing_happens_wakes_nobody_twice(
    waiters: Waiters, database: Database
) -> None:
    job = await make_job(database)
    async with waiters.watch(job.id) as watch:
        await settle(watch)

        assert await watch.changed(2 * waiting.SWEEP_INTERVAL + 1) is Change.NOTHING


async def test_a_job_that_was_deleted_wakes_its_waiters(waiters: Waiters, database: Database) -> None:
    job = await make_job(database)
    async with waiters.watch(job.id) as watch:
        await settle(watch)
        await delete(database, job)

        assert await watch.changed(LONG) is Change.MOVED


async def test_a_new_connection_to_the_broker_is_followed_by_a_sweep_at_once(
    waiters: Waiters, database: Database, pubsub: LocalPubSub
) -> None:
    job = await make_job(database, status=Status.PROCESSING)
    async with waiters.watch(job.id) as watch:
        await settle(watch)
        with sent_statements() as sent:
            pubsub.connect()
            await eventually(lambda: names(sent, job), within=waiting.SWEEP_INTERVAL / 2)

        assert names(sent, job)


async def test_one_statement_sweeps_for_all(
    waiters: Waiters, database: Database, pubsub: LocalPubSub
) -> None:
    jobs = [await make_job(database) for _ in range(10)]
    async with _all_watched(waiters, jobs) as watches:
        for watch in watches:
            await settle(watch)
        with sent_statements() as sent:
            pubsub.connect()
            await eventually(lambda: names(sent, jobs[0]))

        ours = [statement for statement in sent if names([statement], jobs[0])]
        assert len(ours) == 1
        assert all(names(ours, job) for job in jobs)


async def test_nobody_is_asked_while_nobody_waits(waiters: Waiters, database: Database) -> None:
    job = await make_job(database)
    async with waiters.watch(job.id):
        during = waiters.count(job.id)
    with sent_statements() as sent:
        await asyncio.sleep(waiting.SWEEP_INTERVAL + 0.5)

    assert (during, waiters.count(job.id)) == (1, 0)
    assert not names(sent, job)


async def test_a_database_that_was_away_delays_waiters_and_loses_nothing(pubsub: LocalPubSub) -> None:
    database = _Flaky([DatabaseUnavailable(), [], DatabaseUnavailable(), []])
    waiters = Waiters(database, pubsub)  # type: ignore[arg-type]  all that a sweep uses
    await waiters.start()
    job_id = new_id()
    async with waiters.watch(job_id) as watch:
        for _ in range(4):
            pubsub.connect()
            await asyncio.sleep(SHORT)
        noted = await watch.changed(SHORT)
    await waiters.aclose()

    assert database.answers == []
    assert noted is Change.MOVED


async def test_a_bug_in_a_sweep_is_logged_and_the_next_one_runs(pubsub: LocalPubSub) -> None:
    database = _Flaky([RuntimeError("a bug"), []])
    waiters = Waiters(database, pubsub)  # type: ignore[arg-type]  all that a sweep uses
    await waiters.start()
    with capture_logs() as logs:
        async with waiters.watch(new_id()) as watch:
            for _ in range(2):
                pubsub.connect()
                await asyncio.sleep(SHORT)
            noted = await watch.changed(SHORT)
    await waiters.aclose()

    assert [entry["event"] for entry in logs] == ["waiters_sweep_failed"]
    assert noted is Change.MOVED


async def test_closing_before_starting_does_no_harm(deaf: Waiters) -> None:
    await deaf.aclose()

    assert deaf.count(new_id()) == 0


@asynccontextmanager
async def _all_watched(waiters: Waiters, jobs: list[MadeJob]) -> AsyncIterator[list[waiting.Watch]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(waiters.watch(job.id)) for job in jobs]


class _Flaky:
    """A database that answers as it is told."""

    def __init__(self, answers: list[Exception | list[object]]) -> None:
        self.answers = answers

    async def fetch_all(self, *_: object) -> list[object]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer
