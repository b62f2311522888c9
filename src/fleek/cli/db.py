"""`fleek db`: the database's schema."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from fleek.cli.exits import CommandError, ExitCode, usage_error
from fleek.cli.output import JsonOption, Output

app = typer.Typer(help="The database's schema", rich_markup_mode=None)

_POLL_SECONDS = 1.0
_START_HINT = "start it (script/up brings its own), or check FLEEK_DATABASE_URL; `fleek doctor` tells more"
_REFUSED_HINT = (
    "correct its user, password or name, such as postgresql://user:password@host/fleek, or make what it names"
)


@app.command("upgrade")
def upgrade(
    revision: Annotated[str, typer.Argument(help="Where to go")] = "head",
    *,
    wait: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds to wait for a database that does not answer yet")
    ] = 0,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Bring the schema forward; safe to run at any time, and by several processes at once."""
    from fleek.db import migrate  # noqa: PLC0415  SQLAlchemy is slow to import

    url, output = _database_url(), Output(as_json)
    _await_database(output, url, wait)
    _move(
        output, url, lambda: None if revision == "head" and _is_ahead(url) else migrate.upgrade(url, revision)
    )


# Otherwise `-1` would be an option that nobody knows.
@app.command("downgrade", context_settings={"ignore_unknown_options": True})
def downgrade(
    revision: Annotated[
        str, typer.Argument(help="A revision, `-1` for one step back, `base` for nothing left")
    ],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Take the schema back, which deletes the data that it held."""
    from fleek.db import migrate  # noqa: PLC0415  SQLAlchemy is slow to import

    if not yes:
        _confirm(revision)
    url = _database_url()
    _move(Output(as_json), url, lambda: migrate.downgrade(url, revision))


@app.command("current")
def current(*, as_json: Annotated[bool, JsonOption] = False) -> None:
    """Print the schema's revision; nothing for an empty database."""
    from fleek.db import migrate  # noqa: PLC0415  SQLAlchemy is slow to import

    output = Output(as_json)
    url = _database_url()
    with _translated():
        revision, head, is_ahead = _revision(url), migrate.head(), _is_ahead(url)
    if as_json:
        output.document({"revision": revision, "head": head, "is_current": revision == head})
        return
    if revision is not None:
        output.data(revision)
    if revision == head:
        output.note("The schema is up to date")
    elif is_ahead:
        output.note(f"The schema is of a later release than this one, which works with it and knows {head}")
    else:
        output.note(f"The schema is not at {head}", "`fleek db upgrade` brings it there")


def _await_database(output: Output, url: str, seconds: float) -> None:
    """Return when the database answers; raises after `seconds`, or at once where it refuses us."""
    from asyncpg import InvalidAuthorizationSpecificationError, InvalidCatalogNameError  # noqa: PLC0415  slow

    refusals = (InvalidAuthorizationSpecificationError, InvalidCatalogNameError)
    deadline = time.monotonic() + seconds
    is_announced = False
    while True:
        try:
            with _translated():
                _revision(url)
        except CommandError as error:
            if isinstance(error.__cause__, refusals) or time.monotonic() >= deadline:
                raise
        else:
            return
        if not is_announced:
            output.note(f"Waiting for the database {_without_secrets(url)}, for up to {seconds:g} s")
            is_announced = True
        time.sleep(_POLL_SECONDS)


def _without_secrets(url: str) -> str:
    """The URL as it may be shown: parameters can hold a password, too."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415  slow to import

    parsed = make_url(url)
    harmless = {name: value for name, value in parsed.query.items() if name in {"host", "port"}}
    return parsed.set(query=harmless).render_as_string(hide_password=True)


def _move(output: Output, url: str, step: Callable[[], None]) -> None:
    """Make a change, and print the revision before and after it."""
    with _translated():
        before = _revision(url)
        step()
        after = _revision(url)
    if output.as_json:
        output.document({"before": before, "revision": after})
        return
    output.data(after or "")
    output.note("Nothing to do" if before == after else f"Moved from {before or 'an empty database'}")


def _is_ahead(url: str) -> bool:
    """Whether a later release brought the schema forward: this one works with it, and leaves it so."""
    from fleek.db.revisions import shipped_revisions  # noqa: PLC0415  needed here only

    revision = _revision(url)
    return revision is not None and revision not in shipped_revisions().known


def _revision(url: str) -> str | None:
    import asyncio  # noqa: PLC0415  with these two, `fleek --help` would take twice as long

    from fleek.db import migrate  # noqa: PLC0415

    return asyncio.run(migrate.current(url))


def _database_url() -> str:
    from sqlalchemy.engine import make_url  # noqa: PLC0415  slow to import
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    from fleek.settings import load_settings  # noqa: PLC0415

    url = load_settings().resolved_database_url
    try:
        make_url(url)
    except (ArgumentError, ValueError):
        hint = "it looks like postgresql+asyncpg://user@host/name"
        raise usage_error("FLEEK_DATABASE_URL is not the URL of a database", hint) from None
    return url


def _confirm(revision: str) -> None:
    """Ask on a terminal; elsewhere silence is no consent."""
    question = f"Going back to {revision} deletes data for good. Go on?"
    if not sys.stdin.isatty():
        raise usage_error(
            "Going back deletes data for good, and nobody is there to be asked", "--yes says that it is meant"
        )
    if not typer.confirm(question, err=True):
        raise CommandError("Nothing was changed", exit_code=ExitCode.FAILED, code="not_confirmed")


@contextmanager
def _translated() -> Iterator[None]:
    """Says in a sentence what the database's and the migrations' own errors mean."""
    from alembic.util import CommandError as MigrationError  # noqa: PLC0415  slow to import
    from asyncpg import (  # noqa: PLC0415
        InterfaceError,
        InvalidAuthorizationSpecificationError,
        InvalidCatalogNameError,
        PostgresError,
    )
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    try:
        yield
    except MigrationError as error:
        raise usage_error(str(error), "`base`, `head`, a revision, or steps such as -1") from error
    except (InvalidAuthorizationSpecificationError, InvalidCatalogNameError) as error:
        raise usage_error(f"FLEEK_DATABASE_URL: the database refuses us: {error}", _REFUSED_HINT) from error
    except InterfaceError as error:
        # Such as a certificate's file that is not there; asyncpg's own hint follows in a second line.
        reason = str(error).partition("\n")[0]
        raise usage_error(f"FLEEK_DATABASE_URL: cannot be used: {reason}") from error
    except (OSError, PostgresError, DBAPIError) as error:
        raise _unavailable(f"The database does not answer: {str(error) or type(error).__name__}") from error


def _unavailable(message: str) -> CommandError:
    return CommandError(
        message, exit_code=ExitCode.UNREACHABLE, code="database_unavailable", hint=_START_HINT
    )
