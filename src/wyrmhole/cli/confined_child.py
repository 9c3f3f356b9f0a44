"""The inside of `wyrmhole run`: makes the namespaces, hands the TUN to its parent, and becomes the program.

Steps: user namespace (only where the caller is not root), network and mount namespace; the TUN with addresses and
routes; a resolv.conf of its own; then the descriptor goes to the parent, which runs the tunnel outside, and when that
says `go`, exec. Whatever fails is told to the parent as `STEP: ERRNO`, and the program is not started: it never runs
in the network of the host.

Names could leave by a side door: services of the host that resolve them on a Unix socket (systemd-resolved, nscd).
Their folders are covered in this mount namespace.
"""

from __future__ import annotations

import array
import ctypes
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from wyrmhole.cli.namespace_probe import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, unshare
from wyrmhole.cli.quick_host import Host
from wyrmhole.control.uapi_format import parse_prefix
from wyrmhole.errors import DeviceError
from wyrmhole.net import tun_ioctl

MAX_PLAN = 64 << 20
"""Bytes: as a configuration file, whose allowed ips are in it."""

RESOLV_CONF = "/etc/resolv.conf"
RESOLVERS = ("/run/systemd/resolve", "/run/nscd", "/var/run/nscd", "/run/avahi-daemon")
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_PDEATHSIG = 1


def main() -> int:
    """argv: the descriptor of the channel. Ends by exec, or with status 1 after it told the parent why."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    lines = channel.makefile("rb")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    try:
        plan = json.loads(lines.readline(MAX_PLAN))
        tun = enclose(plan)
    except (OSError, DeviceError) as error:
        channel.sendall(f"{error}\n".encode())
        return 1
    descriptors = array.array("i", [tun]).tobytes()
    channel.sendmsg([b"ready\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    os.close(tun)
    if lines.readline(64) != b"go\n":
        return 1
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    return become(plan["command"])


def become(command: list[str]) -> int:
    """The shell's statuses: 127 for a program that is not there, 126 for one that cannot be run."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"wyrmhole: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if error.errno == errno.ENOENT else 126


def enclose(plan: dict[str, Any]) -> int:
    """Be in namespaces with a tunnel; returns the TUN. Raises DeviceError whose text is `STEP: ERRNO`."""
    if plan["user"]:
        _step("user namespace", _enter_user_namespace)
    _step("network namespace", lambda: unshare(CLONE_NEWNET))
    tun: int = _step("open /dev/net/tun", lambda: os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    flags = tun_ioctl.IFF_TUN | tun_ioctl.IFF_NO_PI | tun_ioctl.IFF_VNET_HDR
    _step("make a TUN", lambda: tun_ioctl.attach(tun, plan["name"], flags))
    configure(plan)
    _step("mount namespace", lambda: unshare(CLONE_NEWNS))
    _step("a resolv.conf of its own", lambda: replace_resolvers(plan["resolv_conf"]))
    return tun


def _step(name: str, step: Callable[[], Any]) -> Any:
    try:
        return step()
    except OSError as error:
        raise DeviceError(f"{name}: {errno.errorcode.get(error.errno or 0, str(error))}") from error


def _enter_user_namespace() -> None:
    """With the caller mapped to itself: files, and `id`, look as outside, and exec drops every capability."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def configure(plan: dict[str, Any]) -> None:
    with Host("lo") as loopback:
        loopback.set_up(65536)
    with Host(plan["name"]) as host:
        for address in plan["addresses"]:
            host.add_address(ipaddress.ip_interface(address))
        host.set_up(plan["mtu"])
        for prefix in map(parse_prefix, plan["routes"]):
            if prefix.length == 0 or not host.has_route(prefix):
                host.add_route(prefix)


# Names


def replace_resolvers(text: str) -> None:
    """Cover the host's resolv.conf, and the sockets of its resolvers. Raises OSError."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    covered = [folder for folder in map(os.path.realpath, RESOLVERS) if os.path.isdir(folder)]
    target = os.path.realpath(RESOLV_CONF)
    for folder in dict.fromkeys(covered):
        mount("tmpfs", folder, "tmpfs", 0)
    if os.path.dirname(target) in covered:
        with open(target, "w") as file:
            file.write(text)
    else:
        _bind_text(text, target)


def _bind_text(text: str, target: str) -> None:
    """Bind a file of a tmpfs, which is mounted for that moment over a folder that every system has."""
    scratch = next(folder for folder in ("/mnt", "/tmp", "/proc/self/task") if os.path.isdir(folder))
    mount("tmpfs", scratch, "tmpfs", 0)
    path = f"{scratch}/resolv.conf"
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o644)
    mount(path, target, None, MS_BIND)
    umount(scratch)


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """mount(2). Raises OSError."""
    words = (source.encode(), target.encode(), None if kind is None else kind.encode())
    if ctypes.CDLL(None, use_errno=True).mount(*words, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def umount(target: str) -> None:
    """Lazily: what is mounted from below stays."""
    detach = 2
    if ctypes.CDLL(None, use_errno=True).umount2(target.encode(), detach) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


if __name__ == "__main__":
    sys.exit(main())
