"""Who runs the embedded servers, and whether that account can reach their files.

PostgreSQL refuses to run as root. Root's Fleek therefore runs it, and Valkey, as an account without
privileges.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fleek.core.errors import ConfigurationError

ACCOUNT_NAME = "fleek"
_FALLBACK_NAME = "nobody"


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the system that servers are started as."""

    name: str
    uid: int
    gid: int


def server_account(data: Path) -> Account | None:
    """The account for servers whose data lies in `data`; None when we are not root and need no other.

    Data that exists keeps its owner. Otherwise it is the system user `fleek`, made when it is missing; where
    users cannot be made it is `nobody`.
    """
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        owner = data.stat()
        if owner.st_uid != 0:
            return Account(_name_of(owner.st_uid), owner.st_uid, owner.st_gid)
    return _look_up(ACCOUNT_NAME) or _create(ACCOUNT_NAME) or _require(_FALLBACK_NAME)


def require_passage(account: Account | None, folder: Path) -> None:
    """Raise ConfigurationError unless `account` can enter `folder`."""
    blocker = blocking_folder(account, folder)
    if blocker is None or account is None:
        return
    message = (
        f"The embedded servers run as the user '{account.name}', who may not enter {blocker}; "
        f"choose another home (--home /var/lib/fleek) or allow it (chmod a+x {blocker})"
    )
    raise ConfigurationError(message)


def blocking_folder(account: Account | None, folder: Path) -> Path | None:
    """The first of `folder` and its parents, seen from the root, that `account` may not enter."""
    if account is None:
        return None
    path = folder.resolve()
    return next((part for part in [*reversed(path.parents), path] if not _may_enter(account, part)), None)


def make_folder(path: Path, *, account: Account | None = None, mode: int = 0o700) -> None:
    """Make a folder, and what is missing above it, whatever the umask; an existing one is left as it is.

    `account` owns a new folder. New parents can be entered by everybody, and read by their owner.
    """
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_folder(path.parent, mode=0o711)
    try:
        path.mkdir(mode=mode, exist_ok=True)
        path.chmod(mode)
        if account is not None:
            os.chown(path, account.uid, account.gid)
    except OSError as error:
        message = f"Cannot make the folder {path}: {error.strerror}; choose another home with --home"
        raise ConfigurationError(message) from error


def _may_enter(account: Account, folder: Path) -> bool:
    """The permission bits alone decide: access lists are rare, and at worst PostgreSQL says so itself."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return True
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _look_up(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, entry.pw_uid, entry.pw_gid) if entry.pw_uid != 0 else None


def _create(name: str) -> Account | None:
    """Make a system user without a home and without a login; two at once end with the same one."""
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        return None
    options = ["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
    subprocess.run([useradd, *options, name], capture_output=True, check=False)  # noqa: S603  fixed words
    return _look_up(name)


def _require(name: str) -> Account:
    account = _look_up(name)
    if account is None:
        message = f"PostgreSQL does not run as root, and there is no user '{ACCOUNT_NAME}'; make one"
        raise ConfigurationError(message)
    return account


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
