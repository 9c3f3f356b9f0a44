"""The steps to a private network: namespaces, a TUN in them, and what a program needs inside.

The library takes them in a helper process, which makes the user and the network namespace at once (`unshare`) and may
enter them again (`setns`). `wyrmhole run` and `doctor` take them in a child, one by one. `refusals` explains each.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from wyrmhole.net import tun_ioctl
from wyrmhole.system import libc


class Stage(StrEnum):
    """The value is what `NamespaceError.stage` reports."""

    SPAWN = "spawn"
    UNSHARE = "unshare"
    SETNS = "setns"
    USER = "user"
    NETWORK = "network"
    OPEN = "open"
    PASS = "pass"
    ATTACH = "attach"
    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    SOCKET = "socket"
    PACKET = "packet"
    MOUNT = "mount"
    NAMES = "names"


class StepRefused(OSError):
    """The system refused a step, with this errno."""

    def __init__(self, step: Stage, number: int) -> None:
        super().__init__(number, os.strerror(number))
        self.step = step


@contextmanager
def taking(step: Stage) -> Iterator[None]:
    """An OSError inside becomes the refusal of this step."""
    try:
        yield
    except OSError as error:
        raise StepRefused(step, error.errno or errno.EIO) from error


def enter_user_namespace(*, as_root: bool = False) -> None:
    """Enter a new user namespace in which the caller is itself, or root.

    As itself, files and `id` look as they do outside, and exec drops every capability. Raises StepRefused.
    """
    uid, gid = os.geteuid(), os.getegid()
    inner_uid, inner_gid = (0, 0) if as_root else (uid, gid)
    maps = ("setgroups", "deny"), ("uid_map", f"{inner_uid} {uid} 1"), ("gid_map", f"{inner_gid} {gid} 1")
    with taking(Stage.USER):
        libc.unshare(libc.CLONE_NEWUSER)
        for name, text in maps:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def enter_network_namespace() -> None:
    """Enter a new network namespace. Raises StepRefused."""
    with taking(Stage.NETWORK):
        libc.unshare(libc.CLONE_NEWNET)


def enter_mount_namespace() -> None:
    """Enter a new mount namespace. Raises StepRefused."""
    with taking(Stage.MOUNT):
        libc.unshare(libc.CLONE_NEWNS)


def make_tun(name: str) -> int:
    """Make a TUN in the network namespace of the caller; returns its descriptor. Raises StepRefused."""
    with taking(Stage.OPEN):
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with taking(Stage.ATTACH):
            tun_ioctl.attach(tun, name, tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI | tun_ioctl.IFF_VNET_HDR)
    except BaseException:
        os.close(tun)
        raise
    return tun
