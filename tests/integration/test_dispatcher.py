"""The dispatcher of a worker process: what makes it claim, how much, and how it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.queueing import FAKE, LEASE, Queue, wait_until

from fleek.core import job as core
from fleek.core.errors import DatabaseUnavailable
from fleek.jobs.claim import ClaimedJob, Claimer
from fleek.jobs.keeper import Stop
from fleek.tasks.dispatcher import Dispatcher
from fleek.testing import RecordingWaker

NEVER = timedelta(hours=1)


class Work:
    """A job that runs until it is told to end; a released one is put back."""

    def __init__(self, queue: Queue, job: ClaimedJob) -> None:
        self.queue = queue
        self.job = job
        self.done = asyncio.Event()
        self.why: Stop | None = None
        self.winds_down = False
        self.lingers = 0.0
        """Seconds that it goes on after it was told to stop, as one does that is placing an order."""

    async def run(self) -> None:
        await self.done.wait()
        await asyncio.sleep(self.lingers)
        if self.why is Stop.RELEASE:
            await self.queue.apply(self.job, core.released())
        else:
            await self.queue.finish(self.job)

    def wind_down(self) -> None:
        self.winds_down = True

    def stop(self, why: Stop) -> None:
        self.why = why
        self.done.set()


class Process:
    """A worker process around a dispatcher."""

    def __init__(self, queue: Queue, **options: Any) -> None:
        self.queue = queue
        self.work: list[Work] = []
        self.waker = options.pop("waker", RecordingWaker())
        options = {"queues": ["default"], "slots": 4, "interval": NEVER} | options
        claimer = options.pop("claimer", queue.claimer())
        self.dispatcher = Dispatcher(claimer, self._start, self.waker, **options)

    def _start(self, job: ClaimedJob) -> Work:
        self.work.append(Work(self.queue, job))
        return self.work[-1]

    @property
    def running(self) -> list[Work]:
        return [one for one in self.work if not one.done.is_set()]

    async def runs(self, count: int, within: float = 10) -> None:
        await wait_until(lambda: len(self.running) == count, within)
        await asyncio.sleep(0.03)
        assert len(self.running) == count


@pytest.fixture
async def start(queue: Queue) -> AsyncIterator[Callable[..., Process]]:
    """A function that starts a process, which has looked for work once."""
    started: list[Process] = []

    def start_one(**options: Any) -> Process:
        process = Process(queue, **options)
        started.append(process)
        process.dispatcher.start()
        return process

    yield start_one
    for process in started:
        await process.dispatcher.stop(timedelta(0))


Start = Callable[..., Process]


class TestClaiming:
    async def test_it_looks_at_once_and_takes_what_its_slots_hold(self, queue: Queue, start: Start) -> None:
        await queue.fill(9)

        process = start(slots=4)

        await process.runs(4)
        assert process.dispatcher.running == 4

    async def test_many_slots_are_filled_by_several_claims(self, queue: Queue, start: Start) -> None:
        await queue.fill(80)

        await start(slots=70).runs(70)

    async def test_a_wake_up_makes_it_claim(self, queue: Queue, start: Start) -> None:
        process = start()
        await process.runs(0)
        await queue.accept()

        ring = threading.Thread(target=process.dispatcher.wake_from_thread, args=("default", "task-1"))
        ring.start()
        ring.join()

        await process.runs(1)
        [attempt] = await queue.attempts(process.work[0].job.id)
        assert attempt.celery_task_id == "task-1"

    async def test_a_wake_up_of_another_queue_does_not(self, queue: Queue, start: Start) -> None:
        process = start()
        await process.runs(0)
        await queue.accept()

        process.dispatcher.wake_from_thread("gpu", None)

        await process.runs(0)

    async def test_wake_ups_during_a_claim_are_not_forgotten(self, queue: Queue, start: Start) -> None:
        process = start(slots=50)
        for count in range(1, 11):
            await queue.accept()
            process.dispatcher.wake_from_thread("default", None)
            await wait_until(lambda count=count: len(process.running) == count)

    async def test_a_lost_wake_up_costs_its_interval(self, queue: Queue, start: Start) -> None:
        process = start(interval=timedelta(seconds=0.3))
        await process.runs(0)
        await queue.accept()

        await process.runs(1, within=0.3 * 1.2 + 0.5)

        [attempt] = await queue.attempts(process.work[0].job.id)
        assert attempt.celery_task_id is None

    async def test_a_slot_that_frees_is_used_at_once(self, queue: Queue, start: Start) -> None:
        await queue.fill(5)
        process = start(slots=2)
        await process.runs(2)

        process.running[0].stop(Stop.LOST)

        await process.runs(2)
        assert len(process.work) == 3

    async def test_it_looks_again_when_a_job_that_was_put_back_is_due(
        self, queue: Queue, start: Start
    ) -> None:
        process = start()
        await process.runs(0)
        await queue.accept()
        await queue.change("UPDATE jobs SET available_at = clock_timestamp() + interval '0.2 seconds'")

        process.dispatcher.wake_after(timedelta(seconds=0.2))

        await process.runs(1, within=1)

    async def test_every_queue_that_it_serves_is_looked_at(self, queue: Queue, start: Start) -> None:
        await queue.accept()
        await queue.accept(queue="gpu")
        await queue.accept(queue="other")

        process = start(queues=["default", "gpu"])

        await process.runs(2)
        rows = [await queue.row(one.job.id) for one in process.work]
        assert {row.queue for row in rows} == {"default", "gpu"}


class TestPassingOn:
    async def test_a_claim_that_fills_the_process_passes_one_wake_up_on_while_more_is_due(
        self, queue: Queue, start: Start
    ) -> None:
        await queue.fill(10)

        process = start(slots=4)

        await process.runs(4)
        assert process.waker.woken == ["default"]

    async def test_a_claim_that_takes_the_last_due_job_does_not(self, queue: Queue, start: Start) -> None:
        await queue.fill(4)

        process = start(slots=4)

        await process.runs(4)
        assert process.waker.woken == []

    async def test_a_full_process_passes_a_wake_up_on_that_it_cannot_use(
        self, queue: Queue, start: Start
    ) -> None:
        await queue.fill(4)
        process = start(slots=4)
        await process.runs(4)
        await queue.accept()

        for _ in range(5):
            process.dispatcher.wake_from_thread("default", None)
            await asyncio.sleep(0.02)

        assert process.waker.woken == ["default"]

    async def test_it_does_so_again_after_its_interval(self, queue: Queue, start: Start) -> None:
        await queue.fill(5)
        process = start(slots=4, interval=timedelta(seconds=0.1))
        await process.runs(4)
        process.waker.woken.clear()
        for _ in range(2):
            process.dispatcher.wake_from_thread("default", None)
            await asyncio.sleep(0.15)

        assert process.waker.woken == ["default", "default"]

    async def test_one_wake_up_fills_all_processes_one_after_the_other(
        self, queue: Queue, start: Start
    ) -> None:
        processes: list[Process] = []
        claimers = [Flaky(queue) for _ in range(4)]
        network = Network(processes)
        processes += [start(slots=3, waker=network, claimer=claimer) for claimer in claimers]
        await wait_until(lambda: all(claimer.looks for claimer in claimers))
        await queue.fill(20)

        processes[0].dispatcher.wake_from_thread("default", None)

        for process in processes:
            await process.runs(3, within=10)

    async def test_when_everybody_is_full_wake_ups_do_not_go_round(self, queue: Queue, start: Start) -> None:
        await queue.fill(50)
        processes: list[Process] = []
        network = Network(processes)
        processes += [start(slots=3, waker=network) for _ in range(4)]
        for process in processes:
            await process.runs(3)
        before = network.count
        for _ in range(5):
            for process in processes:
                process.dispatcher.wake_from_thread("default", None)
            await asyncio.sleep(0.05)

        assert network.count - before <= len(processes)


class Network:
    """Carries a wake-up to one process after the other, as a broker does."""

    def __init__(self, processes: list[Process]) -> None:
        self.processes = processes
        self.count = 0

    def wake(self, queue: str) -> None:
        process = self.processes[self.count % len(self.processes)]
        self.count += 1
        process.dispatcher.wake_from_thread(queue, None)

    def close(self) -> None:
        pass


class Flaky(Claimer):
    """A claimer whose first claims fail."""

    def __init__(self, queue: Queue, *errors: Exception) -> None:
        super().__init__(queue.database, worker="w", lease=LEASE, models=[FAKE])
        self.errors = list(errors)
        self.tries = self.looks = 0

    async def claim(self, queue: str, slots: int, *, celery_task_id: str | None = None) -> list[ClaimedJob]:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        jobs = await super().claim(queue, slots, celery_task_id=celery_task_id)
        self.looks += 1
        return jobs


class TestPiledUpWakeUps:
    async def test_hundreds_of_wake_ups_for_nothing_cost_a_few_claims(
        self, queue: Queue, start: Start
    ) -> None:
        claimer = Flaky(queue)
        process = start(claimer=claimer)
        await wait_until(lambda: claimer.looks)
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(300):
            process.dispatcher.wake_from_thread("default", None)
            await asyncio.sleep(0.001)
        seconds = loop.time() - started

        assert 2 <= claimer.tries <= 2 + seconds / 0.01


class TestTroubles:
    @pytest.mark.parametrize("error", [DatabaseUnavailable(), RuntimeError("a bug")])
    async def test_a_claim_that_failed_is_tried_again(
        self, queue: Queue, start: Start, error: Exception
    ) -> None:
        await queue.accept()
        claimer = Flaky(queue, error)

        process = start(claimer=claimer, interval=timedelta(seconds=0.05))

        await process.runs(1, within=3)
        assert claimer.tries == 2

    async def test_a_wake_up_whose_claim_failed_is_not_lost(self, queue: Queue, start: Start) -> None:
        claimer = Flaky(queue)
        process = start(claimer=claimer)
        await wait_until(lambda: claimer.looks)
        claimer.errors.append(DatabaseUnavailable())
        await queue.accept()

        process.dispatcher.wake_from_thread("default", None)

        await process.runs(1, within=3)

    async def test_an_execution_that_crashes_frees_its_slot(self, queue: Queue) -> None:
        class Crash(Work):
            async def run(self) -> None:
                raise ZeroDivisionError

        await queue.fill(3)
        crashed: list[Crash] = []

        def begin(job: ClaimedJob) -> Crash:
            crashed.append(Crash(queue, job))
            return crashed[-1]

        dispatcher = Dispatcher(
            queue.claimer(), begin, RecordingWaker(), queues=["default"], slots=1, interval=NEVER
        )
        dispatcher.start()
        await wait_until(lambda: len(crashed) == 3)
        await dispatcher.stop(timedelta(0))

        assert dispatcher.running == 0


class Slow(Claimer):
    """A claimer whose answer travels for a while."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue.database, worker="w", lease=LEASE, models=[FAKE])
        self.claimed = asyncio.Event()
        self.travelled = asyncio.Event()

    async def claim(self, queue: str, slots: int, *, celery_task_id: str | None = None) -> list[ClaimedJob]:
        jobs = await super().claim(queue, slots, celery_task_id=celery_task_id)
        self.claimed.set()
        await self.travelled.wait()
        return jobs


class TestStop:
    async def test_nothing_is_claimed_any_more(self, queue: Queue, start: Start) -> None:
        process = start()
        await process.runs(0)
        process.dispatcher.begin_stop()
        process.dispatcher.begin_stop()
        await queue.accept()

        process.dispatcher.wake_from_thread("default", None)

        await process.runs(0)

    async def test_jobs_that_end_in_the_grace_time_are_finished(self, queue: Queue, start: Start) -> None:
        await queue.fill(2)
        process = start()
        await process.runs(2)
        stopping = asyncio.create_task(process.dispatcher.stop(timedelta(seconds=5)))
        await asyncio.sleep(0.05)
        for work in process.work:
            work.done.set()
        await asyncio.wait_for(stopping, timeout=1)

        rows = [await queue.row(work.job.id) for work in process.work]
        assert {row.status for row in rows} == {"completed"}

    async def test_the_rest_is_given_back(self, queue: Queue, start: Start) -> None:
        await queue.fill(3)
        process = start()
        await process.runs(3)

        await process.dispatcher.stop(timedelta(seconds=0.05))

        rows = [await queue.row(work.job.id) for work in process.work]
        assert {(row.status, row.reason, row.failures) for row in rows} == {("in_queue", "interrupted", 0)}
        assert process.dispatcher.running == 0

    async def test_other_workers_are_woken_for_what_was_given_back(self, queue: Queue, start: Start) -> None:
        await queue.fill(2)
        await queue.fill(1, queue="gpu")
        process = start(queues=["default", "gpu", "other"])
        await process.runs(3)

        await process.dispatcher.stop(timedelta(0))

        assert set(process.waker.woken) == {"default", "gpu"}

    async def test_they_are_woken_during_the_grace_time_for_what_is_given_back_early(
        self, queue: Queue, start: Start
    ) -> None:
        await queue.fill(2)
        process = start()
        await process.runs(2)
        stopping = asyncio.create_task(process.dispatcher.stop(timedelta(seconds=60)))
        await asyncio.sleep(0)

        process.work[0].stop(Stop.RELEASE)

        await wait_until(lambda: process.waker.woken == ["default"])
        assert not stopping.done()
        process.work[1].done.set()
        await stopping

    async def test_the_grace_time_counts_from_when_the_stop_began(self, queue: Queue, start: Start) -> None:
        await queue.fill(1)
        process = start()
        await process.runs(1)
        process.dispatcher.begin_stop()
        await asyncio.sleep(0.1)
        process.dispatcher._stopped_at -= 60

        await asyncio.wait_for(process.dispatcher.stop(timedelta(seconds=60)), timeout=20)

        assert process.work[0].why is Stop.RELEASE

    @pytest.mark.parametrize("is_early", [True, False])
    async def test_the_grace_time_can_be_ended(self, queue: Queue, start: Start, *, is_early: bool) -> None:
        await queue.fill(2)
        process = start()
        await process.runs(2)
        if is_early:
            process.dispatcher.end_grace()
        stopping = asyncio.create_task(process.dispatcher.stop(timedelta(hours=1)))
        await asyncio.sleep(0.05)
        process.dispatcher.end_grace()

        await asyncio.wait_for(stopping, timeout=20)

        assert [work.why for work in process.work] == [Stop.RELEASE] * 2

    async def test_a_claim_in_flight_is_given_back(self, queue: Queue, start: Start) -> None:
        await queue.fill(2)
        claimer = Slow(queue)
        process = start(claimer=claimer)
        await claimer.claimed.wait()
        process.dispatcher.begin_stop()
        claimer.travelled.set()

        await asyncio.wait_for(process.dispatcher.stop(timedelta(seconds=5)), timeout=2)

        rows = await queue.query("SELECT status, reason FROM jobs")
        assert {(row.status, row.reason) for row in rows} == {("in_queue", "interrupted")}

    async def test_a_claim_in_flight_is_the_last_one(self, queue: Queue, start: Start) -> None:
        await queue.fill(80)
        claimer = Slow(queue)
        process = start(claimer=claimer, slots=70)
        await claimer.claimed.wait()
        process.dispatcher.begin_stop()
        claimer.travelled.set()

        await asyncio.wait_for(process.dispatcher.stop(timedelta(seconds=5)), timeout=20)

        attempts = await queue.query("SELECT DISTINCT job_id FROM attempts")
        assert len(attempts) == len(process.work) < 70

    async def test_what_runs_is_told_to_place_no_order_any_more(self, queue: Queue, start: Start) -> None:
        await queue.fill(2)
        process = start()
        await process.runs(2)
        before = [work.winds_down for work in process.work]

        process.dispatcher.begin_stop()

        assert before == [False, False]
        assert [work.winds_down for work in process.work] == [True, True]

    async def test_an_order_that_is_being_placed_is_waited_for(self, queue: Queue, start: Start) -> None:
        await queue.fill(1)
        process = start(create_timeout=timedelta(seconds=10))
        await process.runs(1)
        process.work[0].lingers = 6

        await process.dispatcher.stop(timedelta(0))

        assert (await queue.row(process.work[0].job.id)).reason == "interrupted"

    async def test_a_process_that_never_started_stops(self, queue: Queue) -> None:
        await Process(queue).dispatcher.stop(timedelta(0))
