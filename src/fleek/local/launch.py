"""Becomes another program, after tying its life to the process that asked for it.

Run by path with `python -I -S`, so only the standard library is imported: 20 ms. A script of its own
rather than `preexec_fn`, because Python code between fork and exec can deadlock where the parent has threads
(and Python 3.12 warns about it); any process may use this one.

    launch.py PARENT DEATH_SIGNAL UID GID PROGRAM [ARGUMENT ...]

UID and GID are -1 to stay who we are.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_EX_OSERR = 71
_NOT_FOUND = 127


def become(user: int, group: int) -> None:
    """Give up root for good, its groups first. Python may be out of reach afterwards: import before."""
    if user >= 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)


def die_with(parent: int, death_signal: int) -> None:
    """Have the kernel send `death_signal` to this process when `parent` is gone (Linux only).

    Elsewhere a pidfile lets the next start clean up. This comes after the change of user, which
    would reset it, and it looks at the parent last, which may have died before the call.
    """
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(_EX_OSERR)
    if os.getppid() != parent:
        sys.exit(_EX_OSERR)


def main(arguments: list[str]) -> None:
    """Never returns: the process is the program now, or has ended with a code above 0."""
    parent, death_signal, user, group = (int(value) for value in arguments[:4])
    program = arguments[4:]
    become(user, group)
    die_with(parent, death_signal)
    try:
        os.execv(program[0], program)  # noqa: S606  no shell is wanted
    except OSError as error:
        sys.stderr.write(f"cannot start {program[0]}: {error.strerror}\n")
        sys.exit(_NOT_FOUND)


if __name__ == "__main__":
    main(sys.argv[1:])
