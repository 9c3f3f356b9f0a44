"""The child process of `wyrmhole run`: make the namespaces, pass the TUN to the parent, and execute the program.

The steps are: a user namespace (unless the caller is root) and a network namespace; the TUN with addresses and routes
(`network.py`); a mount namespace with the tunnel's name servers (`names.py`). Then the TUN's descriptor is passed to
the parent, which runs the tunnel outside. When the parent answers `go`, a guard is started (`guard.py`) and the program
is executed. If a step fails, the reason is sent to the parent as text and the program is not started, so that it never
runs in the host's network. A dot on the channel reports progress.
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
"""Limit in bytes, the same as for a configuration file, because the plan contains its allowed ips."""


def main() -> int:
    """Run the steps. argv has the descriptor of the channel. Ends by exec, or reports a failure and returns 1."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    lines = channel.makefile("rb")
    end_with_parent(signal.SIGKILL)
    # Ctrl-C ends this process without a traceback while it makes the namespaces.
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
    # Now the guard, and not the kernel, ends the program if the parent ends or has already ended: with SIGTERM first.
    leave_guard(channel)
    end_with_parent(0)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return become(plan["command"])


def explain(refused: StepRefused) -> str:
    return f"{refusals.TITLES[refused.step]}: {refusals.explain(refused.step, refused.errno or 0)}"


def report_failure(channel: socket.socket, reason: str) -> int:
    """Send the reason to the parent, if it still exists."""
    with suppress(OSError):
        channel.sendall(f"{reason}\n".encode())
    return 1


def end_with_parent(number: int) -> None:
    """Ask the kernel to send this signal when the parent ends; 0 for none."""
    libc.prctl(libc.PR_SET_PDEATHSIG, number)


def warn(sentence: str) -> None:
    print(f"Warning: {sentence}", file=sys.stderr, flush=True)


def become(command: list[str]) -> int:
    """Execute the program. If that fails, return the status of a shell: 127 if it does not exist, otherwise 126."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"wyrmhole: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if error.errno == errno.ENOENT else 126


def enclose(plan: Plan, report: Callable[[], None]) -> int:
    """Enter new namespaces with a tunnel's interface, and return its TUN.

    Raises StepRefused, or DeviceError if the interface cannot be configured.
    """
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
