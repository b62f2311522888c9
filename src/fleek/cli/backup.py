"""`fleek backup` and `fleek restore`: everything that a local home holds as one file, and back."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated

import typer

from fleek.cli.exits import CommandError, ExitCode, usage_error
from fleek.cli.output import JsonOption, Output, to_json

if TYPE_CHECKING:
    from fleek.local.archive import Copied
    from fleek.settings import Settings

_STREAM = "-"
_PROGRESS_SECONDS = 5.0
_HomeOption = Annotated[Path | None, typer.Option(help="Folder of all data")]


def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write; `-` is standard output")],
    *,
    home: _HomeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE")] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Write database, results and signing key of a local home into one file, while Fleek runs or not."""
    from fleek.cli.backing_up import back_up  # noqa: PLC0415  other commands start faster without it

    settings, output = _local_settings(home), Output(as_json)
    progress = Progress(output, "Copied")
    with heeding_signals(), _target(file, force=force) as target:
        manifest, copied = back_up(settings, target, output, progress)
        size = target.tell() if file != _STREAM else None
    document = {
        "file": None if file == _STREAM else str(Path(file).absolute()),
        "bytes": size,
        "results": copied.results,
        "revision": manifest.revision,
        "created_at": manifest.created_at,
        "has_results": manifest.has_results,
    }
    if as_json:
        # The archive itself may be what goes to standard output.
        typer.echo(to_json(document), err=file == _STREAM)
        return
    output.note(f"Backed up the database and {progress.text(copied)}")
    if not manifest.has_results:
        output.warn(
            f"The results are not in it: they are in {settings.resolved_storage_url}",
            "copy those now, after the database: docs/guides/backup.md",
        )


def restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A backup; `-` is standard input")],
    *,
    home: _HomeOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what the home holds; it is kept beside")
    ] = False,
    as_json: Annotated[bool, JsonOption] = False,
) -> None:
    """Fill a local home from a backup; Fleek must not run on it."""
    from fleek.cli.backing_up import bring_back  # noqa: PLC0415  other commands start faster without it

    settings, output = _local_settings(home), Output(as_json)
    with heeding_signals(), _source(file) as source, _translated(str(settings.local.path)):
        restored = bring_back(settings, source, output, Progress(output, "Unpacked"), force=force)
    if as_json:
        output.document(restored)
        return
    output.data(str(restored["home"]))
    output.note(f"Restored {restored['jobs']} jobs and {restored['results']} results")
    if restored["results"] and settings.resolved_storage_url != settings.local.storage_url:
        output.warn(
            f"The results are in {settings.local.media}, and FLEEK_STORAGE_URL names another store",
            "unset it, or copy them there",
        )
    if restored["replaced"]:
        output.note(f"What the home held before is in {restored['replaced']}")
    if restored["missing"]:
        output.warn(f"Results without their bytes: {restored['missing']}, as {restored['first_missing']}")
    if restored["unfinished"]:
        output.warn(
            f"Jobs that had not ended go on with the next worker: {restored['unfinished']}",
            "those that have ended since the backup may be paid for again: `fleek up --workers 0`, "
            "then `fleek jobs ls --status in_queue` and `fleek jobs cancel`",
        )


class Progress:
    """A line now and then of how much was copied."""

    def __init__(self, output: Output, verb: str) -> None:
        self._output = output
        self._verb = verb
        self._results = self._size = 0
        self._said = time.monotonic()

    def add(self, size: int) -> None:
        """One more result of so many bytes."""
        self._results, self._size = self._results + 1, self._size + size
        if time.monotonic() - self._said >= _PROGRESS_SECONDS:
            self._said = time.monotonic()
            self._output.note(f"{self._verb} {self._results} results, {self._size / 1e6:.0f} MB")

    def text(self, copied: Copied) -> str:
        """What was copied in all."""
        return f"{copied.results} results, {copied.size / 1e6:.1f} MB"


class _Stopped(KeyboardInterrupt):
    """SIGTERM, or the terminal was closed."""


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that nothing half stays."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Stopped

    heeded = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    except _Stopped as error:
        raise CommandError("Stopped", exit_code=ExitCode.TERMINATED, code="terminated") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _local_settings(home: Path | None) -> Settings:
    from fleek.settings import load_settings  # noqa: PLC0415  slow to import

    settings = load_settings(home=home)
    if settings.database_url is not None:
        raise usage_error(
            "FLEEK_DATABASE_URL names a database of yours: this command knows only the home's own",
            "pg_dump, then a copy of the bucket: docs/guides/backup.md",
        )
    return settings


@contextmanager
def _target(file: str, *, force: bool) -> Iterator[IO[bytes]]:
    """A stream whose content becomes the file at the end, and not before."""
    if file == _STREAM:
        if sys.stdout.isatty():
            raise usage_error("A backup is nothing for a terminal", "fleek backup FILE, or `- | ...`")
        with _translated("standard output"):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    path = Path(file)
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file():
        raise usage_error(f"{path} is no file", "fleek backup FILE, or `- | ...`")
    if path.exists() and not force:
        raise usage_error(f"{path} exists", "choose another name, or --force")
    with _translated(file), _draft(path.with_name(f"{path.name}.partial")) as (draft, stream):
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
        draft.replace(path)


@contextmanager
def _draft(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file that is locked while it is written; it is removed if the block does not complete."""
    _remove_leftover(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield path, stream
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _remove_leftover(path: Path) -> None:
    """Remove what a killed backup left; one that somebody writes at this moment is refused."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError as error:
            raise usage_error(f"Another backup is writing {path}", "wait for it") from error
        finally:
            os.close(descriptor)


@contextmanager
def _source(file: str) -> Iterator[IO[bytes]]:
    if file == _STREAM:
        with _translated("standard input"):
            yield sys.stdin.buffer
        return
    with _translated(file), Path(file).open("rb") as stream:
        yield stream


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """A full disk, or a folder that is not ours, in a sentence."""
    try:
        yield
    except OSError as error:
        message = f"{error.filename or name}: {error.strerror or error}"
        raise CommandError(message, exit_code=ExitCode.FAILED, code="cannot_copy") from error
