"""What the doctor makes of the facts that it finds."""

from __future__ import annotations

import pytest

from fleek.cli.checks import Finding, judge_disk, judge_models, judge_skew, judge_version

_GIB = 1024**3


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
        (judge_models([], {"flux": "it needs a key"}), "failed", "none can be used; flux: it needs a key"),
    ],
)
def test_a_fact_becomes_a_finding_with_a_remedy_unless_all_is_well(
    finding: Finding, verdict: str, detail: str
) -> None:
    assert (finding.verdict, finding.detail) == (verdict, detail)
    assert (finding.remedy is None) is (verdict == "ok")
