"""Random lives of jobs on a real PostgreSQL, with two workers of which neither knows what the other did.

Claims are kept and used again long after they were lost, as a frozen worker would: what holds after every
step is what the whole design promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from tests.queueing import LEASE, Queue, check_history

from fleek.core import job as core
from fleek.core.errors import LeaseLost, OutputTooLarge, ProviderError, ProviderErrorKind, StorageUnavailable
from fleek.core.job import TERMINAL, TRANSITIONS, Status
from fleek.db.session import Database, PoolOptions
from fleek.jobs import leases, submissions
from fleek.jobs.claim import ClaimedJob
from fleek.providers.base import Handle

EXAMPLES, STEPS = 40, 30
_Result = TypeVar("_Result")

errors = st.sampled_from([ProviderError(kind, "no") for kind in ProviderErrorKind]) | st.sampled_from(
    [OutputTooLarge("no"), StorageUnavailable(), RuntimeError("a bug")]
)

_JOBS = """
SELECT jobs.*, (SELECT array_agg(kind ORDER BY sequence) FROM events WHERE job_id = jobs.id) AS kinds,
    (SELECT array_agg(sequence ORDER BY sequence) FROM events WHERE job_id = jobs.id) AS sequences,
    (SELECT array_agg(number) FROM attempts WHERE job_id = jobs.id AND finished_at IS NULL) AS running,
    (SELECT count(*) FROM submissions WHERE job_id = jobs.id AND resolved_at IS NULL) AS open_orders,
    (SELECT count(*) FROM media WHERE job_id = jobs.id AND key IS NOT NULL) AS results
FROM jobs
"""


class Lives(RuleBasedStateMachine):
    """Every rule is something that a client, a worker or a caretaker does."""

    url = ""
    jobs: Bundle[UUID] = Bundle("jobs")
    claims: Bundle[ClaimedJob] = Bundle("claims")
    intents: Bundle[tuple[ClaimedJob, int]] = Bundle("intents")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.queue = Queue(Database(self.url, PoolOptions(size=1)))
        self.before: dict[UUID, Any] = {}

    def do(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run one thing on this machine's own loop."""
        return self.runner.run(work)

    def holds(self, claim: ClaimedJob) -> bool:
        """Whether the claim is still its worker's, as the row says."""
        row = self.do(self.queue.row(claim.id))
        return bool(row.status == Status.PROCESSING and row.fence == claim.fence)

    @initialize()
    def begin_with_an_empty_queue(self) -> None:
        self.do(self.queue.change("DELETE FROM jobs"))
        self.do(self.queue.change("DELETE FROM lane_state"))

    @rule(target=jobs, n=st.integers(1, 3), max_attempts=st.integers(1, 3))
    def accept(self, n: int, max_attempts: int) -> UUID:
        return self.do(self.queue.accept(n=n, max_attempts=max_attempts)).id

    @rule(target=claims, worker=st.sampled_from(["worker-1", "worker-2"]), slots=st.integers(1, 2))
    def claim(self, worker: str, slots: int) -> Any:
        claimed = self.do(self.queue.claim(slots, worker=worker))
        assert all(self.before[one.id].status == Status.IN_QUEUE for one in claimed)
        assert len({one.id for one in claimed}) == len(claimed) <= slots
        return multiple(*claimed)

    @rule(claim=claims, count=st.integers(1, 4))
    def finish(self, claim: ClaimedJob, count: int) -> None:
        held = self.holds(claim)
        assert self.do(self.queue.finish(claim, count)) is held

    @rule(claim=claims, error=errors, jitter=st.floats(0, 1, exclude_max=True))
    def fail(self, claim: ClaimedJob, error: Exception, jitter: float) -> None:
        held = self.holds(claim)
        transition = core.decide_after_error(claim.view, error, claim.claimed_at, jitter)
        assert (self.do(self.queue.apply(claim, transition)) is not None) is held

    @rule(claim=claims)
    def release(self, claim: ClaimedJob) -> None:
        held = self.holds(claim)
        assert (self.do(self.queue.apply(claim, core.released())) is not None) is held

    @rule(claim=claims)
    def stop_for_a_cancel(self, claim: ClaimedJob) -> None:
        held = self.holds(claim) and claim.cancel_requested
        if held:
            assert self.do(self.queue.apply(claim, core.canceled())) is Status.CANCELED

    @rule(claim=claims)
    def renew(self, claim: ClaimedJob) -> None:
        held = self.holds(claim)
        mine = [leases.Held(claim.id, claim.fence, 0.5)]
        [renewal] = self.do(self.renewals(mine))
        assert (renewal.lease is leases.Lease.RENEWED) is held

    async def renewals(self, held: list[leases.Held]) -> list[leases.Renewal]:
        return list((await leases.renew(self.queue.database, held, LEASE)).values())

    @rule(target=intents, claim=claims)
    def intend(self, claim: ClaimedJob) -> Any:
        free = self.holds(claim) and not self.before[claim.id].open_orders
        if not free:
            if not self.holds(claim):
                with pytest.raises(LeaseLost):
                    self.do(self.queue.order(claim))
            return multiple()
        return claim, self.do(self.queue.order(claim))

    @rule(intent=consumes(intents))
    def record_a_handle(self, intent: tuple[ClaimedJob, int]) -> None:
        claim, ordinal = intent
        handle = Handle(f"h-{claim.id}-{ordinal}")
        self.do(submissions.record(self.queue.database, claim.id, claim.fence, ordinal, handle))

    @rule(claim=claims, resolution=st.sampled_from(["rejected", "failed"]))
    def resolve_an_order(self, claim: ClaimedJob, resolution: str) -> None:
        if self.holds(claim):
            for order in self.do(self.queue.orders(claim.id)):
                self.do(submissions.resolve(self.queue.database, claim.id, order.ordinal, resolution))

    @rule(job=jobs)
    def cancel(self, job: UUID) -> None:
        live = self.before[job].status not in TERMINAL
        assert (self.do(self.queue.cancel(job)) is not None) is live

    @rule(job=jobs)
    def retry(self, job: UUID) -> None:
        can = self.before[job].status in {Status.ERROR, Status.CANCELED}
        assert (self.do(self.queue.retry(job)) is not None) is can

    @rule(claim=claims, expire=st.booleans(), own_work=st.booleans())
    def rescue(self, claim: ClaimedJob, *, expire: bool, own_work: bool) -> None:
        held = self.holds(claim)
        if expire and held:
            self.do(self.queue.expire_lease(claim.id))
        taken = self.do(self.queue.rescue(claim, own_work=own_work and not self.before[claim.id].open_orders))
        assert (taken is not None) is (expire and held)

    @rule()
    def let_time_pass(self) -> None:
        self.do(self.queue.make_due())
        self.do(self.queue.change("DELETE FROM lane_state"))

    @rule(job=jobs)
    def pass_the_deadline(self, job: UUID) -> None:
        if self.before[job].status not in TERMINAL:
            self.do(self.queue.pass_deadline(job))
            self.do(leases.end_past_deadline(self.queue.database, "late"))

    @invariant()
    def what_was_promised(self) -> None:
        now = {row.id: row for row in self.do(self.queue.query(_JOBS))}
        for row in now.values():
            check_row(row, self.before.get(row.id))
        self.before = now

    def teardown(self) -> None:
        self.do(self.queue.database.aclose())
        self.runner.close()


def check_row(row: Any, before: Any) -> None:
    """One job after a step, and before it."""
    check_history(row, row.kinds, row.sequences)
    assert (row.running or []) == ([row.fence] if row.status == Status.PROCESSING else [])
    assert row.failures <= row.max_attempts
    assert not (row.open_orders and row.status in TERMINAL)
    assert not (row.open_orders and row.status == Status.IN_QUEUE and not row.resuming)
    assert (row.results > 0) is (row.status == Status.COMPLETED)
    assert row.status != Status.COMPLETED or row.results == row.n
    if before is not None:
        assert row.fence in {before.fence, before.fence + 1}
        assert row.event_sequence >= before.event_sequence
        assert row.kinds[: len(before.kinds)] == before.kinds
        assert row.status == before.status or row.status in TRANSITIONS[Status(before.status)]


def test_what_is_promised_holds_after_every_step_of_random_lives(queue_url: str) -> None:
    lives = type("QueueLives", (Lives,), {"url": queue_url})

    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis leaves it untyped
        lives,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
