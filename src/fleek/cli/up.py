"""`fleek up`: PostgreSQL, Valkey, the api and workers with one command, on one machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer


def up(  # noqa: PLR0913  one parameter a flag
    *,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of the API  [default: 8000]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on  [default: 127.0.0.1]")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder for all data")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes")] = 1,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Jobs at once in each worker  [default: 64]")
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Allow an address that other machines can reach")
    ] = False,
) -> None:
    """Start everything on this machine: database, broker, API and workers."""
    begin = time.monotonic()
    # The imports are here so that other commands do not pay for them.
    from fleek.cli.listen import require_safe_host  # noqa: PLC0415
    from fleek.cli.startup import run  # noqa: PLC0415
    from fleek.settings import load_settings  # noqa: PLC0415

    settings = load_settings(
        port=port, host=host, home=home, slots=slots, insecure_no_auth=insecure_no_auth or None
    )
    require_safe_host(settings.host, insecure_no_auth=settings.insecure_no_auth)
    run(settings, workers, begin)
