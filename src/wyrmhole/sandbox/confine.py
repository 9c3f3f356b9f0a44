"""Gives away what a started daemon does not need. Nothing here can be taken back, and nothing needs privilege.

    before threads exist    drop_privileges   user, capabilities, no_new_privs, dumpable
    when all is set up      restrict_calls    the system calls of `policy`, on every thread

Capabilities belong to a thread, and one that starts inherits them: hence the order. What is kept is what a later
command needs: CAP_NET_ADMIN (SO_MARK, socket buffers beyond the limit, the namespace of the TUN), CAP_NET_BIND_SERVICE
(a listen port below 1024) and CAP_NET_BROADCAST (to hear of a TUN that was moved to another namespace). None of them
lets a process read, write or run what its user could not.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
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
    """Whom the daemon becomes."""

    name: str
    uid: int
    gid: int


def find_user(name: str) -> User:
    """By name or number. Raises DeviceError."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise DeviceError(f"there is no user {name!r}: make one with 'useradd --system', or leave it out") from None
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


def forbid_dumps() -> None:
    """The process holds private keys. The limit is for files, the flag for handlers that get cores by a pipe, and for
    debuggers of the same user."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def drop_privileges(user: User | None, kept: frozenset[int] = KEPT) -> None:
    """Keep these capabilities as far as they are there. No thread may exist. Raises DeviceError.

    With a user, its group is the only one left; the process cannot become anybody else again.
    """
    try:
        _drop_bounding_set(kept)
        if user is not None:
            _become(user)
        _keep_capabilities(kept)
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        # Changing the user makes a process dumpable again.
        forbid_dumps()
    except OSError as error:
        whom = f" and become {user.name}" if user is not None else ""
        raise DeviceError(f"cannot give up privileges{whom}: {error.strerror}; --no-sandbox goes without") from error


def restrict_calls() -> None:
    """Install the filter of `policy` on all threads; those to come inherit it.

    Raises DeviceError when the kernel or the architecture cannot; nothing changed then.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise DeviceError(f"no system call filter for {platform.machine()}: the daemon runs without")
    code = daemon_filter(architecture, os.getpid())
    try:
        thread = libc.filter_calls(architecture.seccomp, code)
        reason = f"thread {thread} has another filter" if thread else ""
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise DeviceError(f"the system call filter was refused ({reason}): the daemon runs without")


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
        # Ambient capabilities came with Linux 4.3; before, there were none to clear.
        if error.errno != errno.EINVAL:
            raise
    libc.set_capabilities(sum(1 << number for number in kept) & libc.permitted_capabilities())


def _drop_bounding_set(kept: frozenset[int]) -> None:
    """What not even a new program could gain. Without CAP_SETPCAP it stays, and no_new_privs says the same."""
    if not libc.permitted_capabilities() >> CAP_SETPCAP & 1:
        return
    for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        if number not in kept:
            libc.prctl(libc.PR_CAPBSET_DROP, number)
