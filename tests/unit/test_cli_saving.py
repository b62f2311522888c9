"""Where results are saved, and that nothing is ever lost or left half written."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.raw_server import Answer, RawServer, hang_up, problem, reply, send

from fleek.cli.client import Client
from fleek.cli.exits import CommandError, ExitCode
from fleek.cli.saving import Destination, Saver, choose_format, slug

_JOB = "01920000-0000-7000-8000-0000abcd1234"
_PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 64


@pytest.fixture
def server() -> Iterator[RawServer]:
    with RawServer() as running:
        running.on("GET /content", reply(_PICTURE, content_type="image/png"))
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _job(server: RawServer, count: int = 1, content_type: str = "image/png") -> dict[str, Any]:
    media = {
        "content_type": content_type,
        "content_url": f"{server.url}/content",
        "sha256": hashlib.sha256(_PICTURE).hexdigest(),
    }
    return {"id": _JOB, "prompt": "A lighthouse, at dawn!", "media": [media] * count}


def _save(
    server: RawServer, output: str | None, *, force: bool = False, count: int = 1, **job: Any
) -> tuple[list[str], list[str], list[str]]:
    """What was returned, what was told, and the warnings."""
    told: list[Path] = []
    warnings: list[str] = []
    saver = Saver(Client(server.url), Destination(output, force, count), told.append, warnings.append)
    saved = saver.save(_job(server, **{"count": count, **job}))
    return [str(path) for path in saved], [str(path) for path in told], warnings


class TestNames:
    """Which name a result gets."""

    @pytest.mark.parametrize(
        ("output", "count", "names"),
        [
            (None, 1, ["a-lighthouse-at-dawn-abcd1234.png"]),
            (None, 2, ["a-lighthouse-at-dawn-abcd1234-1.png", "a-lighthouse-at-dawn-abcd1234-2.png"]),
            ("out.png", 1, ["out.png"]),
            ("out", 1, ["out"]),
            ("out.png", 2, ["out-1.png", "out-2.png"]),
            (
                "new",
                2,
                ["new/a-lighthouse-at-dawn-abcd1234-1.png", "new/a-lighthouse-at-dawn-abcd1234-2.png"],
            ),
            ("new/", 1, ["new/a-lighthouse-at-dawn-abcd1234.png"]),
            ("there", 1, ["there/a-lighthouse-at-dawn-abcd1234.png"]),
            ("deep/er/out.png", 1, ["deep/er/out.png"]),
        ],
    )
    def test_a_file_a_folder_or_the_prompt_gives_the_name(
        self, server: RawServer, folder: Path, output: str | None, count: int, names: list[str]
    ) -> None:
        (folder / "there").mkdir()

        saved, told, warnings = _save(server, output, count=count)

        assert (saved, told, warnings) == (names, names, [])
        assert all((folder / name).read_bytes() == _PICTURE for name in names)

    def test_fewer_results_than_asked_for_still_go_into_the_folder(
        self, server: RawServer, folder: Path
    ) -> None:
        saver = Saver(Client(server.url), Destination("new", force=False, count=4), print, print)

        (path,) = saver.save(_job(server, count=1))

        assert path == Path("new/a-lighthouse-at-dawn-abcd1234-1.png")
        assert (folder / "new").is_dir()

    @pytest.mark.parametrize(
        ("prompt", "name"),
        [
            ("a lighthouse at dawn", "a-lighthouse-at-dawn"),
            ("  ¡Qué día!  ", "qué-día"),
            ("灯台の夜明け", "灯台の夜明け"),
            ("../../etc/passwd", "etc-passwd"),
            (".hidden\x00\x1b[31m\u202e", "hidden-31m"),
            ("snake_case & \uff26\uff35\uff2c\uff2c width", "snake-case-full-width"),
            ("one very long prompt that goes on and on for ever", "one-very-long-prompt-that-goes-on-and-on"),
            ("x" * 100, "x" * 40),
            ("🌅 !?", "fleek"),
        ],
    )
    def test_a_prompt_becomes_a_name_that_every_system_takes(self, prompt: str, name: str) -> None:
        assert slug(prompt) == name

    @pytest.mark.parametrize(
        ("output", "chosen"),
        [
            (None, None),
            ("out", None),
            ("out.txt", None),
            ("OUT.PNG", "png"),
            ("out.jpg", "jpeg"),
            ("x.png/out.jpeg", "jpeg"),
            ("out.webp", "webp"),
        ],
    )
    def test_the_name_of_a_file_chooses_the_format(self, output: str | None, chosen: str | None) -> None:
        assert choose_format(output) == chosen

    @pytest.mark.parametrize("output", ["out.gif", "out.AVIF", "out.tiff"])
    def test_a_format_that_nobody_makes_is_refused(self, output: str) -> None:
        with pytest.raises(CommandError, match="Images are made as png, webp, jpeg, not as"):
            choose_format(output)

    def test_bytes_of_another_type_than_the_name_says_are_kept_with_a_warning(
        self, server: RawServer, folder: Path
    ) -> None:
        _, _, warnings = _save(server, "out.png", content_type="image/webp")

        assert warnings == ["out.png holds image/webp: that is what the model made"]
        assert (folder / "out.png").exists()


class TestCheckBefore:
    """What cannot be saved is refused before it is made."""

    def test_a_file_that_exists_is_kept_unless_forced(self, folder: Path) -> None:
        (folder / "out.png").write_bytes(b"precious")
        (folder / "many-2.png").write_bytes(b"precious")

        with pytest.raises(CommandError, match=r"out\.png exists") as caught:
            Destination("out.png", force=False, count=1).check()
        with pytest.raises(CommandError, match=r"many-2\.png exists"):
            Destination("many.png", force=False, count=3).check()
        Destination("out.png", force=True, count=1).check()
        assert caught.value.exit_code == ExitCode.USAGE
        assert "--force" in str(caught.value.hint)

    def test_a_dangling_link_counts_as_existing(self, folder: Path) -> None:
        (folder / "out.png").symlink_to("nowhere")

        with pytest.raises(CommandError, match="exists"):
            Destination("out.png", force=False, count=1).check()

    def test_a_file_in_place_of_a_folder_is_refused(self, folder: Path) -> None:
        (folder / "file").write_text("")

        with pytest.raises(CommandError, match="file is not a folder"):
            Destination("file/out.png", force=False, count=1).check()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_closed_folder_is_refused(self, folder: Path) -> None:
        (folder / "closed").mkdir(mode=0o500)

        with pytest.raises(CommandError, match="cannot be written to"):
            Destination("closed/out.png", force=False, count=1).check()

    def test_nothing_is_made_by_checking(self, folder: Path) -> None:
        Destination("new/deep/out.png", force=False, count=1).check()

        assert list(folder.iterdir()) == []

    def test_standard_output_takes_one_picture(self) -> None:
        Destination("-", force=False, count=1).check()

        with pytest.raises(CommandError, match="takes one result"):
            Destination("-", force=False, count=2).check()


class TestDownload:
    """A file appears whole or not at all."""

    @pytest.mark.parametrize(
        "broken",
        [
            pytest.param(hang_up, id="no answer"),
            pytest.param(
                send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + _PICTURE[:50]), id="half"
            ),
            pytest.param(reply(b"other bytes", content_type="image/png"), id="other bytes"),
            pytest.param(problem(503, "storage_unavailable", "Later"), id="storage is away"),
        ],
    )
    def test_a_broken_download_is_begun_again(self, server: RawServer, folder: Path, broken: Answer) -> None:
        server.on("GET /content", broken, reply(_PICTURE))

        _save(server, "out.png")

        assert (folder / "out.png").read_bytes() == _PICTURE

    @pytest.mark.parametrize(
        ("answer", "exit_code"),
        [
            (reply(b"other bytes"), ExitCode.UNREACHABLE),
            (send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf"), ExitCode.UNREACHABLE),
            (problem(410, "gone", "The media has expired or was deleted"), ExitCode.USAGE),
        ],
    )
    def test_a_download_that_never_succeeds_leaves_nothing(
        self, server: RawServer, folder: Path, answer: Answer, exit_code: ExitCode
    ) -> None:
        server.on("GET /content", answer)
        (folder / "out.png").write_bytes(b"precious")

        with pytest.raises(CommandError) as caught:
            _save(server, "out.png", force=True)

        assert caught.value.exit_code == exit_code
        assert [path.name for path in folder.iterdir()] == ["out.png"]
        assert (folder / "out.png").read_bytes() == b"precious"

    def test_what_is_saved_has_the_usual_permissions(self, server: RawServer, folder: Path) -> None:
        before = os.umask(0o027)
        try:
            _save(server, "out.png")
        finally:
            os.umask(before)

        assert stat.S_IMODE((folder / "out.png").stat().st_mode) == 0o640

    def test_a_file_that_appeared_meanwhile_is_kept_and_the_picture_too(
        self, server: RawServer, folder: Path
    ) -> None:
        (folder / "out.png").write_bytes(b"precious")
        (folder / "out-2.png").write_bytes(b"precious")

        saved, _, _ = _save(server, "out.png")

        assert saved == ["out-3.png"]
        assert (folder / "out.png").read_bytes() == (folder / "out-2.png").read_bytes() == b"precious"
        assert (folder / "out-3.png").read_bytes() == _PICTURE

    def test_force_replaces_the_file_behind_a_link(self, server: RawServer, folder: Path) -> None:
        (folder / "real.png").write_bytes(b"old")
        (folder / "out.png").symlink_to("real.png")

        _save(server, "out.png", force=True)

        assert (folder / "out.png").is_symlink()
        assert (folder / "real.png").read_bytes() == _PICTURE

    def test_a_pipe_is_written_to_and_not_replaced(self, server: RawServer, folder: Path) -> None:
        pipe = folder / "pipe.png"
        os.mkfifo(pipe)
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()

        _save(server, "pipe.png")
        reader.join(5)

        assert read == [_PICTURE]
        assert stat.S_ISFIFO(pipe.stat().st_mode)

    def test_a_full_disk_is_told_with_its_reason(self, server: RawServer) -> None:
        with pytest.raises(CommandError) as caught:
            _save(server, "/dev/full")

        assert caught.value.exit_code == ExitCode.FAILED
        assert caught.value.message == f"/dev/full could not be written: {os.strerror(errno.ENOSPC)}"

    def test_a_picture_goes_to_standard_output(
        self, server: RawServer, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        saved, told, _ = _save(server, "-")

        assert (saved, told) == ([], [])
        assert capfdbinary.readouterr().out == _PICTURE
