"""How `fleek up` starts everything, and in which order.

Servers start only where the settings name no other. All of them end with this process, also after `kill -9`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from fleek import __version__
from fleek.cli.banner import announce, say
from fleek.cli.children import Children
from fleek.cli.listen import answers_ready, bind, url_of
from fleek.cli.schema import is_current
from fleek.cli.supervisor import Supervisor
from fleek.core.errors import Unavailable
from fleek.core.home import default_home
from fleek.local.instance import Instance, hold_home, prepare_home, publish_instance
from fleek.local.restoring import Restoring
from fleek.settings import Settings

_READY_SECONDS = 60.0
_POLL_SECONDS = 0.02


def run(settings: Settings, workers: int, begin: float) -> None:
    """Start everything, keep it running until a signal asks to stop, and stop it.

    `begin` is the monotonic time from which the start is measured. Raises Conflict when the home is in use,
    ConfigurationError for what the user can change, Unavailable for what did not come up.
    """
    prepare_home(settings.local)
    with hold_home(settings.local), bind(settings.host, settings.port) as listener:
        Restoring(settings.local).resume()
        port = listener.getsockname()[1]
        if settings.port not in {0, port}:
            say(f"Port {settings.port} is busy; using {port}")
        asyncio.run(_supervise(Children(settings, listener, workers), Stopwatch(begin)))


@dataclass(slots=True)
class Stopwatch:
    """Seconds since the start, and of each phase, for the line that says how long it took."""

    begin: float
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        """End a phase."""
        self.laps[name] = time.monotonic() - self.begin - sum(self.laps.values())

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.laps.items())
        return f"{sum(self.laps.values()):.2f} s ({phases})"


async def _supervise(children: Children, clock: Stopwatch) -> None:
    supervisor = Supervisor(say)
    supervisor.listen_to_signals()
    try:
        if await supervisor.or_stop(_start(children, supervisor, clock)):
            _tell(children, clock)
            await supervisor.watch()
        say("Stopping")
    finally:
        children.listener.close()
        await supervisor.stop()


async def _start(children: Children, supervisor: Supervisor, clock: Stopwatch) -> None:
    """Start everything. The api comes first: it spends a second on imports while the servers get ready."""
    children.stop_leftovers()
    clock.lap("settings")
    supervisor.keep(children.api())
    for server in children.servers():
        supervisor.keep(server)
    await _until(children.servers_are_ready, "The embedded servers are")
    clock.lap("servers")
    await _migrate(children, supervisor)
    clock.lap("schema")
    for worker in children.worker_processes():
        supervisor.keep(worker)
    address = children.listener.getsockname()[:2]
    await _until(lambda: answers_ready(address), f"{url_of(children.listener)}/readyz is")
    clock.lap("api")


async def _migrate(children: Children, supervisor: Supervisor) -> None:
    if children.postgres is not None and is_current(children.postgres):
        return
    if await supervisor.run_once(children.migration()) != 0:
        message = f"The database's schema could not be brought up to date; {children.migration_log} says why"
        raise Unavailable(message)


async def _until(question: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask until the answer is yes; raises Unavailable after a minute."""
    deadline = time.monotonic() + _READY_SECONDS
    while not await question():
        if time.monotonic() >= deadline:
            message = f"{what} not ready after {_READY_SECONDS:g} s"
            raise Unavailable(message)
        await asyncio.sleep(_POLL_SECONDS)


def _tell(children: Children, clock: Stopwatch) -> None:
    url = url_of(children.listener)
    home = children.settings.local
    publish_instance(home, Instance(url=url, pid=os.getpid(), version=__version__))
    say(f"Ready in {clock}")
    announce(url, home.path, is_default_home=home.path == _default_home())


def _default_home() -> Path:
    return default_home(os.environ, user_home=Path.home(), is_root=os.geteuid() == 0)
