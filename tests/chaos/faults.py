"""The faults: what each one does to which part, how it ends, and when it strikes."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleek.failpoints import Point
from tests.cluster.cluster import Cluster
from tests.cluster.parts import Part
from tests.cluster.proxy import FaultProxy

_MEAN_GAP = 3.5
"""Seconds between the beginnings of two faults."""
_FIRST, _QUIET_END = 2.0, 3.0
"""Seconds at the beginning and at the end of a run in which none begins."""
_WORKER_POINTS = (
    Point.CLAIM_AFTER_COMMIT,
    Point.ORDER_AFTER_INTENT,
    Point.ORDER_AFTER_CREATE,
    Point.ORDER_AFTER_RECORD,
    Point.OUTPUT_BEFORE_PUT,
    Point.OUTPUT_AFTER_PUT,
    Point.FINISH_BEFORE_COMMIT,
    Point.FINISH_AFTER_COMMIT,
)
_API_POINTS = (Point.ACCEPT_BEFORE_COMMIT, Point.ACCEPT_AFTER_COMMIT)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a run."""

    at: float
    """Seconds after the start."""
    kind: str
    target: str
    """The part's name, such as `worker-2`."""
    seconds: float
    """After so long it ends."""
    arm: str = ""
    """Failpoints of the process that is started again."""

    def __str__(self) -> str:
        """One line of a schedule."""
        return f"{self.at:8.2f}  {self.kind:<18}{self.target:<10}{self.seconds:5.2f}  {self.arm}".rstrip()


Action = Callable[[Cluster, Fault], None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of fault."""

    target: str
    """What it strikes: `worker` and `api` have several."""
    shortest: float
    longest: float
    begin: Action
    end: Action


def _part(cluster: Cluster, name: str) -> Part:
    return next(part for part in (*cluster.apis, *cluster.workers) if part.name == name)


def _proxy(cluster: Cluster, name: str) -> FaultProxy:
    return cluster.proxies.all()[name]


def _kill(cluster: Cluster, fault: Fault) -> None:
    _part(cluster, fault.target).kill()


def _start(cluster: Cluster, fault: Fault) -> None:
    """Start the process, with no failpoint armed; one that lives is killed first."""
    part = _part(cluster, fault.target)
    if part.exit_code is None:
        part.kill()
    part.launch()


def _start_armed(cluster: Cluster, fault: Fault) -> None:
    part = _part(cluster, fault.target)
    part.kill()
    part.launch(FLEEK_FAILPOINTS=fault.arm)


def _signal(number: signal.Signals) -> Action:
    return lambda cluster, fault: _part(cluster, fault.target).send(number)


def _switch(turn: Callable[[FaultProxy], None]) -> Action:
    return lambda cluster, fault: turn(_proxy(cluster, fault.target))


def _rule(route: str, **script: object) -> Action:
    return lambda cluster, _: cluster.vendor.on(route, times=None, **script)


def _nothing(cluster: Cluster, fault: Fault) -> None:
    """It is over by itself."""


def _crash_postgres(cluster: Cluster, _: Fault) -> None:
    cluster.crash_postgres()


def _start_postgres(cluster: Cluster, _: Fault) -> None:
    cluster.start_postgres()


def _kill_valkey(cluster: Cluster, _: Fault) -> None:
    cluster.valkey.stop(((signal.SIGKILL, 1.0),))


def _start_valkey(cluster: Cluster, _: Fault) -> None:
    cluster.start_valkey()


def _flush_valkey(cluster: Cluster, _: Fault) -> None:
    cluster.flush_valkey()


_heal = _switch(FaultProxy.heal)
_refuse = _switch(FaultProxy.refuse)
_silence = _switch(FaultProxy.fall_silent)
_cut = _switch(FaultProxy.cut)


def _obey(cluster: Cluster, _: Fault) -> None:
    """The vendor behaves again."""
    cluster.vendor.forget_rules()


KINDS: dict[str, Kind] = {
    "kill_worker": Kind("worker", 0, 6, _kill, _start),
    "freeze_worker": Kind("worker", 5, 9, _signal(signal.SIGSTOP), _signal(signal.SIGCONT)),
    "stop_worker": Kind("worker", 6, 9, _signal(signal.SIGTERM), _start),
    "trap_worker": Kind("worker", 6, 10, _start_armed, _start),
    "kill_api": Kind("api", 0, 4, _kill, _start),
    "freeze_api": Kind("api", 1, 5, _signal(signal.SIGSTOP), _signal(signal.SIGCONT)),
    "trap_api": Kind("api", 3, 6, _start_armed, _start),
    "crash_postgres": Kind("postgres", 0, 5, _crash_postgres, _start_postgres),
    "cut_postgres": Kind("postgres", 0, 0, _cut, _nothing),
    "silence_postgres": Kind("postgres", 2, 8, _silence, _heal),
    "refuse_postgres": Kind("postgres", 1, 8, _refuse, _heal),
    "slow_postgres": Kind("postgres", 3, 8, _switch(lambda proxy: proxy.slow_down(0.1)), _heal),
    "kill_valkey": Kind("valkey", 0, 8, _kill_valkey, _start_valkey),
    "flush_valkey": Kind("valkey", 0, 0, _flush_valkey, _nothing),
    "silence_valkey": Kind("valkey", 2, 8, _silence, _heal),
    "refuse_store": Kind("store", 2, 8, _refuse, _heal),
    "silence_store": Kind("store", 2, 6, _silence, _heal),
    "cut_store": Kind("store", 0, 0, _cut, _nothing),
    "refuse_vendor": Kind("vendor", 2, 6, _refuse, _heal),
    "silence_vendor": Kind("vendor", 2, 6, _silence, _heal),
    "slow_vendor": Kind("vendor", 3, 8, _switch(lambda proxy: proxy.slow_down(0.5)), _heal),
    "cut_vendor": Kind("vendor", 0, 0, _cut, _nothing),
    "throttle": Kind("rules", 2, 4, _rule("create", status=429, headers={"Retry-After": "2"}), _obey),
    "errors": Kind("rules", 2, 6, _rule("*", status=503, chance=0.7), _obey),
    "lost_replies": Kind("rules", 2, 6, _rule("create", cut="after", chance=0.6), _obey),
    "late_errors": Kind("rules", 2, 6, _rule("create", status=502, accepted=True, chance=0.6), _obey),
    "forgotten_orders": Kind("rules", 1, 3, _rule("create", end="lost", cut="after", chance=0.2), _obey),
}
"""Every kind; of one target only one is on at a time."""


def plan_faults(
    seed: int, seconds: float, *, apis: int, workers: int, kinds: Sequence[str] = tuple(KINDS)
) -> list[Fault]:
    """The faults of a run by their time: the same for the same arguments.

    Kinds are dealt like cards, so that each comes once before any comes twice.
    """
    chance = random.Random(f"faults {seed}")  # noqa: S311  chance, no secret
    counts = {"worker": workers, "api": apis}
    busy: dict[str, float] = {}
    faults: list[Fault] = []
    deck: list[str] = []
    at = _FIRST
    while at < seconds - _QUIET_END:
        deck = deck or chance.sample(list(kinds), len(kinds))
        fault = _deal(chance, deck.pop(), at, counts)
        if busy.get(fault.target, 0) <= at:
            faults.append(fault)
            busy[fault.target] = at + fault.seconds + 1
        else:
            deck.insert(0, fault.kind)
        at += chance.expovariate(1 / _MEAN_GAP)
    return faults


def _deal(chance: random.Random, name: str, at: float, counts: dict[str, int]) -> Fault:
    kind = KINDS[name]
    count = counts.get(kind.target)
    target = kind.target if count is None else f"{kind.target}-{chance.randint(1, count)}"
    points = _API_POINTS if kind.target == "api" else _WORKER_POINTS
    arm = f"{chance.choice(points)}=kill@{chance.randint(1, 3)}" if name.startswith("trap_") else ""
    return Fault(round(at, 2), name, target, round(chance.uniform(kind.shortest, kind.longest), 2), arm)
