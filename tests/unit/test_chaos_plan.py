"""What `script/chaos` does follows from its seed, and what its clients saw outlives it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tests.chaos.faults import KINDS, Fault, plan_faults
from tests.chaos.journal import Journal, read
from tests.chaos.workload import plan_errands

SEEDS = range(20)


def faults(seed: int, seconds: float = 600, **more: tuple[str, ...]) -> list[Fault]:
    return plan_faults(seed, seconds, apis=2, workers=3, **more)


def test_the_same_seed_makes_the_same_schedule() -> None:
    assert faults(7) == faults(7)
    assert faults(7) != faults(8)


def test_the_same_seed_makes_the_same_jobs() -> None:
    assert plan_errands(7, 50, 60, 2) == plan_errands(7, 50, 60, 2)
    assert plan_errands(7, 50, 60, 2) != plan_errands(8, 50, 60, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_minutes_have_every_kind_of_fault(seed: int) -> None:
    assert {fault.kind for fault in faults(seed)} == set(KINDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_of_one_target_only_one_fault_is_on_at_a_time(seed: int) -> None:
    by_target = sorted(faults(seed), key=lambda fault: (fault.target, fault.at))
    pairs = [pair for pair in itertools.pairwise(by_target) if pair[0].target == pair[1].target]

    assert pairs
    assert all(before.at + before.seconds < after.at for before, after in pairs)


def test_only_the_wanted_kinds_are_dealt() -> None:
    assert {fault.kind for fault in faults(7, kinds=("kill_worker", "cut_store"))} == {
        "kill_worker",
        "cut_store",
    }


def test_only_processes_that_are_trapped_have_failpoints() -> None:
    armed = [fault for fault in faults(7) if fault.arm]

    assert {fault.kind for fault in armed} == {"trap_worker", "trap_api"}
    assert all("=kill@" in fault.arm for fault in armed)


def test_every_job_has_a_prompt_and_a_key_of_its_own() -> None:
    errands = plan_errands(7, 500, 60, 2)

    assert (
        len({errand.body["prompt"] for errand in errands}) == len({errand.key for errand in errands}) == 500
    )


def test_a_journal_whose_last_line_was_torn_is_read_up_to_it(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    journal = Journal(file)
    journal.write(asked="POST", url="/a\u2028b")
    journal.write(told=202, url="/")
    journal.close()
    file.write_text(file.read_text() + '{"at": 3.1, "to')

    found = [entry.get("asked") or entry["told"] for entry in read(file)]

    assert found == ["POST", 202]
