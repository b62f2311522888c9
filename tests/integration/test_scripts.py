"""The scripts that make the environment, on machines that lack something."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent.parent
_WITHOUT_VENV_AND_PIP = """#!/bin/sh
case "$2" in *version_info*) echo "$0" ;; *) exit 1 ;; esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh checkout's scripts and locks, and a folder of programs in which there is no uv."""
    checkout = tmp_path / "fleek"
    shutil.copytree(_ROOT / "script", checkout / "script")
    shutil.copytree(_ROOT / "requirements", checkout / "requirements")
    shutil.copy(_ROOT / "pyproject.toml", checkout)
    programs = checkout / "programs"
    programs.mkdir()
    for name in ("sh", "cat", "cmp", "dirname", "basename", "rm"):
        (programs / name).symlink_to(str(shutil.which(name)))
    return checkout


def _run(checkout: Path, script: str, *arguments: str, python: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout / "programs"), **({"PYTHON": python} if python else {})}
    command = [str(checkout / "script" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=30)


def _install_by_hand(checkout: Path, flavour: str) -> None:
    """Leave what a finished installation leaves; its programs say what they are asked."""
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("fleek", "python"):
        (programs / name).write_text('#!/bin/sh\necho "$0 $*"\n')
        (programs / name).chmod(0o755)
    script = f'. "{checkout}/script/_environment"; ingredients {flavour} >"$venv/.installed-{flavour}"'
    command = ["/bin/sh", "-euc", script, str(checkout / "script" / "up")]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})


def test_a_machine_without_python_is_told_what_to_install(checkout: Path) -> None:
    result = _run(checkout, "up")

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        "script/up: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3\n"
    )


def test_a_python_that_was_named_and_is_too_old_is_not_replaced_by_another(checkout: Path) -> None:
    (checkout / "programs" / "python3").symlink_to(str(shutil.which("python3")))

    result = _run(checkout, "test", python="/bin/false")

    assert result.returncode == 1
    assert result.stderr == "script/test: PYTHON=/bin/false is not a Python 3.11 or newer\n"


def test_a_python_without_venv_and_pip_is_told_which_package_to_install(checkout: Path) -> None:
    """As Debian's is, until its packages are installed."""
    python = checkout / "programs" / "python3"
    python.write_text(_WITHOUT_VENV_AND_PIP)
    python.chmod(0o755)

    result = _run(checkout, "up")

    assert result.returncode == 1
    assert "has neither venv nor pip; install the package python3-venv (or python3-pip)" in result.stderr
    assert not (checkout / ".tools").exists()


def test_an_installed_environment_is_used_at_once_with_all_arguments(checkout: Path) -> None:
    _install_by_hand(checkout, "runtime")

    result = _run(checkout, "up", "--home", "/a folder")

    assert result.returncode == 0
    assert result.stdout == f"{checkout}/.venv/bin/fleek up --home /a folder\n"


@pytest.mark.parametrize("changed", ["pyproject.toml", "requirements/runtime.txt", "requirements/build.txt"])
def test_a_changed_lock_is_noticed(checkout: Path, changed: str) -> None:
    _install_by_hand(checkout, "runtime")
    with (checkout / changed).open("a") as file:
        file.write("# changed\n")

    assert "no Python 3.11 or newer found" in _run(checkout, "up").stderr


def test_a_checkout_that_was_moved_is_installed_again(checkout: Path, tmp_path: Path) -> None:
    """The programs of an environment carry its path."""
    _install_by_hand(checkout, "runtime")
    moved = checkout.rename(tmp_path / "elsewhere")

    assert "no Python 3.11 or newer found" in _run(moved, "up").stderr


def test_arguments_of_the_test_script_go_to_pytest_without_the_coverage_floor(checkout: Path) -> None:
    _install_by_hand(checkout, "dev")

    result = _run(checkout, "test", "tests/unit", "-k", "cursor")

    assert result.stdout == f"{checkout}/.venv/bin/python -m pytest tests/unit -k cursor\n"
