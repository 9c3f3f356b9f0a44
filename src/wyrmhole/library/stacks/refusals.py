"""Why there is no private network namespace, as a sentence each: at which step, for what reason, what to do.

Steps tell what happened; the system's settings are read only to explain it, for they cannot predict success.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from wyrmhole.errors import NamespaceError

DESCRIPTOR_LIMIT = "descriptor limit reached: raise it (ulimit -n), or close what is not needed"
NOTHING_OUTSIDE = "No tunnel was opened, and nothing goes around it"

STAGES = {
    "spawn": "starting the helper process",
    "unshare": "making namespaces (unshare)",
    "setns": "entering the namespaces again (setns)",
    "open": "opening /dev/net/tun",
    "pass": "taking over descriptors",
    "attach": "making the TUN interface (TUNSETIFF)",
    "link": "setting up the interface",
    "address": "giving the interface an address",
    "route": "giving the namespace a route",
    "socket": "making a socket inside",
    "packet": "seeing a packet come out of the namespace",
}


def refusal(stage: str, number: int) -> NamespaceError:
    """What to raise for this errno at that stage."""
    reason = _reason(stage, number).rstrip(".")
    name = errno.errorcode.get(number, str(number))
    message = f"No private network namespace: {reason}. Failed at {STAGES[stage]} with {name}. {NOTHING_OUTSIDE}"
    return NamespaceError(number, message, stage=stage)


def helper_failed(error: OSError, status: int) -> str:
    return f"No private network namespace: its helper process failed ({error}; exit status {status}). {NOTHING_OUTSIDE}"


def _reason(stage: str, number: int) -> str:
    if number in (errno.EMFILE, errno.ENFILE):
        return DESCRIPTOR_LIMIT
    if stage == "spawn":
        return _spawn_reason(number)
    if stage in ("unshare", "setns"):
        return _unshare_reason(number)
    if stage == "open":
        return _open_reason(number)
    if stage == "packet":
        return "a packet sent inside never reached the TUN: this kernel's namespaces or TUN driver are incomplete"
    if number in (errno.EPERM, errno.EACCES):
        if _setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
            return (
                "AppArmor restricts user namespaces for this program (Ubuntu 23.10 and later): install an AppArmor "
                "profile that grants it `userns,`, or run it as root with device='tun'"
            )
        return f"a security module refused it ({os.strerror(number)}): look at the audit log"
    return os.strerror(number)


def _spawn_reason(number: int) -> str:
    if number == errno.EAGAIN:
        return "process limit reached: raise it (ulimit -u, or the pids limit of the container)"
    if number in (errno.ENOENT, errno.EACCES):
        return "the Python interpreter cannot be started again (sys.executable): run in an installed Python"
    return os.strerror(number)


def _unshare_reason(number: int) -> str:
    if number == errno.ENOSPC:
        return "user.max_user_namespaces or user.max_net_namespaces is 0 or used up: raise it with sysctl"
    if number in (errno.EPERM, errno.EACCES):
        if _setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":
            return "this system disables user namespaces for users: sysctl kernel.unprivileged_userns_clone=1"
        if _is_filtered():
            return (
                "the container's seccomp profile forbids unshare: run with a profile that allows it, or give the "
                "container CAP_NET_ADMIN and /dev/net/tun and use device='tun'"
            )
        return "the process is in a chroot or a security module refused: use device='tun' with CAP_NET_ADMIN"
    if number in (errno.EINVAL, errno.ENOSYS):
        return "this kernel has no user or network namespaces"
    return os.strerror(number)


def _open_reason(number: int) -> str:
    return {
        errno.ENOENT: "there is no /dev/net/tun: modprobe tun (containers: --device /dev/net/tun)",
        errno.EACCES: "/dev/net/tun is not readable and writable for this user: chmod 0666 it, as most systems do",
        errno.EPERM: "/dev/net/tun is denied by the device cgroup: containers need --device /dev/net/tun",
        errno.ENODEV: "the tun module is not loaded: modprobe tun",
        errno.ENXIO: "the tun module is not loaded: modprobe tun",
    }.get(number, os.strerror(number))


def _is_filtered() -> bool:
    """Whether a seccomp filter is in force; see proc(5)."""
    status = _setting("/proc/self/status")
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())


def _setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
