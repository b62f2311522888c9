"""What the doctor asks of a real queue, and what it makes of the answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.factories import make_job, make_jobs

from fleek.cli.checks_work import check_ambiguous, check_queue
from fleek.core.job import Status
from fleek.db.session import Database
from fleek.settings import Settings, load_settings

DAY = timedelta(days=1)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.aclose()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path, database_url=database_url)


def ago(**lengths: float) -> datetime:
    return datetime.now(UTC) - timedelta(**lengths)


async def pause_demo(database: Database) -> None:
    await database.fetch_rowcount(text("INSERT INTO lane_state VALUES ('demo', 'demo', 'infinity', 'x')"))


async def test_the_oldest_due_job_of_any_owner_and_priority_says_how_late_a_queue_is(
    database: Database, settings: Settings
) -> None:
    await make_job(database, owner_id="a", priority=5, available_at=ago(seconds=2))
    await make_job(database, owner_id="b", priority=10, available_at=ago(seconds=3))
    await make_job(database, owner_id="b", priority=-10, available_at=ago(hours=1))
    await make_job(database, owner_id="b", available_at=datetime.now(UTC) + DAY)

    found = await check_queue(settings)

    late = re.fullmatch(r"late, the oldest for (\d+) s: 3 of demo in default", found.detail)
    assert found.verdict == "warning"
    assert late is not None
    assert 3600 <= int(late[1]) < 3700


async def test_each_queue_and_model_is_told_apart(database: Database, settings: Settings) -> None:
    for queue, model in [("default", "demo"), ("default", "gone"), ("gpu", "demo")]:
        await make_job(database, queue=queue, model=model, available_at=ago(minutes=5))

    detail = (await check_queue(settings)).detail

    assert [part.rpartition(": ")[2] for part in detail.split("; ")] == [
        "1 of demo in default",
        "1 of gone in default",
        "1 of demo in gpu",
    ]


async def test_a_long_queue_is_not_counted_to_its_end(database: Database, settings: Settings) -> None:
    await make_jobs(database, 1100, available_at=ago(minutes=5))

    assert (await check_queue(settings)).detail.endswith(" s: more than 1000 of demo in default")


async def test_what_waits_for_a_paused_model_is_not_late(database: Database, settings: Settings) -> None:
    await make_job(database, available_at=ago(minutes=5))
    await pause_demo(database)

    assert (await check_queue(settings)).detail == "nothing is late"


async def test_an_order_that_nobody_follows_is_late_also_while_its_model_is_paused(
    database: Database, settings: Settings
) -> None:
    await make_job(database, available_at=ago(minutes=5))
    await make_job(database, available_at=ago(minutes=5), resuming=True)
    await pause_demo(database)

    assert (await check_queue(settings)).detail.endswith(" s: 1 of demo in default")


@pytest.mark.parametrize(
    ("days", "code", "verdict"),
    [
        (1, "ambiguous_submission", "warning"),
        (8, "ambiguous_submission", "ok"),
        (1, "content_refused", "ok"),
    ],
)
async def test_lost_orders_are_those_of_jobs_that_ended_within_a_week(
    database: Database, settings: Settings, days: int, code: str, verdict: str
) -> None:
    created = ago(days=30)
    await make_job(
        database, status=Status.ERROR, error_code=code, created_at=created, finished_at=ago(days=days)
    )

    assert (await check_ambiguous(settings)).verdict == verdict
