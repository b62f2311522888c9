"""`fleek backup` and `fleek restore`: a home as a file and back, as it was."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.homes import SECRET, contents, everything, fill, objects, run, server_of

from fleek.cli.exits import ExitCode
from fleek.cli.main import execute
from fleek.core.home import Home
from fleek.db import migrate
from fleek.local.instance import hold_home


class TestThereAndBack:
    def test_a_home_comes_back_as_it_was(
        self, full_home: Home, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = everything(full_home)
        saved = run(capsys, "backup", "b.tar", "--home", full_home.path)
        restored = run(capsys, "restore", "b.tar", "--home", scratch / "new")
        new = Home(scratch / "new")

        assert everything(new) == before
        assert new.secret_key_file.read_text() == SECRET
        assert new.secret_key_file.stat().st_mode & 0o777 == 0o600
        assert new.media.stat().st_mode & 0o777 == 0o700
        assert (saved["results"], saved["revision"]) == (6, migrate.head())
        assert (scratch / "b.tar").stat().st_mode & 0o777 == 0o600
        assert saved["bytes"] == (scratch / "b.tar").stat().st_size
        assert restored == {
            "home": str(scratch / "new"),
            "revision": migrate.head(),
            "jobs": 7,
            "unfinished": 2,
            "missing": 0,
            "first_missing": None,
            "results": 6,
            "replaced": None,
        }
        assert [path.name for path in scratch.iterdir() if "partial" in path.name] == []
        assert [path.name for path in new.path.iterdir() if "restoring" in path.name] == []

    @pytest.mark.slow
    def test_it_goes_through_pipes(self, full_home: Home, scratch: Path) -> None:
        fleek = [sys.executable, "-m", "fleek.cli.main"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEEK_")}
        with subprocess.Popen(
            [*fleek, "backup", "-", "--home", str(full_home.path)], stdout=subprocess.PIPE, env=environment
        ) as backup:
            restored = subprocess.run(
                [*fleek, "restore", "-", "--home", str(scratch / "new")],
                stdin=backup.stdout,
                capture_output=True,
                check=True,
                timeout=60,
                env=environment,
            )

        assert backup.returncode == 0
        assert restored.stdout.decode() == f"{scratch / 'new'}\n"
        assert objects(Home(scratch / "new")) == objects(full_home)

    @pytest.mark.slow
    def test_a_backup_of_a_fleek_that_runs_is_that_of_one_moment(
        self, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home = Home(scratch / "home")
        with server_of(home) as server, hold_home(home):
            migrate.upgrade(server.url())
            fill(server, home)
            before = contents(home)
            saved = run(capsys, "backup", "b.tar", "--home", home.path)
            assert server.query("SELECT 1") == "1"
        run(capsys, "restore", "b.tar", "--home", scratch / "new")

        assert saved["results"] == 6
        assert everything(Home(scratch / "new")) == before

    @pytest.mark.slow
    def test_an_older_schema_is_brought_forward(
        self, scratch: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home = Home(scratch / "home")
        with server_of(home) as server:
            migrate.upgrade(server.url())
            fill(server, home)
            before = contents(home)
            migrate.downgrade(server.url(), "e7e9eec221b6")
        saved = run(capsys, "backup", "b.tar", "--home", home.path)
        restored = run(capsys, "restore", "b.tar", "--home", scratch / "new")

        assert (saved["revision"], restored["revision"]) == ("e7e9eec221b6", migrate.head())
        assert everything(Home(scratch / "new")) == before

    @pytest.mark.slow
    def test_results_whose_bytes_are_gone_are_told(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with tarfile.open(backup_file) as whole, tarfile.open(scratch / "less.tar", "w") as less:
            victim = next(name for name in whole.getnames() if name.startswith("media/"))
            for member in whole.getmembers():
                content = whole.extractfile(member)
                assert content is not None
                data = content.read()
                if member.name == "checksums.txt":
                    data = b"".join(
                        line for line in data.splitlines(keepends=True) if victim.encode() not in line
                    )
                    member.size = len(data)
                if member.name != victim:
                    less.addfile(member, io.BytesIO(data))
        restored = run(capsys, "restore", "less.tar", "--home", scratch / "new")

        assert (restored["results"], restored["missing"], restored["first_missing"]) == (5, 1, victim)

    @pytest.mark.slow
    def test_a_person_is_told_what_to_look_at(
        self, scratch: Path, backup_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert execute(["restore", str(backup_file), "--home", str(scratch / "new")]) == ExitCode.OK

        printed = capsys.readouterr()
        assert printed.out == f"{scratch / 'new'}\n"
        assert "Restored 7 jobs and 6 results" in printed.err
        assert "Jobs that had not ended go on with the next worker: 2" in printed.err


class TestResultsElsewhere:
    @pytest.mark.slow
    def test_a_bucket_is_said_to_be_missing(
        self,
        full_home: Home,
        scratch: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("FLEEK_STORAGE_URL", "s3://results/prefix")
        assert execute(["backup", "b.tar", "--home", str(full_home.path)]) == ExitCode.OK
        said = capsys.readouterr().err
        restored = run(capsys, "restore", "b.tar", "--home", scratch / "new")

        assert "s3://results/prefix" in said
        assert (restored["jobs"], restored["results"], restored["missing"]) == (7, 0, 0)
        assert not (scratch / "new" / "media").exists()
