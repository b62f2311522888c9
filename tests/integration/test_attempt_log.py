"""What the log says of attempts, and that it is kept as rows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.executing import Worker, paid_worker, second
from tests.logged import Written, logging_configured
from tests.queueing import Queue, wait_until
from tests.statements import sent_statements

from fleek.core.errors import ProviderError, ProviderErrorKind
from fleek.core.owner import LOCAL_OWNER
from fleek.jobs.claim import ClaimedJob
from fleek.jobs.keeper import Stop
from fleek.logs import repository
from fleek.logs.repository import EntryFilter
from fleek.logs.sink import stored_records
from fleek.observability.redaction import Redactor
from fleek.testing import hold

PROMPT = "a very private lighthouse"
_LOCK = text("LOCK TABLE log_entries IN ACCESS EXCLUSIVE MODE")


def told(written: Written, job: ClaimedJob) -> list[tuple[str, str]]:
    """Level and event of every record of an attempt; all of them say whose they are."""
    found = [event for event in written.events() if event.get("job_id") == str(job.id)]
    for event in found:
        assert (event["attempt"], event["owner"], event["model"]) == (job.fence, LOCAL_OWNER, job.model)
    return [(event["level"], event["event"]) for event in found]


def last(written: Written) -> dict[str, Any]:
    return written.events()[-1]


async def test_an_attempt_that_succeeds_is_told_from_start_to_end(queue: Queue) -> None:
    job = await queue.accept_and_claim(n=2, prompt=PROMPT)
    with logging_configured() as written:
        await Worker(queue).run(job)

    assert told(written, job) == [
        ("info", "attempt_started"),
        ("info", "outputs_stored"),
        ("info", "attempt_finished"),
    ]
    started, stored, finished = written.events()
    assert (started["provider"], started["outputs"], started["open_orders"]) == ("fake", 2, 0)
    assert (stored["outputs"], stored["content_types"]) == (2, ["image/png"])
    assert (finished["status"], finished["outcome"]) == ("completed", "completed")
    assert finished["seconds"] >= 0


async def test_an_order_is_told_with_its_handle(queue: Queue) -> None:
    worker = paid_worker(queue)
    job = await queue.accept_and_claim()
    with logging_configured() as written:
        await worker.run(job)

    [handle] = worker.provider.vendor.orders
    assert told(written, job)[1:3] == [("info", "order_placed"), ("info", "order_recorded")]
    assert written.events()[2]["handle"] == handle


async def test_an_order_that_is_resumed_is_told(queue: Queue) -> None:
    worker = paid_worker(queue)
    worker.provider.on_poll(ProviderError(ProviderErrorKind.TRANSIENT, "It broke"))
    await worker.run(await queue.accept_and_claim())
    await queue.make_due()
    job = await queue.claim_one()
    with logging_configured() as written:
        await second(worker).run(job)

    [handle] = worker.provider.vendor.orders
    assert told(written, job)[1] == ("info", "order_resumed")
    assert written.events()[0]["open_orders"] == 1
    assert written.events()[1]["handle"] == handle
    assert last(written)["outcome"] == "completed"


async def test_a_reply_that_is_lost_is_a_warning(queue: Queue) -> None:
    worker = paid_worker(queue)
    worker.provider.on_submit(ProviderError(ProviderErrorKind.AMBIGUOUS, "The connection broke"))
    job = await queue.accept_and_claim()
    with logging_configured() as written:
        await worker.run(job)

    assert told(written, job)[1:3] == [("info", "order_placed"), ("warning", "order_reply_lost")]
    assert (last(written)["outcome"], last(written)["code"]) == ("ambiguous_submission",) * 2


@pytest.mark.parametrize(
    ("error", "status", "outcome", "code"),
    [
        (ProviderError(ProviderErrorKind.TRANSIENT, "It broke"), "in_queue", "retry_scheduled", "transient"),
        (
            ProviderError(ProviderErrorKind.PERMANENT_POLICY, "Refused"),
            "error",
            "failed",
            "content_refused",
        ),
    ],
)
async def test_an_attempt_that_fails_ends_with_a_warning_that_has_the_code(
    queue: Queue, error: ProviderError, status: str, outcome: str, code: str
) -> None:
    worker = Worker(queue)
    worker.provider.on_submit(error)
    job = await queue.accept_and_claim()
    with logging_configured() as written:
        await worker.run(job)

    assert told(written, job) == [("info", "attempt_started"), ("warning", "attempt_finished")]
    finished = last(written)
    assert (finished["status"], finished["outcome"], finished["code"]) == (status, outcome, code)
    assert ("retry_in" in finished) is (status == "in_queue")


async def test_an_attempt_that_is_given_back_or_lost_says_so(queue: Queue) -> None:
    for why, end in ((Stop.RELEASE, ("info", "attempt_finished")), (Stop.LOST, ("warning", "lease_lost"))):
        worker, waiting = Worker(queue), asyncio.Event()
        worker.provider.on_submit(hold(waiting))
        job = await queue.accept_and_claim()
        with logging_configured() as written:
            execution, task = worker.begin(job)
            await wait_until(lambda: worker.provider.vendor.creates)  # noqa: B023  used at once
            execution.stop(why)
            await task

        assert told(written, job)[-1] == end
        await queue.change("DELETE FROM jobs WHERE id = :id", id=job.id)


async def test_jobs_that_run_at_once_are_told_apart(queue: Queue) -> None:
    worker = Worker(queue)
    for _ in range(5):
        await queue.accept(n=2)
    jobs = await queue.claim(5)
    with logging_configured() as written:
        await asyncio.gather(*(worker.begin(job)[1] for job in jobs))

    assert len(written.events()) == 15
    for job in jobs:
        assert [event for _, event in told(written, job)] == [
            "attempt_started",
            "outputs_stored",
            "attempt_finished",
        ]


class TestPrompts:
    """Nobody's prompt is logged, unless that was asked for."""

    @pytest.mark.parametrize(
        "error",
        [
            lambda: ValueError(f"cannot draw {PROMPT}"),
            lambda: ProviderError(ProviderErrorKind.PERMANENT_INPUT, f"The input {[PROMPT]} is refused"),
        ],
    )
    async def test_a_prompt_is_not_logged_though_an_error_repeats_it(
        self, queue: Queue, error: Callable[[], Exception]
    ) -> None:
        worker = Worker(queue)
        worker.provider.on_submit(error())
        job = await queue.accept_and_claim(prompt=PROMPT)
        with logging_configured("debug") as written:
            await worker.run(job)

        assert written.events()
        assert PROMPT not in written.getvalue()
        assert "[prompt]" in written.getvalue()

    async def test_where_it_is_asked_for_the_beginning_is_logged(self, queue: Queue) -> None:
        worker = Worker(queue)
        worker.shop = replace(worker.shop, log_prompts=True)
        job = await queue.accept_and_claim(prompt=PROMPT + "!" * 1000)
        with logging_configured() as written:
            await worker.run(job)

        shown = written.events()[0]["prompt"]
        assert shown.startswith(PROMPT)
        assert len(shown) == 200


class TestRows:
    """Records of attempts are kept, beside the job's own work."""

    async def entries(self, queue: Queue, job_id: UUID) -> list[repository.EntryRow]:
        found = await repository.list_entries(queue.database, LOCAL_OWNER, job_id, EntryFilter(), 100)
        assert found is not None
        return found

    @pytest.mark.parametrize("level", ["info", "error"])
    async def test_an_attempt_is_kept_whatever_is_printed(self, queue: Queue, level: str) -> None:
        job = await queue.accept_and_claim()
        with logging_configured(level):
            async with stored_records(queue.database, "worker-1", Redactor()):
                await Worker(queue).run(job)

        entries = await self.entries(queue, job.id)
        assert [entry.event for entry in entries] == ["attempt_started", "outputs_stored", "attempt_finished"]
        assert {(entry.attempt, entry.process) for entry in entries} == {(job.fence, "worker-1")}
        assert entries[0].data["model"] == job.model

    async def test_keeping_records_adds_no_statement_to_a_jobs_own(self, queue: Queue) -> None:
        counts = []
        for is_kept in (False, True):
            job = await queue.accept_and_claim()
            worker = Worker(queue)
            with logging_configured(), sent_statements() as sent:
                if is_kept:
                    async with stored_records(queue.database, "worker-1", Redactor()):
                        await worker.run(job)
                else:
                    await worker.run(job)
            counts.append(sum("log_entries" not in one.text for one in sent))

        assert counts[0] == counts[1]
        assert sum("log_entries" in one.text for one in sent) == 1

    async def test_a_secret_of_the_process_is_in_no_row(self, queue: Queue) -> None:
        secret = "the-key-of-a-provider"
        worker = Worker(queue)
        worker.provider.on_submit(RuntimeError(f"401 for {secret}"))
        job = await queue.accept_and_claim()
        with logging_configured(secrets=[secret]) as written:
            async with stored_records(queue.database, "worker-1", Redactor([secret])):
                await worker.run(job)

        rows = await queue.query("SELECT data FROM log_entries WHERE job_id = :id", id=job.id)
        shown = json.dumps([row.data for row in rows])
        assert secret not in shown + written.getvalue()
        assert "401 for [redacted]" in shown

    async def test_trouble_with_keeping_is_not_kept(self, queue: Queue) -> None:
        before = await queue.query("SELECT max(id) AS id FROM log_entries")
        with logging_configured() as written:
            async with stored_records(queue.database, "worker-1", Redactor()) as sink:
                async with queue.database.begin() as connection:
                    await connection.execute(_LOCK)
                    job = await queue.accept_and_claim()
                    await Worker(queue).run(job)
                    await wait_until(lambda: "log_store_away" in written.getvalue())
                await wait_until(lambda: sink.waiting == 0, within=60)

        rows = await queue.query(
            "SELECT event FROM log_entries WHERE id > :id ORDER BY id", id=before[0].id or 0
        )
        assert [row.event for row in rows] == ["attempt_started", "outputs_stored", "attempt_finished"]
