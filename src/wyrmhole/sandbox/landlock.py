"""Restrict the files that a daemon may read, with Landlock by plain system calls (landlock(7), Linux 5.13).

Root without capabilities still owns root's files, so a system call filter that allows reading allows reading
/etc/shadow. Landlock leaves only the files that the interpreter may need: its modules, the system's libraries and the
daemon's own /proc. It does not affect open descriptors and network sockets. Since Linux 6.12 it also prevents signals
to other processes, by any call.

Call it before threads exist: the restriction belongs to a thread and is inherited by new threads.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterable

from wyrmhole.system import libc

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""The same numbers on every architecture."""
_ASK_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_SCOPE_SIGNAL = 1 << 1
_RULE = struct.Struct("=Qi")

_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""The number of file rights by version, from EXECUTE to IOCTL_DEV. Later versions have at least those of 5."""

SYSTEM = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share", "/lib", "/lib64", "/nix/store")
FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom", "/proc/self", "/sys/fs/cgroup")


def needed_paths() -> list[str]:
    """Return the paths that the interpreter and its libraries may read after the start, for late imports."""
    packages = [os.path.dirname(os.path.dirname(__file__))]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    # The current directory and the root would make everything readable.
    modules = [path for path in (*sys.path, *libraries) if path not in ("", "/", os.getcwd())]
    return list(dict.fromkeys([*packages, *modules, *SYSTEM, *FILES]))


def version() -> int:
    """Return the kernel's version of Landlock. Raises OSError if it has none."""
    return libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION)


def allow_reading_only(paths: Iterable[str]) -> int:
    """Restrict this thread to reading these files, and the files below these directories.

    Returns the version of Landlock. Raises OSError if the kernel has none; then nothing has changed. It needs
    no_new_privs.
    """
    abi = version()
    handled = (1 << _RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", handled, 0, _SCOPE_SIGNAL if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = libc.syscall(_CREATE_RULESET, attributes, size, 0)
    try:
        for path in paths:
            _allow(rules, path)
        libc.syscall(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return abi


def _allow(rules: int, path: str) -> None:
    """Add a rule for a path. A missing path needs none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        access = _READ_FILE | _READ_DIR if is_directory else _READ_FILE
        libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, _RULE.pack(access, fd), 0)
    finally:
        os.close(fd)
