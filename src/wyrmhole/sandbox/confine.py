"""Give up the rights that a running daemon does not need. No step can be undone, and none needs privileges.

    before threads exist    drop_privileges   user, capabilities, no_new_privs, dumpable
    after the setup         restrict_calls    the system calls of `policy`, on every thread

Capabilities belong to a thread and are inherited by new threads, hence the order. The capabilities that later commands
need are kept: CAP_NET_ADMIN (SO_MARK, socket buffers beyond the limit, the namespace of the TUN), CAP_NET_BIND_SERVICE
(a listen port below 1024) and CAP_NET_BROADCAST (to be notified of a TUN that was moved to another namespace). None of
them lets a process read, write or run a file that its user could not.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import resource
from dataclasses import dataclass
from pathlib import Path

from wyrmhole.errors import DeviceError
from wyrmhole.sandbox.policy import daemon_filter
from wyrmhole.sandbox.syscalls import ARCHITECTURES
from wyrmhole.system import libc

CAP_SETPCAP, CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_ADMIN = 8, 10, 11, 12
KEPT = frozenset({CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_ADMIN})


@dataclass(frozen=True, slots=True)
class User:
    """The user that the daemon becomes."""

    name: str
    uid: int
    gid: int


def find_user(name: str) -> User:
    """Find a user by name or number. Raises DeviceError."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise DeviceError(f"unknown user {name!r}: create it with 'useradd --system', or leave out --user") from None
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


def forbid_dumps() -> None:
    """Forbid core dumps, because the process holds private keys.

    The limit stops core files; the flag stops handlers that receive cores by a pipe, and debuggers of the same user.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def drop_privileges(user: User | None, kept: frozenset[int] = KEPT) -> None:
    """Drop all capabilities but these. No thread may exist. Raises DeviceError.

    With a user, only its group is kept, and the process cannot become another user again.
    """
    try:
        _drop_bounding_set(kept)
        if user is not None:
            _become(user)
        _keep_capabilities(kept)
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        # A change of the user makes the process dumpable again.
        forbid_dumps()
    except OSError as error:
        change = f" and become {user.name}" if user is not None else ""
        message = f"cannot give up privileges{change}: {error.strerror} (--no-sandbox keeps them)"
        raise DeviceError(message) from error


def restrict_calls() -> None:
    """Install the filter of `policy` on all threads; new threads inherit it.

    Raises DeviceError if the kernel or the architecture does not support it; then nothing has changed.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise DeviceError(f"no system call filter for {platform.machine()}: the daemon runs without it")
    code = daemon_filter(architecture, os.getpid())
    try:
        thread = libc.filter_calls(architecture.seccomp, code)
        reason = f"thread {thread} has another filter" if thread else ""
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise DeviceError(f"cannot install the system call filter: {reason} (the daemon runs without it)")


def _become(user: User) -> None:
    libc.prctl(libc.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    libc.prctl(libc.PR_SET_KEEPCAPS, 0)


def _keep_capabilities(kept: frozenset[int]) -> None:
    try:
        libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        # Linux before 4.3 has no ambient capabilities.
        if error.errno != errno.EINVAL:
            raise
    libc.set_capabilities(sum(1 << number for number in kept) & libc.permitted_capabilities())


def _drop_bounding_set(kept: frozenset[int]) -> None:
    """Drop capabilities that even a new program must not gain. no_new_privs covers the case without CAP_SETPCAP."""
    if not libc.permitted_capabilities() >> CAP_SETPCAP & 1:
        return
    for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if number not in kept:
            libc.prctl(libc.PR_CAPBSET_DROP, number)
