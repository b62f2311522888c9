"""What the doctor makes of the facts that it finds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from fleek.cli.checks import Check, _bounded, judge_disk, judge_models, judge_skew, judge_version
from fleek.cli.checks_work import judge_ambiguous, judge_leases, judge_pauses, judge_queue, judge_workers
from fleek.cli.findings import Finding
from fleek.providers.demo import DemoProvider
from fleek.providers.registry import build_catalog
from fleek.settings import Settings, load_settings

_GIB = 1024**3
CATALOG = build_catalog({}, {"demo": DemoProvider()}, {})
SERVES_DEFAULT = "fleek worker default"


def due(**changes: object) -> dict[str, object]:
    """Three due jobs of one model in one queue."""
    row = {"queue": "default", "model": "demo", "jobs": 3, "is_late": False, "seconds": 70, "is_served": True}
    return row | changes


def paused(model: str, until: datetime | None) -> dict[str, object]:
    return {"model": model, "until": until, "reason": "why"}


@pytest.mark.parametrize(
    ("finding", "verdict", "detail"),
    [
        (judge_disk(50 * _GIB, "/home"), "ok", "50.0 GiB free at /home"),
        (judge_disk(_GIB, "/home"), "warning", "1.0 GiB free at /home"),
        (judge_disk(1024, "/home"), "failed", "0.0 GiB free at /home"),
        (judge_version(16, 0), "ok", "PostgreSQL 16.0"),
        (judge_version(15, 9), "failed", "PostgreSQL 15.9 is too old"),
        (judge_skew(-1.9), "ok", "1.90 s apart from the database"),
        (judge_skew(-2.1), "warning", "2.10 s apart from the database"),
        (judge_skew(2.1), "warning", "2.10 s apart from the database"),
        (judge_models(["demo", "flux"], {}), "ok", "demo, flux"),
        (judge_models(["demo"], {"flux": "it needs a key"}), "warning", "flux: it needs a key"),
        (
            judge_workers([], [{"application_name": "fleek worker default"}]),
            "ok",
            "connected, and no queue is left waiting",
        ),
        (judge_workers([], []), "failed", "none is connected to the database"),
        (
            judge_workers([due(is_late=True, is_served=False)], []),
            "failed",
            "due jobs wait and no worker takes them: default (70 s)",
        ),
        (judge_queue([], [], CATALOG), "ok", "nothing is late"),
        (judge_queue([due(queue="gpu")], [], CATALOG), "ok", "nothing is late"),
        (judge_queue([due()], [SERVES_DEFAULT], CATALOG), "ok", "nothing is late"),
        (
            judge_queue([due(is_late=True)], [SERVES_DEFAULT], CATALOG),
            "warning",
            "late, the oldest for 70 s: 3 of demo in default",
        ),
        (
            judge_queue([due(is_late=True, jobs=1001)], [SERVES_DEFAULT], CATALOG),
            "warning",
            "late, the oldest for 70 s: more than 1000 of demo in default",
        ),
        (
            judge_queue([due(queue="gpu")], [SERVES_DEFAULT], CATALOG),
            "warning",
            "no worker serves the queue of 3 of demo in gpu",
        ),
        (
            judge_queue([due(queue="gpu")], [SERVES_DEFAULT, "fleek worker gpu,cpu"], CATALOG),
            "ok",
            "nothing is late",
        ),
        (judge_queue([due(queue="gpu")], [f"fleek worker {'q' * 50}"], CATALOG), "ok", "nothing is late"),
        (
            judge_queue([due(model="gone")], [SERVES_DEFAULT], CATALOG),
            "warning",
            "this configuration has no such model: 3 of gone in default",
        ),
        (judge_leases(0, 0), "ok", "every running job has its worker"),
        (
            judge_leases(2, 90),
            "warning",
            "running jobs without a worker: 2, the first for 90 s",
        ),
        (judge_pauses([]), "ok", "no model is paused"),
        (
            judge_pauses([paused("a", None), paused("b", datetime(2026, 11, 21, 12, tzinfo=UTC))]),
            "warning",
            "a until resumed: why; b until 2026-11-21T12:00:00+00:00: why",
        ),
        (judge_ambiguous(0), "ok", "no order was lost in the last 7 days"),
        (
            judge_ambiguous(4),
            "warning",
            "jobs of the last 7 days that may have been paid for without a result: 4",
        ),
        (judge_models([], {"flux": "it needs a key"}), "failed", "none can be used; flux: it needs a key"),
    ],
)
def test_a_fact_becomes_a_finding_with_a_remedy_unless_all_is_well(
    finding: Finding, verdict: str, detail: str
) -> None:
    assert (finding.verdict, finding.detail) == (verdict, detail)
    assert (finding.remedy is None) is (verdict == "ok")


async def test_what_the_system_says_keeps_the_names_in_it(tmp_path: Path) -> None:
    async def ask(_: Settings) -> Finding:
        raise OSError("No answer from /Home/run")

    found = await _bounded(Check("broker", ask, "start it"), load_settings(home=tmp_path))

    assert (found.verdict, found.detail, found.remedy) == (
        "failed",
        "no answer from /Home/run",
        "start it",
    )
