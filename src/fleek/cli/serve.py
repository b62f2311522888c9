"""`fleek api` and `fleek worker`: the parts of a Fleek one by one, for containers and for the supervisor."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from fleek.cli.exits import ExitCode

_GRACEFUL_SECONDS = 4
"""For open streams and waiting requests to end at a stop, before they are closed."""
_KEEP_ALIVE_SECONDS = 75
"""Longer than the idle time of common load balancers, so that it is they who close a connection."""


def api(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port  [default: 8000]")] = None,
    fd: Annotated[
        int | None, typer.Option(min=0, help="An inherited listening socket, instead of an address")
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Allow an address that other machines can reach")
    ] = False,
) -> None:
    """Run one api process in the foreground."""
    from uvicorn import Config, Server  # noqa: PLC0415  commands that need no server start faster

    from fleek.cli.listen import inherit, require_free, require_safe_host  # noqa: PLC0415
    from fleek.settings import load_settings  # noqa: PLC0415

    # First of all, since what follows takes a while to load.
    settings = load_settings(host=host, port=port, insecure_no_auth=insecure_no_auth or None)
    inherited = None
    if fd is None:
        require_safe_host(settings.host, insecure_no_auth=settings.insecure_no_auth)
        require_free(settings.host, settings.port)
    else:
        inherited = [inherit(fd)]
    from fleek.main import app  # noqa: PLC0415  it loads the settings, too

    config = Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        # Ours has the route in place of the path, and no query: signatures stand there.
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACEFUL_SECONDS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    server = Server(config)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=inherited)
    except SystemExit:
        # The server's own code says that the start failed, and not that a setting has to change.
        if app.state.refusal is None:
            raise
    if not server.started:
        is_refused = app.state.refusal is not None
        raise typer.Exit(ExitCode.USAGE if is_refused else ExitCode.FAILED)


def worker(
    *,
    queues: Annotated[
        str | None, typer.Option(help="Queues to serve, separated by commas  [default: default]")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Jobs at once  [default: 64]")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address for probes and monitors  [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port for probes and monitors  [default: none]")
    ] = None,
    loglevel: Annotated[
        str | None, typer.Option("--loglevel", "-l", help="debug, info, warning or error  [default: info]")
    ] = None,
) -> None:
    """Run one worker process in the foreground."""
    from fleek.settings import load_settings  # noqa: PLC0415  commands that need no server start faster
    from fleek.tasks.worker import run_worker  # noqa: PLC0415

    level = None if loglevel is None else loglevel.lower()
    settings = load_settings(queues=queues, slots=slots, worker_host=host, worker_port=port, log_level=level)
    raise typer.Exit(run_worker(settings))
