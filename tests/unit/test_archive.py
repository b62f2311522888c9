"""A backup's file: what goes in comes out, and what is not a whole backup is refused."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fleek.core.ids import new_id
from fleek.core.media import PNG, VARIANTS, object_key, variant_key
from fleek.local.archive import (
    DUMP,
    SECRET_KEY,
    STORE,
    BadArchiveError,
    Manifest,
    read_archive,
    write_archive,
)

MANIFEST = Manifest("1.2.3", "9d2e4c71ab05", 18, "2026-11-21T08:00:00+00:00", has_results=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a dump, a key and a store of three results."""
    (tmp_path / DUMP).write_bytes(b"PGDMP" * 1000)
    (tmp_path / SECRET_KEY).write_text("0" * 64)
    for number in range(3):
        put(tmp_path / STORE, new_key(), bytes([number]) * 700_000)
    return tmp_path


def new_key() -> str:
    return object_key(new_id(), new_id(), 1, PNG)


def put(store: Path, key: str, content: bytes) -> None:
    (store / key).parent.mkdir(parents=True, exist_ok=True)
    (store / key).write_bytes(content)


def written(home: Path, manifest: Manifest = MANIFEST) -> bytes:
    """The archive of a home."""
    stream = io.BytesIO()
    media = home / STORE if manifest.has_results else None
    with (home / DUMP).open("rb") as dump:
        write_archive(stream, manifest, dump, home / SECRET_KEY, media)
    return stream.getvalue()


def unpack(content: bytes, target: Path) -> None:
    target.mkdir()
    read_archive(io.BytesIO(content), target, lambda _: None)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_what_goes_in_comes_out_for_the_owner_alone(home: Path, tmp_path: Path) -> None:
    before, target, sizes = digests(home), tmp_path / "out", list[int]()
    target.mkdir()

    manifest, copied = read_archive(io.BytesIO(written(home)), target, lambda _: None, sizes.append)

    assert digests(target) == before
    assert manifest == MANIFEST
    assert (copied.results, copied.size, sizes) == (3, 2_100_000, [700_000] * 3)
    assert {path.stat().st_mode & 0o777 for path in target.rglob("*") if path.is_file()} == {0o600}


def test_only_originals_of_results_go_in(home: Path, tmp_path: Path) -> None:
    before, key = digests(home), new_key()
    for name in (variant_key(key, VARIANTS[0]), "notes.txt", "media/notes.txt", ".staging/abc"):
        put(home / STORE, name, b"x")
    unpack(written(home), tmp_path / "out")

    assert digests(tmp_path / "out") == before


def test_a_result_that_is_deleted_meanwhile_is_left_out_and_counted(home: Path, tmp_path: Path) -> None:
    victims = list((home / STORE).rglob("*.png"))

    def delete_another(_: int) -> None:
        for victim in victims:
            victim.unlink(missing_ok=True)

    stream = io.BytesIO()
    with (home / DUMP).open("rb") as dump:
        copied = write_archive(
            stream, MANIFEST, dump, home / SECRET_KEY, home / STORE, on_result=delete_another
        )
    unpack(stream.getvalue(), tmp_path / "out")

    assert copied.results + copied.vanished <= 3
    assert copied.results >= 1


def test_a_home_without_a_key_or_with_its_results_elsewhere_has_neither(home: Path, tmp_path: Path) -> None:
    (home / SECRET_KEY).unlink()
    unpack(written(home, replace(MANIFEST, has_results=False)), tmp_path / "out")

    assert set(digests(tmp_path / "out")) == {DUMP}
    assert not (tmp_path / "out" / STORE).exists()


def test_other_programs_can_read_and_verify_it(home: Path, tmp_path: Path) -> None:
    (tmp_path / "backup.tar").write_bytes(written(home))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", "../backup.tar"], cwd=tmp_path / "out", check=True)

    verified = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "checksums.txt"],
        cwd=tmp_path / "out",
        check=False,
        capture_output=True,
    )
    assert (verified.returncode, verified.stdout) == (0, b"")


def test_nothing_is_unpacked_that_is_not_accepted(home: Path, tmp_path: Path) -> None:
    def refuse(_: Manifest) -> None:
        raise BadArchiveError("too new")

    (tmp_path / "out").mkdir()
    with pytest.raises(BadArchiveError, match="too new"):
        read_archive(io.BytesIO(written(home)), tmp_path / "out", refuse)

    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("share", [0, 0.0001, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_a_backup_that_was_cut_off_is_refused(home: Path, tmp_path: Path, share: float) -> None:
    content = written(home)

    with pytest.raises(BadArchiveError):
        unpack(content[: int(len(content) * share)], tmp_path / "out")


def test_a_backup_that_was_cut_off_between_two_files_is_refused(home: Path, tmp_path: Path) -> None:
    content = written(home)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        begins = [member.offset for member in tar.getmembers()]

    for number, begin in enumerate(begins):
        with pytest.raises(BadArchiveError):
            unpack(content[:begin], tmp_path / f"out-{number}")


def test_one_changed_byte_is_noticed(home: Path, tmp_path: Path) -> None:
    content = bytearray(written(home))
    content[len(content) // 2] ^= 1

    with pytest.raises(BadArchiveError, match="damaged"):
        unpack(bytes(content), tmp_path / "out")


def forged(home: Path, change: Callable[[tarfile.TarFile], None]) -> bytes:
    """An archive with something more in it, right behind its manifest."""
    stream = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(written(home))) as whole,
        tarfile.open(fileobj=stream, mode="w") as tar,
    ):
        for member in whole.getmembers():
            tar.addfile(member, whole.extractfile(member))
            if member.name.endswith(".json"):
                change(tar)
    return stream.getvalue()


def entry(name: str, **fields: object) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(b"x" * info.size))

    return add


@pytest.mark.parametrize(
    "change",
    [
        entry("../outside", size=1),
        entry("/etc/outside", size=1),
        entry("media/../../outside", size=1),
        entry("notes.txt", size=1),
        entry(new_key(), type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry(new_key(), type=tarfile.LNKTYPE, linkname="secret_key"),
        entry("secret_key", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("media", type=tarfile.DIRTYPE),
        entry(new_key(), type=tarfile.FIFOTYPE),
        entry(DUMP, size=1),
        entry("fleek-backup.json", size=1),
        entry(new_key(), size=1),
        entry(new_key(), type=tarfile.GNUTYPE_SPARSE),
        entry("checksums.txt", size=10_000),
    ],
    ids=lambda _: "",
)
def test_what_no_backup_holds_is_refused_and_nothing_leaves_the_folder(
    home: Path, tmp_path: Path, change: Callable[[tarfile.TarFile], None]
) -> None:
    with pytest.raises(BadArchiveError):
        unpack(forged(home, change), tmp_path / "out")

    assert {path.name for path in tmp_path.iterdir()} == {DUMP, SECRET_KEY, STORE, "out"}


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"format": 2}',
        b'{"format": 1}',
        b'{"format": 1, "more": 1}',
        b"x" * 70_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: bytes) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("fleek-backup.json")
        info.size = len(manifest)
        tar.addfile(info, io.BytesIO(manifest))

    with pytest.raises(BadArchiveError):
        unpack(stream.getvalue(), tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 20_480, json.dumps([1]).encode() * 1000])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadArchiveError):
        unpack(content, tmp_path / "out")


@pytest.mark.parametrize("fields", [{"revision": ["9d2e4c71ab05"]}, {"postgres": "18"}, {"postgres": None}])
def test_a_manifest_of_other_types_is_refused(home: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    content = written(home, replace(MANIFEST, **fields))  # type: ignore[arg-type]  that is the point

    with pytest.raises(BadArchiveError, match="does not say"):
        unpack(content, tmp_path / "out")
