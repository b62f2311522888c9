"""Programs that are kept running, and end together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fleek.cli.supervisor import Kept, Layer, Supervisor
from fleek.core.errors import ConfigurationError, Unavailable
from fleek.local.process import Process, Program, spawn

_SLEEPS = "import time; time.sleep(60)"
_NOTES_ITS_END = """
import signal, sys, time
def note(*_):
    with open(sys.argv[1], "a") as file: print(sys.argv[2], file=file)
    sys.exit(0)
signal.signal(signal.SIGTERM, note)
print("up", flush=True)
time.sleep(60)
"""
_IGNORES_SIGTERM = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


@pytest.fixture
def said() -> list[str]:
    """What the supervisor told."""
    return []


@pytest.fixture
async def supervisor(said: list[str]) -> AsyncIterator[Supervisor]:
    """One that listens to this process's signals; everything it keeps is killed after the test."""
    supervisor = Supervisor(said.append)
    supervisor.listen_to_signals()
    yield supervisor
    for kept in supervisor.kept:
        if kept.process is not None:
            kept.process.kill()


@pytest.fixture
def new_kept(tmp_path: Path) -> Callable[..., Kept]:
    """A function that describes a Python program which is to be kept running."""

    def new(name: str, code: str, *arguments: str, layer: Layer = Layer.PROGRAM) -> Kept:
        def start() -> Process:
            command = [sys.executable, "-c", code, *arguments]
            return spawn(Program(name, command, tmp_path / f"{name}.pid", log=tmp_path / f"{name}.log"))

        return Kept(name, layer, start)

    return new


async def test_a_program_that_dies_is_started_again(
    supervisor: Supervisor, new_kept: Callable[..., Kept], said: list[str]
) -> None:
    kept = new_kept("api", _SLEEPS)
    supervisor.keep(kept)
    watching = asyncio.create_task(supervisor.watch())
    first = _pid(kept)

    os.kill(first, signal.SIGKILL)
    await _until(lambda: _pid(kept) != first)
    supervisor.stopping.set()
    await watching

    assert said == ["api ended unexpectedly (SIGKILL); starting it again in 0.5 s"]
    assert kept.process is not None
    assert kept.process.poll() is None


def test_the_pause_grows_up_to_half_a_minute(new_kept: Callable[..., Kept]) -> None:
    kept = new_kept("api", _SLEEPS)
    kept.started = time.monotonic()

    pauses = [kept.next_pause() for _ in range(9)]

    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_program_that_ran_well_starts_with_the_first_pause_again(new_kept: Callable[..., Kept]) -> None:
    kept = new_kept("api", _SLEEPS)
    kept.failures, kept.started = 5, time.monotonic() - 61

    assert kept.next_pause() == 0.5


async def test_a_program_that_cannot_be_started_again_is_tried_again(
    supervisor: Supervisor, new_kept: Callable[..., Kept], said: list[str]
) -> None:
    kept = new_kept("postgres", _SLEEPS)
    working, calls = kept.start, 0

    def start() -> Process:
        nonlocal calls
        calls += 1
        if calls == 2:
            message = "its folder is gone"
            raise ConfigurationError(message)
        return working()

    kept.start = start
    supervisor.keep(kept)
    watching = asyncio.create_task(supervisor.watch())
    os.kill(_pid(kept), signal.SIGKILL)
    await _until(lambda: calls == 3)
    supervisor.stopping.set()
    await watching

    assert "postgres cannot be started: its folder is gone" in said


async def test_programs_stop_before_the_servers_that_they_use(
    supervisor: Supervisor, new_kept: Callable[..., Kept], tmp_path: Path
) -> None:
    order = tmp_path / "order"
    for name, layer in (("database", Layer.SERVER), ("worker", Layer.PROGRAM)):
        supervisor.keep(new_kept(name, _NOTES_ITS_END, str(order), name, layer=layer))
    await _until(lambda: _is_up(tmp_path, "database") and _is_up(tmp_path, "worker"))

    await supervisor.stop()

    assert order.read_text().split() == ["worker", "database"]


async def test_a_second_signal_ends_everything_at_once(
    supervisor: Supervisor, new_kept: Callable[..., Kept], tmp_path: Path
) -> None:
    kept = new_kept("worker", _IGNORES_SIGTERM)
    supervisor.keep(kept)
    await _until(lambda: _is_up(tmp_path, "worker"))
    begin = time.monotonic()

    os.kill(os.getpid(), signal.SIGTERM)
    await supervisor.stopping.wait()
    stopping = asyncio.create_task(supervisor.stop())
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    await stopping

    assert time.monotonic() - begin < 3
    assert kept.process is not None
    assert kept.process.poll() == -signal.SIGKILL


async def test_a_program_that_hangs_is_killed_within_ten_seconds(
    supervisor: Supervisor, new_kept: Callable[..., Kept], tmp_path: Path
) -> None:
    kept = new_kept("worker", _IGNORES_SIGTERM)
    supervisor.keep(kept)
    await _until(lambda: _is_up(tmp_path, "worker"))
    begin = time.monotonic()

    await supervisor.stop()

    assert 8 < time.monotonic() - begin < 10
    assert kept.process is not None
    assert kept.process.poll() == -signal.SIGKILL


async def test_a_start_is_given_up_when_a_program_dies_meanwhile(
    supervisor: Supervisor, new_kept: Callable[..., Kept]
) -> None:
    supervisor.keep(new_kept("api", "import sys; sys.exit(3)"))

    with pytest.raises(Unavailable, match=r"api ended while starting \(exit code 3\)"):
        await supervisor.or_stop(asyncio.sleep(60))


async def test_a_start_is_given_up_at_a_signal(supervisor: Supervisor) -> None:
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGHUP)

    assert not await supervisor.or_stop(asyncio.sleep(60))


async def test_a_start_that_fails_says_why(supervisor: Supervisor) -> None:
    async def fail() -> None:
        message = "no space left"
        raise Unavailable(message)

    with pytest.raises(Unavailable, match="no space left"):
        await supervisor.or_stop(fail())


async def test_a_program_with_an_end_of_its_own_is_waited_for(supervisor: Supervisor, tmp_path: Path) -> None:
    process = spawn(Program("migration", [sys.executable, "-c", "exit(4)"], tmp_path / "migration.pid"))

    assert await asyncio.wait_for(supervisor.run_once(process), 10) == 4


async def test_a_program_that_nobody_waits_for_any_more_is_killed(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    process = spawn(Program("migration", [sys.executable, "-c", _SLEEPS], tmp_path / "migration.pid"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(supervisor.run_once(process), 0.2)

    assert process.poll() == -signal.SIGKILL


def _pid(kept: Kept) -> int:
    assert kept.process is not None
    return kept.process.pid


def _is_up(folder: Path, name: str) -> bool:
    log = folder / f"{name}.log"
    return log.exists() and "up" in log.read_text()


async def _until(question: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not question():  # noqa: ASYNC110  other processes set no event
            await asyncio.sleep(0.02)
