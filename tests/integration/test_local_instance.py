"""One `fleek up` a home: folders, lock, and the file by which others find it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleek.core.errors import ConfigurationError, Conflict
from fleek.core.home import Home
from fleek.local.instance import Instance, find_instance, hold_home, prepare_home, publish_instance

_INSTANCE = Instance(url="http://127.0.0.1:8000", pid=1, version="0.1.0")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home whose folders exist."""
    home = Home(tmp_path / "home")
    prepare_home(home)
    return home


@pytest.fixture
def long_home(tmp_path: Path) -> Iterator[Home]:
    """A home whose path is too long for sockets: they go to a short one."""
    home = Home(tmp_path / ("deep" * 30))
    yield home
    shutil.rmtree(home.run, ignore_errors=True)


def test_only_the_owner_can_read_the_home(home: Home) -> None:
    """Root's home can be passed through, because its servers run as somebody else."""
    expected = 0o711 if os.geteuid() == 0 else 0o700

    assert stat.S_IMODE(home.path.stat().st_mode) == expected
    assert stat.S_IMODE(home.run.stat().st_mode) == expected
    assert stat.S_IMODE(home.logs.stat().st_mode) == 0o700


def test_preparing_again_changes_nothing(home: Home) -> None:
    home.path.chmod(0o750)
    (home.path / "kept").write_text("data")

    prepare_home(home)

    assert stat.S_IMODE(home.path.stat().st_mode) == 0o750
    assert (home.path / "kept").read_text() == "data"


def test_a_socket_folder_that_others_can_write_to_is_refused(long_home: Home) -> None:
    """It has a predictable name in a folder where everybody may make one."""
    long_home.run.mkdir()
    long_home.run.chmod(0o777)

    with pytest.raises(ConfigurationError, match="is not a folder that only we can write to"):
        prepare_home(long_home)


def test_a_socket_folder_that_is_a_link_is_refused(long_home: Home, tmp_path: Path) -> None:
    long_home.run.symlink_to(tmp_path, target_is_directory=True)

    with pytest.raises(ConfigurationError, match="is not a folder that only we can write to"):
        prepare_home(long_home)
    long_home.run.unlink()


def test_a_home_that_cannot_be_made_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(
        ConfigurationError, match=r"Cannot make the folder .*; choose another home with --home"
    ):
        prepare_home(Home(tmp_path / "file" / "home"))


def test_a_second_holder_is_told_where_the_first_one_is(home: Home) -> None:
    with hold_home(home):
        publish_instance(home, _INSTANCE)

        with (
            pytest.raises(Conflict, match=r"already running on .*: http://127.0.0.1:8000 \(process 1\)"),
            hold_home(home),
        ):
            pytest.fail("two hold one home")


def test_a_second_holder_is_told_while_the_first_one_starts(home: Home) -> None:
    with hold_home(home), pytest.raises(Conflict, match="is starting or stopping on"), hold_home(home):
        pytest.fail("two hold one home")


def test_an_instance_is_found_while_it_holds_its_home(home: Home) -> None:
    found = [find_instance(home)]
    with hold_home(home):
        found.append(find_instance(home))
        publish_instance(home, _INSTANCE)
        found.append(find_instance(home))
    found.append(find_instance(home))

    assert found == [None, None, _INSTANCE, None]


def test_the_file_of_a_killed_instance_counts_for_nothing(home: Home) -> None:
    with hold_home(home):
        pass
    publish_instance(home, _INSTANCE)

    assert find_instance(home) is None


def test_the_lock_falls_with_its_holder(home: Home) -> None:
    code = "import os, sys; from pathlib import Path; from fleek.core.home import Home\n"
    code += "from fleek.local.instance import hold_home\n"
    code += "hold = hold_home(Home(Path(sys.argv[1]))); hold.__enter__(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(home.path)], check=False)

    with hold_home(home):
        assert find_instance(home) is None


@pytest.mark.parametrize("content", ["", "[]", '{"url": "http://127.0.0.1:1"}'])
def test_a_file_that_says_nothing_is_ignored(home: Home, content: str) -> None:
    with hold_home(home):
        home.state_file.write_text(content)

        assert find_instance(home) is None
