"""A child of `doctor`: takes the steps of a tunnel without root, in namespaces of its own, and prints the outcome.

The outcome is one line: `offloads: ` and those of a TUN, or `STEP ERRNO` for the step that was refused. Run as
`python -m`, it ends by itself and leaves nothing: its namespaces go with it.
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
