"""Where results are saved. A file appears whole or not at all, and no picture is lost to another one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fleek.cli.client import Client
from fleek.cli.exits import CommandError, ExitCode, unreachable, usage_error
from fleek.core.media import OutputFormat, by_content_type

_FORMATS = {
    ".png": OutputFormat.PNG,
    ".webp": OutputFormat.WEBP,
    ".jpg": OutputFormat.JPEG,
    ".jpeg": OutputFormat.JPEG,
}
_OTHER_IMAGES = frozenset({".gif", ".avif", ".tif", ".tiff", ".bmp", ".heic", ".jxl", ".svg", ".ico", ".psd"})
_LONGEST_SLUG = 40
_SHORT_ID = 8
_DOWNLOADS = 3
"""How often a download is tried that breaks off or does not have the checksum of its media."""
_STANDARD_OUTPUT = "-"

Media = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class File:
    """One name; further outputs are numbered."""

    path: Path

    def path_of(self, index: int, total: int, extension: str) -> Path:  # noqa: ARG002  the user chose the name
        """The file for output `index` (from 0) of `total`: `out.png`, or `out-1.png`, `out-2.png`."""
        if total == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{index + 1}{self.path.suffix}")


@dataclass(frozen=True, slots=True)
class Folder:
    """Names made of the prompt and the job."""

    path: Path
    stem: str = ""

    def path_of(self, index: int, total: int, extension: str) -> Path:
        """`a-lighthouse-at-dawn-1f2e3d4c.png`, numbered when there are several."""
        number = f"-{index + 1}" if total > 1 else ""
        return self.path / f"{self.stem}{number}.{extension}"


def choose_format(output: str | None) -> OutputFormat | None:
    """The format that the name of the file to be written asks for; None when it asks for nothing."""
    suffix = Path(output or "").suffix.lower()
    if suffix in _OTHER_IMAGES:
        names = ", ".join(OutputFormat)
        raise usage_error(
            f"Images are made as {names}, not as {suffix[1:]}", "--format sets one whatever the name"
        )
    return _FORMATS.get(suffix)


@dataclass(frozen=True, slots=True)
class Destination:
    """What `--output`, `--force` and `--n` say about where to save; checked before anything is paid for."""

    output: str | None
    force: bool
    count: int
    """How many results were asked for; a provider may give more or fewer."""

    @property
    def is_standard_output(self) -> bool:
        """`--output -`."""
        return self.output == _STANDARD_OUTPUT

    def check(self) -> None:
        """Raise a usage error where saving could not succeed."""
        if self.is_standard_output:
            _check_standard_output(self.count)
            return
        target = self.target("", "")
        _check_folder(target.path if isinstance(target, Folder) else target.path.parent)
        if isinstance(target, File):
            for index in range(self.count):
                self._check_free(target.path_of(index, self.count, ""))

    def target(self, prompt: str, job_id: str) -> File | Folder:
        """Names for the results of a job."""
        if self.output is None:
            return Folder(Path(), _stem(prompt, job_id))
        path = Path(self.output).expanduser()
        is_folder = self.output.endswith("/") or path.is_dir()
        is_one_name = self.count == 1 or path.suffix.lower() in _FORMATS or path.is_file()
        return Folder(path, _stem(prompt, job_id)) if is_folder or not is_one_name else File(path)

    def _check_free(self, path: Path) -> None:
        if self.force or not _exists(path) or _is_stream(path):
            return
        raise usage_error(f"{path} exists", "--force overwrites it, another --output keeps it")


def slug(prompt: str) -> str:
    """The first words of a prompt as a file's name, in any script: letters, digits and hyphens."""
    text = unicodedata.normalize("NFKC", prompt).lower()
    words = re.sub(r"[\W_]+", "-", text).strip("-")
    if len(words) > _LONGEST_SLUG:
        words = words[: _LONGEST_SLUG + 1].rpartition("-")[0] or words[:_LONGEST_SLUG]
    return words or "fleek"


def _stem(prompt: str, job_id: str) -> str:
    """The end of an id is its random part."""
    return f"{slug(prompt)}-{job_id.replace('-', '')[-_SHORT_ID:]}"


@dataclass(frozen=True, slots=True)
class Saver:
    """Downloads the results of a finished job. `tell` hears of each file once it is there."""

    client: Client
    destination: Destination
    tell: Callable[[Path], None]
    warn: Callable[[str], None]

    def save(self, job: Mapping[str, Any]) -> list[Path]:
        """Save every result; the paths."""
        results: Sequence[Media] = job["media"]
        if self.destination.is_standard_output:
            self._copy_once(sys.stdout.buffer, results[0])
            return []
        target = self.destination.target(str(job["prompt"]), str(job["id"]))
        total = max(len(results), self.destination.count)
        paths = []
        for position, media in enumerate(results):
            path = target.path_of(position, total, _extension(media))
            paths.append(self._save_one(media, path))
            self.tell(paths[-1])
        return paths

    def _save_one(self, media: Media, path: Path) -> Path:
        self._warn_of_other_type(media, path)
        try:
            if _is_stream(path):
                with path.open("wb") as stream:
                    self._copy_once(stream, media)
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with _draft(path) as draft:
                self._fill(draft, media)
                return _publish(draft, path, force=self.destination.force)
        except OSError as error:
            message = f"{path} could not be written: {error.strerror or error}"
            raise CommandError(message, exit_code=ExitCode.FAILED, code="not_saved") from error

    def _warn_of_other_type(self, media: Media, path: Path) -> None:
        expected = _FORMATS.get(path.suffix.lower())
        content_type = str(media["content_type"])
        if expected is not None and content_type != f"image/{expected}":
            self.warn(f"{path} holds {content_type}: that is what the model made")

    def _fill(self, draft: Path, media: Media) -> None:
        """Download into a draft; one that breaks off or is not what was stored is begun again."""
        for attempt in range(1, _DOWNLOADS + 1):
            try:
                with draft.open("wb") as stream:
                    return self._copy_once(stream, media)
            except CommandError as error:
                if attempt == _DOWNLOADS or error.exit_code != ExitCode.UNREACHABLE:
                    raise
        return None

    def _copy_once(self, stream: BinaryIO, media: Media) -> None:
        digest = hashlib.sha256()
        for chunk in self.client.download(str(media["content_url"])):
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        if digest.hexdigest() != media["sha256"]:
            raise unreachable("The downloaded bytes are not those that were stored: their checksum differs")


def _check_standard_output(count: int) -> None:
    if count > 1:
        raise usage_error("Standard output takes one result", "leave --n out, or name a folder as --output")
    if sys.stdout.isatty():
        raise usage_error(
            "A picture would only upset the terminal", "redirect standard output, or name a file"
        )


def _check_folder(folder: Path) -> None:
    """A folder that does not exist yet is made when there is something to put into it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if _exists(path))
    if not existing.is_dir():
        raise usage_error(f"{existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise usage_error(f"The folder {existing} cannot be written to")


def _extension(media: Media) -> str:
    media_type = by_content_type(str(media["content_type"]))
    return media_type.extension if media_type else "bin"


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _is_stream(path: Path) -> bool:
    """Whether the name is a device or a pipe, such as /dev/null: those are written to, never replaced."""
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A hidden file beside `path`, which is gone at the end of the block however that ends."""
    draft = path.with_name(f".fleek-{os.urandom(6).hex()}.part")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, path: Path, *, force: bool) -> Path:
    """Give the draft its name in one step; where that is taken by now, the next free one."""
    if force:
        draft.replace(path.resolve() if path.is_symlink() else path)
        return path
    for candidate in _candidates(path):
        with contextlib.suppress(FileExistsError):
            _rename_if_free(draft, candidate)
            return candidate
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _rename_if_free(draft: Path, path: Path) -> None:
    """A plain rename would replace what is there; making a second name for the file does not."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        raise
    except OSError:
        # Some filesystems know no second names: reserve this one, then replace our own reservation.
        path.touch(exist_ok=False)
        draft.replace(path)


def _candidates(path: Path) -> Iterator[Path]:
    yield path
    for number in range(2, 1000):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
