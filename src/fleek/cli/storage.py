"""`fleek storage`: where results are kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.output import JsonOption, Output

if TYPE_CHECKING:
    from fleek.settings import Settings
    from fleek.storage.base import ObjectStorage, StorageError

app = typer.Typer(help="Where results are kept", rich_markup_mode=None)

_POLL_SECONDS = 1.0


@app.callback()
def storage() -> None:
    """Where results are kept."""


@app.command("init")
def init(
    *,
    wait: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds to wait for a store that does not answer yet")
    ] = 30,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Make the private bucket, or the folder, and show that it can be used.

    Safe to run at any time, and by several processes at once.
    """
    import asyncio  # noqa: PLC0415  other commands start faster without all of this
    import secrets  # noqa: PLC0415

    from fleek.bootstrap.parts import open_media_storage  # noqa: PLC0415
    from fleek.settings import load_settings  # noqa: PLC0415
    from fleek.storage.signed_urls import UrlSigner  # noqa: PLC0415

    settings, output = load_settings(), Output(as_json)
    # Nothing is signed for clients here, so any key will do.
    store = open_media_storage(settings, UrlSigner(secrets.token_bytes()))
    created = asyncio.run(_prepare(store, settings, output, wait))
    if as_json:
        output.document({"url": settings.resolved_storage_url, "created": created})
        return
    output.data(settings.resolved_storage_url)
    output.note(_result(settings.resolved_storage_url, created=created))


async def _prepare(store: ObjectStorage, settings: Settings, output: Output, wait: float) -> bool:
    """Make what is missing and try it out, again and again for `wait` seconds; whether it was missing."""
    import asyncio  # noqa: PLC0415  see above

    from fleek.storage.base import StorageError, StorageRefusedError  # noqa: PLC0415

    deadline = time.monotonic() + wait
    created = is_announced = False
    while True:
        try:
            created = await store.prepare() or created
            await store.check()
        except StorageRefusedError as error:
            raise _failure(error, ExitCode.USAGE, "storage_refused") from error
        except StorageError as error:
            if time.monotonic() >= deadline:
                raise _failure(error, ExitCode.UNREACHABLE, "storage_unavailable") from error
        else:
            return created
        if not is_announced:
            output.note(f"Waiting for {_place(settings)}, for up to {wait:g} s")
            is_announced = True
        await asyncio.sleep(_POLL_SECONDS)


def _failure(error: StorageError, exit_code: ExitCode, code: str) -> CommandError:
    message = error.message[:1].upper() + error.message[1:]
    hint = error.remedy or "`fleek doctor` tells more"
    return CommandError(message, exit_code=exit_code, code=code, hint=hint)


def _place(settings: Settings) -> str:
    return str(settings.storage_endpoint or settings.resolved_storage_url)


def _result(url: str, *, created: bool) -> str:
    if url.startswith("memory:"):
        return "Nothing to do: results in memory are gone with their process"
    kind = "folder" if url.startswith("file:") else "bucket"
    return f"The {kind} was made, and works" if created else f"The {kind} is there, and works"
