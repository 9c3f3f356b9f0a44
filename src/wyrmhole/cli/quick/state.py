"""Find the state of an interface for `down`: the daemon's status, or the remains of a daemon that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from wyrmhole.cli.quick import firewall
from wyrmhole.cli.quick.daemon import Daemon
from wyrmhole.cli.quick.deadline import Deadline
from wyrmhole.cli.quick.holders import holder_of_tun, tun_of
from wyrmhole.cli.quick.host import Host
from wyrmhole.control.uapi import client
from wyrmhole.device.status import DeviceStatus
from wyrmhole.errors import DeviceError, WyrmholeError

VANISH_SECONDS = 2.0
"""How long the kernel may take to remove the TUN of a killed process."""

POLL_SECONDS = 0.02


def look(host: Host, daemon: Daemon, warn: Callable[[str], None]) -> DeviceStatus | None:
    """Return the daemon's state, or None if it does not answer and the interface must be taken down without it.

    Raises DeviceError if there is nothing to take down, or if the interface does not belong to a daemon.
    """
    name = host.interface
    try:
        status = client.get(name)
    except client.NoSuchInterface as error:
        _require_remains(host, daemon, error)
        warn(f"the daemon of {name} is gone: taking down what it left")
        return None
    except WyrmholeError as error:
        if not host.exists:
            raise DeviceError(_where_it_is(name, daemon)) from error
        warn(f"{error}: taking down {name} without its help")
        return None
    if not host.exists:
        raise DeviceError(_where_it_is(name, daemon))
    return status


def other_marks(name: str) -> set[int]:
    """Return the marks of all other interfaces whose daemons answer."""
    found = set()
    for other in client.interfaces():
        try:
            found |= {client.get(other).fwmark} if other != name else set()
        except WyrmholeError:
            continue
    return found


def _require_remains(host: Host, daemon: Daemon, error: DeviceError) -> None:
    name = host.interface
    deadline = Deadline(VANISH_SECONDS)
    while host.exists:
        if host.kind == "wireguard":
            raise DeviceError(f"{name} is an interface of the kernel's WireGuard: `wg-quick down {name}` takes it down")
        if host.kind != "tun" or deadline.is_over:
            raise DeviceError(_whose_it_is(name, error))
        time.sleep(POLL_SECONDS)
    if not (daemon.log.exists() or daemon.socket.exists() or firewall.marks(name)):
        raise DeviceError(f"{name} is not up: {error}")


def _whose_it_is(name: str, error: DeviceError) -> str:
    holder = holder_of_tun(name)
    if holder is None or holder.daemon_of is None or holder.daemon_of == name:
        return str(error)
    return f"{name} is the interface of {holder}, which was renamed: {_rename_back(name, holder.daemon_of)}"


def _where_it_is(name: str, daemon: Daemon) -> str:
    process = daemon.process
    present = tun_of(process.pid) if process else None
    if present and present != name:
        return f"the interface of the daemon of {name} was renamed to {present}: {_rename_back(present, name)}"
    return f"the daemon of {name} runs, but its interface is not in this network namespace: run this in the other one"


def _rename_back(present: str, former: str) -> str:
    return f"`ip link set {present} down; ip link set {present} name {former}`, and then `wyrmhole down {former}`"
