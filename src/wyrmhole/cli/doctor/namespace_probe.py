"""A child process of `doctor` that takes the steps to a tunnel without root, in new namespaces, and prints the outcome.

The outcome is one line: `offloads: ` and the TUN's offloads, or `STEP ERRNO` if a step was refused. It is run with
`python -m`. Its namespaces end with the process, so nothing remains.
"""

from __future__ import annotations

import socket
import sys

from wyrmhole.namespaces import steps
from wyrmhole.namespaces.steps import Stage, StepRefused
from wyrmhole.net import tun_ioctl

OFFLOADS = "offloads: "


def main() -> int:
    try:
        steps.enter_user_namespace()
        steps.enter_network_namespace()
        tun = steps.make_tun("probe")
        with steps.taking(Stage.SOCKET):
            socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        steps.enter_mount_namespace()
    except StepRefused as refused:
        print(f"{refused.step} {refused.errno}")
        return 1
    print(f"{OFFLOADS}{offloads(tun)}")
    return 0


def offloads(tun: int) -> str:
    tso = tun_ioctl.TUN_F_CSUM | tun_ioctl.TUN_F_TSO4 | tun_ioctl.TUN_F_TSO6
    if tun_ioctl.accepts_offloads(tun, tso | tun_ioctl.TUN_F_USO4 | tun_ioctl.TUN_F_USO6):
        return "TCP and UDP"
    return "TCP" if tun_ioctl.accepts_offloads(tun, tso) else "none"


if __name__ == "__main__":
    sys.exit(main())
