"""A child of `doctor`: does what an unprivileged tunnel needs, in namespaces of its own, and prints how far it came.

One line per step that worked, and `STEP: REASON` for the one that did not; if all did, the offloads of a TUN. Run as
`python -m`, it ends by itself and leaves nothing: its namespaces go with it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable

from wyrmhole.net import tun_ioctl
from wyrmhole.system import libc

OFFLOADS = "offloads"

STEPS = ("user namespace", "network namespace", "open /dev/net/tun", "make a TUN", "a socket", "mount namespace")


def main() -> int:
    held: list[int] = []
    steps: tuple[Callable[[], object], ...] = (
        lambda: libc.unshare(libc.CLONE_NEWUSER),
        lambda: libc.unshare(libc.CLONE_NEWNET),
        lambda: held.append(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)),
        lambda: tun_ioctl.attach(held[0], "probe", tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI | tun_ioctl.IFF_VNET_HDR),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        lambda: libc.unshare(libc.CLONE_NEWNS),
    )
    for name, step in zip(STEPS, steps, strict=True):
        try:
            step()
        except OSError as error:
            print(f"{name}: {error.strerror or error}")
            return 1
        print(name)
    print(f"{OFFLOADS}: {offloads(held[0])}")
    return 0


def offloads(tun: int) -> str:
    tso = tun_ioctl.TUN_F_CSUM | tun_ioctl.TUN_F_TSO4 | tun_ioctl.TUN_F_TSO6
    if tun_ioctl.accepts_offloads(tun, tso | tun_ioctl.TUN_F_USO4 | tun_ioctl.TUN_F_USO6):
        return "TCP and UDP"
    return "TCP" if tun_ioctl.accepts_offloads(tun, tso) else "none"


if __name__ == "__main__":
    sys.exit(main())
