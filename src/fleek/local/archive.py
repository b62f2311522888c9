"""The file that a backup is: a plain tar of what the home holds, with a checksum of every part.

::

    fleek-backup.json      what this is; first, so that nothing is unpacked that cannot be used
    database.dump          of pg_dump
    secret_key             where the home has one
    media/JOB/RESULT/...   each result under its key; variants are made again when they are asked for
    checksums.txt          as sha256sum writes it; last: an archive without it was cut off
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from fleek.core.errors import FleekError
from fleek.core.media import parse_object_key

FORMAT = 1
DUMP, SECRET_KEY = "database.dump", "secret_key"
STORE = "store"
"""The folder of the results, below which each lies under its key, once they are unpacked."""
_MANIFEST, _CHECKSUMS = "fleek-backup.json", "checksums.txt"
_NAMELESS = "The backup does not say what it is"
_STEP_BYTES = 1024 * 1024
_LONGEST_MANIFEST = 65_536
_LONGEST_CHECKSUM = 1024
"""Bytes of a line."""

OnResult = Callable[[int], None]
"""Told the size of each result that was copied."""


class BadArchiveError(FleekError):
    """A file is no backup, or not a whole one, or one that this release cannot use."""

    code = "bad_archive"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive is."""

    fleek: str
    """The release that wrote it."""
    revision: str
    """Of the schema."""
    postgres: int
    created_at: str
    """ISO 8601, by this machine's clock: when the dump began."""
    has_results: bool
    """False where the results were in another store than the home's."""
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Copied:
    """What went into an archive, or came out of it."""

    results: int
    size: int
    """Bytes of the results."""
    vanished: int = 0
    """Results that were deleted between being listed and being copied."""


def write_archive(  # noqa: PLR0913  one argument a part
    target: IO[bytes],
    manifest: Manifest,
    dump: IO[bytes],
    secret_key: Path,
    media: Path | None,
    on_result: OnResult = lambda _: None,
) -> Copied:
    """Write everything to a stream that need not be seekable; `dump` is read from its begin."""
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        writer = _Writer(tar)
        writer.add_bytes(_MANIFEST, json.dumps(asdict(manifest), indent=2).encode())
        dump.seek(0)
        writer.add_open(DUMP, dump)
        writer.add_file(SECRET_KEY, secret_key)
        copied = _add_results(writer, media, on_result) if media is not None else Copied(0, 0)
        writer.finish()
    return copied


def read_archive(
    source: IO[bytes], target: Path, accept: Callable[[Manifest], None], on_result: OnResult = lambda _: None
) -> tuple[Manifest, Copied]:
    """Unpack into the empty folder `target`: results into its `STORE`, the other parts beside it.

    `accept` sees the manifest before anything is written, and raises what it thinks. Raises
    BadArchiveError for whatever is not a whole backup.
    """
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            return _Reader(tar, target).read(accept, on_result)
    except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
        message = f"This is no backup of Fleek's, or it was cut off: {error}"
        raise BadArchiveError(message) from error


class _Writer:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._sums = tempfile.SpooledTemporaryFile(max_size=_STEP_BYTES)  # noqa: SIM115  closed by `finish`

    def add_bytes(self, name: str, content: bytes) -> None:
        self._add(name, io.BytesIO(content), len(content))

    def add_file(self, name: str, path: Path) -> int | None:
        """The size of a file that was added; None where there is none."""
        try:
            with path.open("rb") as file:
                return self.add_open(name, file)
        except FileNotFoundError:
            return None

    def add_open(self, name: str, file: IO[bytes]) -> int:
        size = os.fstat(file.fileno()).st_size
        self._add(name, file, size)
        return size

    def finish(self) -> None:
        size = self._sums.tell()
        self._sums.seek(0)
        with self._sums as sums:
            self._tar.addfile(_entry(_CHECKSUMS, size), sums)

    def _add(self, name: str, content: IO[bytes], size: int) -> None:
        hashed = _Hashed(content)
        self._tar.addfile(_entry(name, size), hashed)
        self._sums.write(f"{hashed.digest.hexdigest()}  {name}\n".encode())


class _Hashed:
    """A file that is hashed while it is read."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._content.read(size)
        self.digest.update(chunk)
        return chunk


class _Reader:
    def __init__(self, tar: tarfile.TarFile, target: Path) -> None:
        self._tar = tar
        self._target = target
        self._found: dict[str, str] = {}
        """Digests by name."""

    def read(self, accept: Callable[[Manifest], None], on_result: OnResult) -> tuple[Manifest, Copied]:
        members = self._members()
        manifest = self._read_manifest(next(members, None))
        accept(manifest)
        if manifest.has_results:
            (self._target / STORE).mkdir(mode=0o700)
        results = size = 0
        for member in members:
            if member.name == _CHECKSUMS:
                self._require_plausible(member)
                self._compare(self._content(member).read())
                self._require_whole()
                return manifest, Copied(results, size)
            self._unpack(member)
            if member.name not in {DUMP, SECRET_KEY}:
                results, size = results + 1, size + member.size
                on_result(member.size)
        message = "The backup was cut off: it has no checksums"
        raise BadArchiveError(message)

    def _members(self) -> Iterator[tarfile.TarInfo]:
        """Plain files with names that a backup has; the filter of the library looks at them, too."""
        for member in self._tar:
            is_known = member.name in {_MANIFEST, DUMP, SECRET_KEY, _CHECKSUMS}
            # A few bytes of a sparse file can claim to be terabytes of zeros.
            is_plain = member.isreg() and not member.issparse()
            if not is_plain or not (is_known or parse_object_key(member.name)):
                message = f"The backup holds something that no backup does: {member.name!r}"
                raise BadArchiveError(message)
            if member.name in self._found:
                message = f"The backup holds {member.name} twice"
                raise BadArchiveError(message)
            yield tarfile.data_filter(member, str(self._target))

    def _read_manifest(self, member: tarfile.TarInfo | None) -> Manifest:
        if member is None or member.name != _MANIFEST or member.size > _LONGEST_MANIFEST:
            message = "This is no backup of Fleek's"
            raise BadArchiveError(message)
        content = self._content(member).read()
        self._found[_MANIFEST] = hashlib.sha256(content).hexdigest()
        try:
            fields: dict[str, Any] = json.loads(content)
            if fields["format"] != FORMAT:
                message = f"The backup has the format {fields['format']}; this release knows {FORMAT}"
                raise BadArchiveError(message)
            if not (isinstance(fields["revision"], str) and isinstance(fields["postgres"], int)):
                raise BadArchiveError(_NAMELESS)
            return Manifest(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise BadArchiveError(_NAMELESS) from error

    def _unpack(self, member: tarfile.TarInfo) -> None:
        is_part = member.name in {DUMP, SECRET_KEY}
        path = (self._target if is_part else self._target / STORE) / member.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = _Hashed(self._content(member))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            while chunk := content.read(_STEP_BYTES):
                file.write(chunk)
        self._found[member.name] = content.digest.hexdigest()

    def _content(self, member: tarfile.TarInfo) -> IO[bytes]:
        content = self._tar.extractfile(member)
        if content is None:
            raise tarfile.ReadError(member.name)
        return content

    def _compare(self, checksums: bytes) -> None:
        lines = (line.partition("  ") for line in checksums.decode().splitlines())
        expected = {name: digest for digest, _, name in lines}
        if expected != self._found:
            wrong = sorted(dict(expected.items() ^ self._found.items()))
            message = (
                f"The backup is damaged: {len(wrong)} of its files are not what they were, as {wrong[0]}"
            )
            raise BadArchiveError(message)

    def _require_plausible(self, checksums: tarfile.TarInfo) -> None:
        """They are read into memory."""
        if checksums.size > _LONGEST_CHECKSUM * len(self._found):
            message = "The backup is damaged: it has more checksums than files"
            raise BadArchiveError(message)

    def _require_whole(self) -> None:
        if DUMP not in self._found:
            message = "The backup holds no database"
            raise BadArchiveError(message)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _add_results(writer: _Writer, media: Path, on_result: OnResult) -> Copied:
    results = total = vanished = 0
    for key in _list_results(media):
        size = writer.add_file(key, media / key)
        if size is None:
            vanished += 1
            continue
        results, total = results + 1, total + size
        on_result(size)
    return Copied(results, total, vanished)


def _list_results(media: Path) -> Iterator[str]:
    """The keys of stored results below the store's folder, without their variants."""
    for folder, _, names in os.walk(media / "media"):
        for name in names:
            key = (Path(folder) / name).relative_to(media).as_posix()
            parsed = parse_object_key(key)
            if parsed is not None and not parsed.is_variant:
                yield key
