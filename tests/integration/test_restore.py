"""`fleek restore` and what it refuses; and interruptions, which leave nothing or everything."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from tests.homes import SECRET, objects, refused, run, server_of

from fleek.cli.exits import ExitCode
from fleek.core.home import Home
from fleek.db import migrate
from fleek.local.instance import hold_home, prepare_home
from fleek.local.postgres import PostgresServer
from fleek.local.restoring import Restoring


class TestRefusals:
    @pytest.mark.parametrize("there", ["postgres", "media/media/job"])
    def test_a_home_that_holds_data_is_not_overwritten(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str], there: str
    ) -> None:
        (scratch / "new" / there).mkdir(parents=True)

        problem = refused(capsys, "restore", backup_file, "--home", scratch / "new")

        left = {path.name for path in (scratch / "new").iterdir()}
        assert problem["exit_code"] == ExitCode.FAILED
        assert "--force" in problem["detail"]
        assert left <= {"logs", "run", "up.lock", there.partition("/")[0]}

    @pytest.mark.slow
    def test_with_force_what_was_there_is_kept_beside(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(capsys, "restore", backup_file, "--home", scratch / "new")
        new = Home(scratch / "new")
        with server_of(new) as server:
            server.query("DELETE FROM jobs")
        shutil.rmtree(new.media / "media")
        restored = run(capsys, "restore", backup_file, "--home", scratch / "new", "--force")

        assert objects(new) != {}
        assert sorted(path.name for path in Path(restored["replaced"]).iterdir()) == [
            "media",
            "postgres",
            "secret_key",
        ]

    def test_a_home_that_is_in_use_is_left_alone(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home = Home(scratch / "new")
        prepare_home(home)
        with hold_home(home):
            problem = refused(capsys, "restore", backup_file, "--home", home.path)

        assert problem["code"] == "conflict"
        assert not home.postgres_data.exists()

    def test_a_backup_of_a_newer_release_changes_nothing(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        newer = backup_file.read_bytes().replace(migrate.head().encode(), b"ffffffffffff", 1)
        (scratch / "newer.tar").write_bytes(newer)

        problem = refused(capsys, "restore", "newer.tar", "--home", scratch / "new")

        assert problem["exit_code"] == ExitCode.USAGE
        assert "newer" in problem["detail"]
        assert not (scratch / "new" / "postgres").exists()

    @pytest.mark.parametrize("share", [0.2, 0.8])
    def test_a_backup_that_was_cut_off_changes_nothing(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str], share: float
    ) -> None:
        content = backup_file.read_bytes()
        (scratch / "half.tar").write_bytes(content[: int(len(content) * share)])

        problem = refused(capsys, "restore", "half.tar", "--home", scratch / "new")

        left = {path.name for path in (scratch / "new").iterdir()}
        assert problem["code"] == "bad_archive"
        assert left <= {"logs", "run", "up.lock"}

    @pytest.mark.slow
    def test_a_dump_that_postgresql_cannot_read_changes_nothing(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with tarfile.open(backup_file) as whole, tarfile.open(scratch / "bad.tar", "w") as bad:
            for member in whole.getmembers():
                content = whole.extractfile(member)
                assert content is not None
                data = bytearray(content.read())
                if member.name == "database.dump":
                    middle = len(data) // 2
                    data[middle : middle + 2000] = b"x" * 2000
                    digest = hashlib.sha256(data).hexdigest()
                if member.name == "checksums.txt":
                    lines = data.decode().splitlines(keepends=True)
                    data = bytearray(
                        "".join(
                            f"{digest}  database.dump\n" if "database.dump" in line else line
                            for line in lines
                        ),
                        "utf-8",
                    )
                bad.addfile(member, io.BytesIO(data))

        problem = refused(capsys, "restore", "bad.tar", "--home", scratch / "new")

        left = {path.name for path in (scratch / "new").iterdir()}
        assert "pg_restore failed" in problem["detail"]
        assert left <= {"logs", "run", "up.lock", "programs"}

    @pytest.mark.parametrize("command", ["backup", "restore"])
    def test_a_database_of_ones_own_is_not_ours_to_save(
        self, scratch: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert scratch.exists()
        monkeypatch.setenv("FLEEK_DATABASE_URL", "postgresql://fleek@127.0.0.1:1/fleek")

        problem = refused(capsys, command, "b.tar")

        assert problem["exit_code"] == ExitCode.USAGE
        assert "pg_dump" in problem["hint"]

    def test_a_home_without_a_database_has_nothing_to_save(
        self, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "holds no database" in refused(capsys, "backup", "b.tar", "--home", scratch / "new")["detail"]
        assert not (scratch / "b.tar").exists()

    def test_a_file_that_exists_is_not_overwritten(
        self, full_home: Home, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (scratch / "b.tar").write_text("precious")
        problem = refused(capsys, "backup", "b.tar", "--home", full_home.path)
        kept = (scratch / "b.tar").read_text()
        forced = run(capsys, "backup", "b.tar", "--home", full_home.path, "--force")

        assert (problem["exit_code"], kept) == (ExitCode.USAGE, "precious")
        assert (scratch / "b.tar").stat().st_size == forced["bytes"]

    def test_a_folder_that_cannot_be_written_to_is_named(
        self, full_home: Home, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        problem = refused(capsys, "backup", scratch / "no" / "b.tar", "--home", full_home.path)

        assert problem["exit_code"] == ExitCode.FAILED
        assert str(scratch / "no") in problem["detail"]

    @pytest.mark.slow
    def test_a_home_without_room_is_named_and_left_as_it_was(self, scratch: Path, backup_file: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        command = f"{sys.executable} -m fleek.cli.main restore {backup_file} --home {scratch / 'new'}"
        done = subprocess.run(
            ["/bin/sh", "-c", f"ulimit -f 1; exec {command}"],
            env=environment,
            capture_output=True,
            check=False,
            timeout=60,
        )

        assert done.returncode == ExitCode.FAILED
        assert done.stderr.decode() == f"error: {scratch / 'new'}: File too large\n"
        assert {path.name for path in (scratch / "new").iterdir()} <= {"logs", "run", "up.lock"}

    def test_what_is_no_file_is_not_replaced(
        self, full_home: Home, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        os.mkfifo(scratch / "pipe")
        problem = refused(capsys, "backup", "pipe", "--home", full_home.path, "--force")

        assert problem["exit_code"] == ExitCode.USAGE
        assert (scratch / "pipe").is_fifo()

    def test_a_link_stays_a_link(
        self, full_home: Home, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (scratch / "latest.tar").symlink_to("b.tar")
        saved = run(capsys, "backup", "latest.tar", "--home", full_home.path)

        assert (scratch / "latest.tar").is_symlink()
        assert (scratch / "b.tar").stat().st_size == saved["bytes"]

    def test_two_backups_do_not_write_the_same_file(
        self, full_home: Home, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        draft = scratch / "b.tar.partial"
        with draft.open("wb") as first:
            fcntl.flock(first, fcntl.LOCK_EX)
            problem = refused(capsys, "backup", "b.tar", "--home", full_home.path)

        assert "Another backup" in problem["detail"]
        assert draft.exists()
        assert run(capsys, "backup", "b.tar", "--home", full_home.path)["results"] == 6
        assert not draft.exists()


class TestInterruptions:
    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
    @pytest.mark.parametrize("command", ["backup", "restore"])
    def test_a_command_that_is_told_to_stop_leaves_nothing_behind(
        self, full_home: Home, backup_file: Path, scratch: Path, command: str, number: signal.Signals
    ) -> None:
        home = scratch / "new"
        file, begun = {
            "backup": (str(scratch / "b.tar"), scratch / "b.tar.partial"),
            "restore": ("-", home / "restoring"),
        }[command]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        arguments = [command, file, "--home", str(full_home.path if command == "backup" else home)]
        with subprocess.Popen(
            [sys.executable, "-m", "fleek.cli.main", *arguments], env=environment, stdin=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            # A restore waits for the rest; a backup has PostgreSQL to start once its file is there.
            process.stdin.write(backup_file.read_bytes()[:30_000])
            process.stdin.flush()
            until = time.monotonic() + 30
            while not begun.exists() and time.monotonic() < until:
                time.sleep(0.01)
            process.send_signal(number)
            process.wait(30)

        assert process.returncode == (130 if number == signal.SIGINT else 143)
        assert not begun.exists()
        assert not (home / "restoring-postgres").exists()

    @pytest.mark.parametrize("kind", ["unpacked", "postgres_data"])
    def test_what_a_killed_restore_left_goes_with_the_next_start(self, scratch: Path, kind: str) -> None:
        home = Home(scratch / "home")
        prepare_home(home)
        left = getattr(Restoring(home), kind)
        (left / "media").mkdir(parents=True)

        assert Restoring(home).resume() is False
        assert not left.exists()

    def test_a_home_whose_folders_cannot_be_moved_is_left_as_it_was(self, scratch: Path) -> None:
        home = Home(scratch / "home")
        prepare_home(home)
        restoring = Restoring(home)
        restoring.prepare()
        for name in ("media", "postgres", "restoring/store"):
            (home.path / name).mkdir()
            (home.path / name / name.partition("/")[0]).touch()
        home.secret_key_file.write_text("old")
        (restoring.unpacked / "secret_key").write_text("new")
        # A folder cannot be moved into itself, as little as a mount point can be moved.
        restoring.postgres_data = home.path
        with pytest.raises(OSError, match="Invalid argument"):
            restoring.put_in_place()

        assert home.secret_key_file.read_text() == "old"
        assert (home.media / "media").exists()
        assert (home.postgres_data / "postgres").exists()
        assert not list(home.path.glob("re*.json")) + list(home.path.glob("replaced-*"))
        assert Restoring(home).resume() is False

    @pytest.mark.slow
    def test_a_home_that_is_being_restored_is_not_backed_up(
        self, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home = Home(scratch / "home")
        home.postgres_data.mkdir(parents=True)
        prepare_home(home)
        server = PostgresServer(
            home.path / "restoring-postgres", home.postgres_socket_dir, home.logs / "postgres.log"
        )
        server.start()
        with hold_home(home):
            problem = refused(capsys, "backup", "b.tar", "--home", home.path)
        server.stop()

        assert "is being restored" in problem["detail"]

    @pytest.mark.slow
    def test_a_restore_that_is_killed_at_any_moment_leaves_nothing_or_everything(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home = Home(scratch / "new")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        command = [
            sys.executable,
            "-m",
            "fleek.cli.main",
            "restore",
            str(backup_file),
            "--home",
            str(home.path),
        ]
        for seconds in (0.4, 0.8, 1.2, 1.6):
            with subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as restore:
                time.sleep(seconds)
                restore.send_signal(signal.SIGKILL)
            if home.postgres_data.exists():
                break
        if not home.postgres_data.exists():
            run(capsys, "restore", backup_file, "--home", home.path)

        assert len(objects(home)) == 6
        with server_of(home) as server:
            assert server.query("SELECT count(*) FROM jobs") == "7"

    def test_moves_that_were_interrupted_are_finished_by_the_next_restore(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home = Home(scratch / "new")
        (home.path / "restoring" / "store" / "media").mkdir(parents=True)
        (home.path / "restoring-postgres").mkdir()
        home.secret_key_file.write_text(SECRET)
        home.postgres_data.mkdir()
        (home.postgres_data / "old").touch()
        aside = home.path / "replaced-then"
        (home.path / "restoring.json").write_text(json.dumps({"aside": str(aside)}))

        problem = refused(capsys, "restore", backup_file, "--home", home.path)

        assert "interrupted at its last step" in problem["detail"]
        assert (aside / "postgres" / "old").exists()
        assert list(home.postgres_data.iterdir()) == []
        assert (home.media / "media").is_dir()
        assert home.secret_key_file.read_text() == SECRET
        assert [path.name for path in home.path.iterdir() if path.name.startswith("restoring")] == []
