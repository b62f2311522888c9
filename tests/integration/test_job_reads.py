"""Reading jobs: the status, the whole job, pages of jobs and the history, from a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text
from tests.factories import MadeJob, make_completed_job, make_job, make_jobs, make_submission
from tests.statements import explain, sent_statements

from fleek.core.cursor import Position
from fleek.core.events import EventKind, fold
from fleek.core.ids import new_id
from fleek.core.job import ErrorCode, Reason, Status
from fleek.core.owner import LOCAL_OWNER
from fleek.core.urls import Urls
from fleek.db.session import Database
from fleek.jobs.repository import (
    JobFilter,
    get_job_or_none,
    get_status_or_none,
    list_events,
    list_jobs,
)
from fleek.jobs.schemas import ErrorOut, JobOut

URLS = Urls("https://media.example.com")
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.aclose()


async def get_job(database: Database, job: MadeJob) -> JobOut:
    found = await get_job_or_none(database, job.owner_id, job.id, URLS)
    assert found is not None
    return found


async def list_ids(
    database: Database,
    filters: JobFilter | None = None,
    after: Position | None = None,
    limit: int = 100,
    owner: str = LOCAL_OWNER,
) -> list[Any]:
    page = await list_jobs(database, owner, filters or JobFilter(), after, limit, URLS)
    return [job.id for job in page]


async def fill(database: Database, jobs: int) -> None:
    """Many finished jobs, so that the planner has reasons to choose."""
    for statement in _FILL:
        await database.fetch_rowcount(text(statement), {"jobs": jobs} if ":jobs" in statement else None)


_FILL = (
    """
    INSERT INTO jobs (id, owner_id, queue, model, n, status, reason, max_attempts, deadline_at, created_at,
        finished_at, event_sequence)
    SELECT gen_random_uuid(), CASE WHEN i % 10 = 0 THEN 'other' ELSE 'local' END, 'default', 'demo', 1,
        'completed', 'completed', 4, now(), now() - i * interval '1 s', now(), 1
    FROM generate_series(1, CAST(:jobs AS int)) AS i
    """,
    """
    INSERT INTO job_requests (job_id, prompt, parameters, input, metadata, deadline_seconds)
    SELECT id, 'a lighthouse at dawn',
        '{"width": null, "height": null, "negative_prompt": null, "output_format": "png", "seed": 7}',
        '{}', '{}', 60
    FROM jobs
    """,
    """
    INSERT INTO media (id, job_id, owner_id, index, created_at)
    SELECT gen_random_uuid(), id, owner_id, 0, created_at FROM jobs
    """,
    "INSERT INTO events (job_id, sequence, kind) SELECT id, 1, 'accepted' FROM jobs",
    "ANALYZE jobs, job_requests, media, events, attempts, submissions",
)


async def test_the_status_tells_the_state_and_when_it_last_changed(database: Database) -> None:
    for status in Status:
        job = await make_job(database, status=status, created_at=NOON)

        found = await get_status_or_none(database, LOCAL_OWNER, job.id)
        history = await list_events(database, LOCAL_OWNER, job.id, 0)

        assert found is not None
        assert history is not None
        assert (found.id, found.status, found.media_ids) == (job.id, status, list(job.media_ids))
        assert found.updated_at == history[-1].at
        assert fold(event.kind for event in history) == status


async def test_the_time_of_the_next_attempt_is_told_only_while_one_is_awaited(database: Database) -> None:
    states = [
        (Status.IN_QUEUE, Reason.RETRY_SCHEDULED, NOON),
        (Status.IN_QUEUE, Reason.DEFERRED, NOON),
        (Status.IN_QUEUE, Reason.ACCEPTED, None),
        (Status.IN_QUEUE, Reason.INTERRUPTED, None),
        (Status.IN_QUEUE, Reason.LEASE_EXPIRED, None),
        (Status.IN_QUEUE, Reason.RETRIED_BY_CLIENT, None),
        (Status.PROCESSING, Reason.CLAIMED, None),
        (Status.ERROR, Reason.FAILED, None),
    ]
    for status, reason, retry_at in states:
        job = await make_job(database, status=status, reason=reason, available_at=NOON)

        found = await get_status_or_none(database, LOCAL_OWNER, job.id)

        assert found is not None
        assert (reason, found.retry_at) == (reason, retry_at)


async def test_an_error_says_whether_the_same_request_may_succeed_later(database: Database) -> None:
    for code, retryable in (("content_refused", False), ("transient", True), ("attempts_exhausted", True)):
        job = await make_job(database, status=Status.ERROR, error_code=code, error_message="No")

        status = await get_status_or_none(database, LOCAL_OWNER, job.id)

        assert status is not None
        assert status.error == ErrorOut(code=code, message="No", retryable=retryable)
        assert (await get_job(database, job)).error == status.error


async def test_progress_is_shown_as_it_was_reported_although_it_is_stored_in_single_precision(
    database: Database,
) -> None:
    job = await make_job(database, status=Status.PROCESSING, progress=0.4)

    status = await get_status_or_none(database, LOCAL_OWNER, job.id)

    assert status is not None
    assert status.progress == 0.4
    assert (await get_job(database, job)).progress == 0.4


async def test_somebody_elses_job_looks_like_an_unknown_one(database: Database) -> None:
    job = await make_completed_job(database, owner_id="somebody else")
    own = await make_completed_job(database)

    for job_id in (job.id, new_id()):
        assert await get_status_or_none(database, LOCAL_OWNER, job_id) is None
        assert await get_job_or_none(database, LOCAL_OWNER, job_id, URLS) is None
        assert await list_events(database, LOCAL_OWNER, job_id, 0) is None
    assert await list_ids(database) == [own.id]
    assert await list_ids(database, owner="somebody else") == [job.id]


async def test_a_whole_job_holds_what_was_asked_for(database: Database) -> None:
    asked = {"steps": 4, "scale": 7.5, "nested": [{"name": "Ünïcode ✓", "none": None, "yes": True}]}
    job = await make_job(
        database,
        prompt="a lighthouse\nat 'dawn' 灯台",
        parameters={"width": 768, "height": 512, "seed": 2**32 - 1, "output_format": "webp"},
        input=asked,
        metadata={"order": "1234"},
        priority=-3,
    )

    found = await get_job(database, job)

    assert (found.prompt, found.input, found.metadata) == (
        "a lighthouse\nat 'dawn' 灯台",
        asked,
        {"order": "1234"},
    )
    assert (found.width, found.height, found.seed, found.output_format) == (768, 512, 2**32 - 1, "webp")
    assert (found.priority, found.negative_prompt) == (-3, None)
    assert found.links.self == f"https://media.example.com/v1/media/jobs/{job.id}"


async def test_a_completed_job_holds_its_results_in_their_order(database: Database) -> None:
    job = await make_completed_job(database, n=3)

    found = await get_job(database, job)

    assert found.media_ids == list(job.media_ids)
    assert [media.id for media in found.media] == list(job.media_ids)
    assert [media.index for media in found.media] == [0, 1, 2]
    assert [media.seed for media in found.media] == [7, 8, 9]
    assert found.media[0].content_url == f"https://media.example.com/v1/media/content/{job.media_ids[0]}"
    assert found.media[0].created_at == job.created_at
    assert found.media[0].signed_url is None


async def test_a_result_that_is_gone_keeps_its_id_in_the_job_and_nothing_else(database: Database) -> None:
    deleted = await make_completed_job(database, n=2, media={"deleted_at": NOON})
    expired = await make_completed_job(database, n=2, media={"expires_at": NOON})

    for job in (deleted, expired):
        found = await get_job(database, job)

        assert found.media_ids == list(job.media_ids)
        assert found.media == []


async def test_a_job_without_orders_costs_nothing_that_is_known(database: Database) -> None:
    job = await make_job(database)

    found = await get_job(database, job)

    assert (found.submissions, found.paid_submissions, found.cost) == ([], 0, None)
    assert (found.attempts, found.media) == ([], [])


async def test_the_cost_is_the_exact_sum_and_rejected_orders_are_not_paid(database: Database) -> None:
    job = await make_completed_job(database)
    orders: list[dict[str, Any]] = [
        {"resolution": "rejected"},
        {"resolution": "failed", "handle_id": "a", "cost": "0.1"},
        {"resolution": "result", "handle_id": "b", "cost": "0.200001"},
        {"resolution": "ambiguous", "first_index": 1},
        {"first_index": 2},
    ]
    for ordinal, order in enumerate(orders, start=1):
        await make_submission(database, job, ordinal=ordinal, **order)

    found = await get_job(database, job)

    assert found.cost is not None
    assert found.cost.amount == Decimal("0.300001")
    assert [order.ordinal for order in found.submissions] == [1, 2, 3, 4, 5]
    assert [order.cost for order in found.submissions[1:3]] == [Decimal("0.1"), Decimal("0.200001")]
    assert found.paid_submissions == 4
    assert found.model_dump(mode="json")["submissions"][1]["cost"] == "0.1"


async def test_an_attempt_tells_how_it_ended(database: Database) -> None:
    failed = await make_job(database, reason=Reason.RETRY_SCHEDULED)
    running = await make_job(database, status=Status.PROCESSING)
    done = await make_completed_job(database)

    attempts = [(await get_job(database, job)).attempts[0] for job in (failed, running, done)]

    assert [attempt.outcome for attempt in attempts] == ["retry_scheduled", None, "completed"]
    assert [attempt.error.code if attempt.error else None for attempt in attempts] == [
        "transient",
        None,
        None,
    ]
    assert [attempt.metrics for attempt in attempts] == [None, None, {"seconds": 1.0}]
    assert attempts[1].finished_at is None


async def test_a_page_holds_the_newest_jobs_first_and_no_more_than_asked_for(database: Database) -> None:
    jobs = await make_jobs(database, 5)

    assert await list_ids(database, limit=3) == [jobs[4].id, jobs[3].id, jobs[2].id]


async def test_paging_shows_each_of_many_jobs_of_one_moment_once(database: Database) -> None:
    jobs = await make_jobs(database, 11, created_at=NOON)
    seen: list[Any] = []
    after = None
    while page := await list_ids(database, after=after, limit=4):
        seen += page
        after = Position(NOON, page[-1])

    assert seen == sorted((job.id for job in jobs), reverse=True)


async def test_jobs_that_arrive_while_a_client_pages_do_not_shift_its_pages(database: Database) -> None:
    jobs = await make_jobs(database, 4)
    first = await list_ids(database, limit=2)
    await make_job(database, created_at=datetime.now(UTC))

    second = await list_ids(database, after=Position(jobs[2].created_at, jobs[2].id), limit=2)

    assert first + second == [job.id for job in reversed(jobs)]


_FILTERS: list[tuple[JobFilter, str]] = [
    (JobFilter(), "edcba"),
    (JobFilter(status=Status.ERROR), "c"),
    (JobFilter(status=Status.PROCESSING), ""),
    (JobFilter(code=ErrorCode.CONTENT_REFUSED), "c"),
    (JobFilter(status=Status.ERROR, code=ErrorCode.CONTENT_REFUSED), "c"),
    (JobFilter(status=Status.ERROR, code=ErrorCode.TIMEOUT), ""),
    (JobFilter(status=Status.IN_QUEUE, code=ErrorCode.CONTENT_REFUSED), "d"),
    (JobFilter(status=Status.COMPLETED, code=ErrorCode.CONTENT_REFUSED), ""),
    (JobFilter(model="flux/schnell"), "db"),
    (JobFilter(model="flux"), ""),
    (JobFilter(q="lighthouse"), "ea"),
    (JobFilter(created_after=NOON + MINUTE), "edc"),
    (JobFilter(created_before=NOON + MINUTE), "a"),
    (JobFilter(created_after=NOON, created_before=NOON + 3 * MINUTE), "cb"),
    (JobFilter(created_after=(NOON + MINUTE).astimezone(timezone(timedelta(hours=9)))), "edc"),
    (JobFilter(metadata={"order": "1"}), "ba"),
    (JobFilter(metadata={"order": "1", "shop": "north"}), "b"),
    (JobFilter(metadata={"order": "2"}), ""),
    (JobFilter(metadata={"or'der\"": "\\ ✓ %"}), "d"),
    (JobFilter(model="flux/schnell", metadata={"order": "1"}, status=Status.COMPLETED), "b"),
    (JobFilter(q="lighthouse", status=Status.COMPLETED), "e"),
    (JobFilter(Status.COMPLETED, "flux/schnell", "boat", NOON, NOON + 2 * MINUTE, {"order": "1"}), "b"),
    (JobFilter(created_after=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))), "edcba"),
    (JobFilter(created_after=datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=12)))), ""),
]


async def test_filters_combine(database: Database) -> None:
    jobs: dict[str, dict[str, Any]] = {
        "a": {"prompt": "a lighthouse", "metadata": {"order": "1"}},
        "b": {
            "prompt": "a boat",
            "metadata": {"order": "1", "shop": "north"},
            "model": "flux/schnell",
            "status": Status.COMPLETED,
        },
        "c": {"prompt": "a boat", "status": Status.ERROR, "error_code": "content_refused"},
        "d": {
            "prompt": "a house",
            "metadata": {"or'der\"": "\\ ✓ %"},
            "model": "flux/schnell",
            "error_code": "content_refused",
        },
        "e": {"prompt": "the lighthouse", "status": Status.COMPLETED},
    }
    names = {}
    for minutes, (name, job) in enumerate(jobs.items()):
        made = await make_job(database, created_at=NOON + minutes * MINUTE, **job)
        names[made.id] = name
    await make_job(database, owner_id="somebody else", prompt="a lighthouse", metadata={"order": "1"})

    found = [await list_ids(database, filters) for filters, _ in _FILTERS]

    shown = ["".join(names[job_id] for job_id in ids) for ids in found]
    assert shown == [expected for _, expected in _FILTERS]


_SEARCHES = [
    ("A red lighthouse at dawn", "LIGHTHOUSE", True),
    ("A red lighthouse at dawn", "dawn red", True),
    ("A red lighthouse at dawn", "dawn blue", False),
    ("A red lighthouse at dawn", "light", False),
    ("A red lighthouse at dawn", "blue or dawn", True),
    ("A red lighthouse at dawn", "dawn -red", False),
    ("A red lighthouse at dawn", '"at dawn"', True),
    ("A red lighthouse at dawn", '"dawn at"', False),
    ("Ein großes Schloß über Zürich", "Zürich großes", True),
    ("Красный МАЯК на рассвете", "маяк", True),
    ("ΦΆΡΟΣ στην αυγή", "αυγή", True),
    ("夜明けの 灯台", "灯台", True),
    ("منارة عند الفجر", "الفجر", True),
    ("a 🦊 in the snow", "snow", True),
    ("a lighthouse", "!!!", False),
    ("a lighthouse", "'", False),
    ("a lighthouse", "lighthouse:* & (", True),
    ("a lighthouse", "%", False),
    ("a lighthouse", '"lighthouse', True),
]


async def test_words_of_a_prompt_are_found_in_any_language(database: Database) -> None:
    jobs = {prompt: await make_job(database, prompt=prompt) for prompt, _, _ in _SEARCHES}

    found = [await list_ids(database, JobFilter(q=q)) for _, q, _ in _SEARCHES]

    for (prompt, q, is_found), ids in zip(_SEARCHES, found, strict=True):
        assert (prompt, q, jobs[prompt].id in ids) == (prompt, q, is_found)


async def test_the_history_is_read_from_any_sequence_on(database: Database) -> None:
    job = await make_completed_job(database)

    kinds = [
        [event.kind for event in await list_events(database, LOCAL_OWNER, job.id, after) or ()]
        for after in (0, 2, 3, 10**30)
    ]

    assert kinds == [
        [EventKind.ACCEPTED, EventKind.CLAIMED, EventKind.COMPLETED],
        [EventKind.COMPLETED],
        [],
        [],
    ]
    assert await list_events(database, LOCAL_OWNER, job.id, 3) == []


@pytest.mark.parametrize("count", [1, 100])
async def test_a_page_of_any_length_is_one_statement(database: Database, count: int) -> None:
    await make_jobs(database, count, status=Status.COMPLETED, n=2, metadata={"order": "1"})
    filters = JobFilter(q="lighthouse", metadata={"order": "1"}, status=Status.COMPLETED, model="demo")

    with sent_statements() as sent:
        page = await list_jobs(database, LOCAL_OWNER, filters, None, 101, URLS)

    assert len(page) == count
    assert len(sent) == 1


@pytest.mark.parametrize(
    "filters",
    [
        JobFilter(status=Status.ERROR),
        JobFilter(code=ErrorCode.TIMEOUT),
        JobFilter(status=Status.ERROR, code=ErrorCode.TIMEOUT),
    ],
)
async def test_failed_jobs_are_found_without_walking_over_the_others(
    database: Database, filters: JobFilter
) -> None:
    await make_jobs(database, 2000, status=Status.COMPLETED)
    await make_job(database, status=Status.ERROR, error_code="timeout")
    await database.fetch_rowcount(text("ANALYZE jobs"))

    with sent_statements() as sent:
        page = await list_jobs(database, LOCAL_OWNER, filters, None, 20, URLS)

    assert len(page) == 1
    assert "ix_jobs_failed" in await explain(database, sent[0])


async def test_the_status_the_whole_job_and_its_history_are_one_statement_each(database: Database) -> None:
    job = await make_completed_job(database, n=4)

    with sent_statements() as sent:
        await get_status_or_none(database, LOCAL_OWNER, job.id)
        await get_job_or_none(database, LOCAL_OWNER, job.id, URLS)
        await list_events(database, LOCAL_OWNER, job.id, 0)

    assert len(sent) == 3


async def test_no_read_of_one_job_looks_through_a_table(database: Database) -> None:
    await fill(database, 5000)
    job = await make_completed_job(database)

    with sent_statements() as sent:
        await get_status_or_none(database, LOCAL_OWNER, job.id)
        await get_job_or_none(database, LOCAL_OWNER, job.id, URLS)
        await list_events(database, LOCAL_OWNER, job.id, 0)
    plans = [await explain(database, one) for one in sent]

    for plan in plans:
        assert "using pk_jobs on jobs" in plan
        for table in ("jobs", "job_requests", "media", "events"):
            assert f"Seq Scan on {table}" not in plan


@pytest.mark.parametrize("after", [None, Position(datetime.now(UTC) - timedelta(minutes=20), new_id())])
async def test_a_page_is_read_from_the_owners_index_and_nothing_behind_it(
    database: Database, after: Position | None
) -> None:
    await fill(database, 5000)

    with sent_statements() as sent:
        page = await list_jobs(database, LOCAL_OWNER, JobFilter(), after, 101, URLS)
    plan = await explain(database, sent[0])

    assert len(page) == 101
    assert "Index Scan Backward using ix_jobs_owner_id_created_at_id on jobs" in plan
    for table in ("jobs", "job_requests", "media"):
        assert f"Seq Scan on {table}" not in plan


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        (JobFilter(q="zebra"), "ix_job_requests_prompt_words"),
        (JobFilter(metadata={"order": "1"}), "ix_job_requests_metadata"),
    ],
)
async def test_rare_words_and_metadata_are_looked_up_in_their_index(
    database: Database, filters: JobFilter, index: str
) -> None:
    await fill(database, 5000)
    rare = await make_job(database, prompt="a zebra", metadata={"order": "1"})
    await database.fetch_rowcount(text("ANALYZE job_requests"))

    with sent_statements() as sent:
        page = await list_jobs(database, LOCAL_OWNER, filters, None, 101, URLS)

    assert [job.id for job in page] == [rare.id]
    assert index in await explain(database, sent[0])
