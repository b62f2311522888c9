"""Failpoints do nothing unless armed, and exactly what they were told when they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from fleek.core.errors import ConfigurationError
from fleek.failpoints import FailpointError, Failpoints, Point, failpoint, is_armed

PASS = """
import asyncio
from fleek.failpoints import Point, failpoint
async def main():
    for number in range(3):
        await failpoint(Point.ORDER_AFTER_CREATE)
        print(number, flush=True)
asyncio.run(main())
"""


async def test_nothing_happens_where_nothing_is_armed() -> None:
    for point in Point:
        await failpoint(point)

    assert not is_armed()


@pytest.mark.parametrize(
    ("text", "passed"), [("order.after_create=kill", ""), ("order.after_create=kill@3", "0\n1\n")]
)
def test_the_environment_arms_a_point_of_a_process(text: str, passed: str) -> None:
    environment = os.environ | {"FLEEK_FAILPOINTS": text}

    ended = subprocess.run(
        [sys.executable, "-c", PASS], env=environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, passed)


async def test_only_the_armed_point_fails() -> None:
    armed = Failpoints.parse("finish.before_commit=fail")
    await armed.pass_by(Point.FINISH_AFTER_COMMIT)

    with pytest.raises(FailpointError):
        await armed.pass_by(Point.FINISH_BEFORE_COMMIT)


async def test_a_counted_point_acts_at_that_passing_only() -> None:
    armed = Failpoints.parse("claim.after_commit=fail@2")
    await armed.pass_by(Point.CLAIM_AFTER_COMMIT)
    with pytest.raises(FailpointError):
        await armed.pass_by(Point.CLAIM_AFTER_COMMIT)

    assert await armed.pass_by(Point.CLAIM_AFTER_COMMIT) is None


@pytest.mark.parametrize("kind", ["wait", "block"])
async def test_a_delay_takes_its_time(kind: str) -> None:
    armed = Failpoints.parse(f"output.before_put={kind}(30); output.after_put={kind}(1)")
    before = time.monotonic()

    await armed.pass_by(Point.OUTPUT_BEFORE_PUT)

    assert time.monotonic() - before >= 0.029


@pytest.mark.parametrize(
    "text",
    [
        "order.after_create",
        "order.after_create=explode",
        "order.after_lunch=kill",
        "order.after_create=wait",
        "order.after_create=kill(3)",
        "order.after_create=kill@",
    ],
)
def test_what_is_misspelt_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="FLEEK_FAILPOINTS"):
        Failpoints.parse(text)
