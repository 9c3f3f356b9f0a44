"""The inside of `wyrmhole run`: makes the namespaces, hands the TUN to its parent, and becomes the program.

Steps: user namespace (only where the caller is not root), network and mount namespace; the TUN with addresses and
routes (`confined_network`); name servers of its own (`confined_names`); then the descriptor goes to the parent, which
runs the tunnel outside, and when that answers `go`, a guard is left (`confined_guard`), and exec. A failure is reported
to the parent in words, and the program is not started: it never runs in the network of the host. A dot on the
channel means that there is progress.
"""

from __future__ import annotations

import array
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from wyrmhole.cli.confined.guard import leave_guard
from wyrmhole.cli.confined.names import replace_resolvers
from wyrmhole.cli.confined.network import Plan, configure, open_ping
from wyrmhole.errors import DeviceError
from wyrmhole.namespaces import refusals, steps
from wyrmhole.namespaces.steps import Stage, StepRefused
from wyrmhole.system import libc

MAX_PLAN = 64 << 20
"""Bytes: as a configuration file, whose allowed ips are in it."""


def main() -> int:
    """argv: the descriptor of the channel. Ends by exec, or with status 1 after it told the parent why."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    lines = channel.makefile("rb")
    end_with_parent(signal.SIGKILL)
    # Ctrl-C while the namespaces are made ends this without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        plan: Plan = json.loads(lines.readline(MAX_PLAN))
        tun = enclose(plan, lambda: channel.sendall(b"."))
    except StepRefused as refused:
        return report_failure(channel, explain(refused))
    except (OSError, ValueError, DeviceError) as error:
        return report_failure(channel, str(error))
    descriptors = array.array("i", [tun]).tobytes()
    channel.sendmsg([b"ready\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    os.close(tun)
    if lines.readline(64) != b"go\n":
        return 1
    # The guard ends the program in two steps; the parent may be gone already, and then it does so at once.
    leave_guard(channel)
    end_with_parent(0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return become(plan["command"])


def explain(refused: StepRefused) -> str:
    return f"{refusals.TITLES[refused.step]}: {refusals.explain(refused.step, refused.errno or 0)}"


def report_failure(channel: socket.socket, reason: str) -> int:
    """A parent that is gone neither sent the plan nor hears the reason."""
    with suppress(OSError):
        channel.sendall(f"{reason}\n".encode())
    return 1


def end_with_parent(number: int) -> None:
    """Have the kernel send this signal when the parent ends; 0: none."""
    libc.prctl(libc.PR_SET_PDEATHSIG, number)


def warn(sentence: str) -> None:
    print(f"Warning: {sentence}", file=sys.stderr, flush=True)


def become(command: list[str]) -> int:
    """The shell's statuses: 127 for a program that is not there, 126 for one that cannot be run."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"wyrmhole: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if error.errno == errno.ENOENT else 126


def enclose(plan: Plan, report: Callable[[], None]) -> int:
    """Be in namespaces with a tunnel; returns the TUN. Raises StepRefused, and DeviceError for its network."""
    if plan["user"]:
        steps.enter_user_namespace()
    steps.enter_network_namespace()
    tun = steps.make_tun(plan["name"])
    configure(plan, report, warn)
    open_ping(plan["user"], warn)
    steps.enter_mount_namespace()
    with steps.taking(Stage.NAMES):
        replace_resolvers(plan["resolv_conf"])
    return tun


if __name__ == "__main__":
    sys.exit(main())
