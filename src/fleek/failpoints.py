"""Places where a process can be told to die, to hang or to fail, so that tests can stop it exactly there.

They do nothing unless the environment variable `FLEEK_FAILPOINTS` arms them when the process starts, as in
`order.after_create=kill` or `order.after_intent=wait(5000)@2;finish.before_commit=fail`. The notation is that
of FreeBSD's fail(9), as far as it is needed:

- `kill`: SIGKILL to the process itself.
- `wait(MS)`: the passing coroutine sleeps; everything else goes on.
- `block(MS)`: the event loop stands still.
- `fail`: raises `FailpointError`.

`@N` acts at the Nth passing of the process only; without it, at every one.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleek.core.errors import ConfigurationError

VARIABLE = "FLEEK_FAILPOINTS"
_TERM = re.compile(r"(?P<name>[a-z_.]+)=(?P<kind>kill|wait|block|fail)(?:\((?P<ms>\d+)\))?(?:@(?P<nth>\d+))?")


class Kind(StrEnum):
    """What can happen at an armed place."""

    KILL = "kill"
    WAIT = "wait"
    BLOCK = "block"
    FAIL = "fail"


_TIMED = frozenset({Kind.WAIT, Kind.BLOCK})


class Point(StrEnum):
    """Every place, by what has just happened or is about to."""

    ACCEPT_BEFORE_COMMIT = "accept.before_commit"
    ACCEPT_AFTER_COMMIT = "accept.after_commit"
    """Neither the wake-up nor the answer has left."""
    CLAIM_AFTER_COMMIT = "claim.after_commit"
    """Nothing of the jobs has begun."""
    ORDER_AFTER_INTENT = "order.after_intent"
    ORDER_AFTER_CREATE = "order.after_create"
    """The provider's handle is known to this process only."""
    ORDER_AFTER_RECORD = "order.after_record"
    OUTPUT_BEFORE_PUT = "output.before_put"
    OUTPUT_AFTER_PUT = "output.after_put"
    FINISH_BEFORE_COMMIT = "finish.before_commit"
    FINISH_AFTER_COMMIT = "finish.after_commit"
    """Nobody was told that the job is completed."""


class FailpointError(Exception):
    """What `fail` raises: no error that any part of Fleek expects."""


@dataclass(frozen=True, slots=True)
class Action:
    """What happens at an armed place."""

    kind: Kind
    seconds: float = 0
    nth: int | None = None
    """The only passing that it is for, counted from 1; None: every one."""


class Failpoints:
    """The armed places of one process."""

    def __init__(self, actions: Mapping[Point, Action]) -> None:
        self._actions = dict(actions)
        self._passings = dict.fromkeys(self._actions, 0)

    @classmethod
    def parse(cls, text: str) -> Failpoints:
        """Raises ConfigurationError for what is not understood: a misspelt failpoint would test nothing."""
        return cls(dict(_parse(term) for term in text.split(";") if term.strip()))

    async def pass_by(self, point: Point) -> None:
        """Act, if the place is armed and it is its turn."""
        action = self._actions.get(point)
        if action is None:
            return
        self._passings[point] += 1
        if action.nth is None or action.nth == self._passings[point]:
            await _act(action, point)


async def failpoint(point: Point) -> None:
    """Nothing, unless the environment armed the place."""
    if _ARMED is not None:
        await _ARMED.pass_by(point)


def is_armed() -> bool:
    """Whether any failpoint of this process is: nothing that anyone should run in production."""
    return _ARMED is not None


def _parse(term: str) -> tuple[Point, Action]:
    match = _TERM.fullmatch(term.strip())
    if match is None or match["name"] not in set(Point) or (match["kind"] in _TIMED) != bool(match["ms"]):
        message = f"{VARIABLE}: no such failpoint; they look like order.after_create=kill@2"
        raise ConfigurationError(message)
    nth = None if match["nth"] is None else int(match["nth"])
    return Point(match["name"]), Action(Kind(match["kind"]), int(match["ms"] or 0) / 1000, nth)


async def _act(action: Action, point: Point) -> None:
    match action.kind:
        case Kind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Kind.WAIT:
            await asyncio.sleep(action.seconds)
        case Kind.BLOCK:
            time.sleep(action.seconds)  # noqa: ASYNC251  that the loop stands still is what was asked for
        case Kind.FAIL:
            raise FailpointError(point)


_ARMED = Failpoints.parse(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
