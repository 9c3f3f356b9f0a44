"""Why a step to a private network was refused, and what to do: one table for the library, `run` and `doctor`.

Steps report what happened. The system's settings are read only to explain it, because they do not predict success.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from wyrmhole.errors import NamespaceError
from wyrmhole.namespaces.steps import Stage
from wyrmhole.system import libc


class Reason(NamedTuple):
    cause: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.cause}: {self.remedy}" if self.remedy else self.cause


TITLES = {
    Stage.SPAWN: "starting the helper process",
    Stage.UNSHARE: "making namespaces (unshare)",
    Stage.SETNS: "entering the namespaces again (setns)",
    Stage.USER: "making a user namespace",
    Stage.NETWORK: "making a network namespace",
    Stage.OPEN: "opening /dev/net/tun",
    Stage.PASS: "receiving descriptors",
    Stage.ATTACH: "making the TUN interface (TUNSETIFF)",
    Stage.LINK: "setting up the interface",
    Stage.ADDRESS: "adding an address",
    Stage.ROUTE: "adding a route",
    Stage.SOCKET: "making a socket inside",
    Stage.PACKET: "receiving a packet from the namespace",
    Stage.MOUNT: "making a mount namespace",
    Stage.NAMES: "setting the program's name servers",
}

LIBRARY, COMMAND = "give the program CAP_NET_ADMIN and use device='tun'", "run it as root"
"""The remedies that need no user namespace."""

RUN_NEEDS_IT = "only `wyrmhole run` needs it, because otherwise the host's name servers would be used"
NOTHING_OUTSIDE = "the tunnel was not opened, and no traffic bypasses it"
DESCRIPTOR_LIMIT = Reason("descriptor limit reached", "raise it (ulimit -n), or close unused descriptors")

_LIMITS = {
    Stage.USER: "user.max_user_namespaces",
    Stage.NETWORK: "user.max_net_namespaces",
    Stage.MOUNT: "user.max_mnt_namespaces",
}
_CAP_SYS_ADMIN = 21


def explain(step: Stage, number: int, other_way: str = COMMAND) -> Reason:
    """Return the reason for an errno at a step. `other_way` is an alternative for the user."""
    if number in (errno.EMFILE, errno.ENFILE):
        return DESCRIPTOR_LIMIT
    explainer = _EXPLAINERS.get(step, _explain_inside)
    reason = explainer(step, number, other_way) or Reason(os.strerror(number))
    if step in (Stage.MOUNT, Stage.NAMES):
        return Reason(reason.cause, "; ".join(filter(None, (reason.remedy, RUN_NEEDS_IT))))
    return reason


def refusal(step: Stage, number: int) -> NamespaceError:
    """Return the library's exception for an errno at a step."""
    reason = explain(step, number, LIBRARY)
    name = errno.errorcode.get(number, str(number))
    failure = f"{TITLES[step]} failed with {name}"
    message = f"cannot make a private network namespace: {reason} ({failure}); {NOTHING_OUTSIDE}"
    return NamespaceError(number, message, stage=step.value)


def helper_failed(error: OSError, status: int) -> str:
    failure = f"its helper process failed ({error}; exit status {status})"
    return f"cannot make a private network namespace: {failure}; {NOTHING_OUTSIDE}"


def _explain_spawn(_step: Stage, number: int, _other_way: str) -> Reason | None:
    if number == errno.EAGAIN:
        return Reason("process limit reached", "raise it (ulimit -u, or the pids limit of the container)")
    if number in (errno.ENOENT, errno.EACCES):
        cause = "the Python interpreter (sys.executable) cannot be started again"
        return Reason(cause, "use an installed Python")
    return None


def _explain_unshare(step: Stage, number: int, other_way: str) -> Reason | None:
    if number == errno.ENOSPC:
        limit = _LIMITS.get(step, "user.max_user_namespaces or user.max_net_namespaces")
        return Reason(f"{limit} is 0 or used up", "raise it with sysctl")
    if number in (errno.EPERM, errno.EACCES):
        return _explain_forbidden_unshare(step, other_way)
    if number in (errno.EINVAL, errno.ENOSYS):
        kind = f"{step} namespaces" if step in _LIMITS else "user or network namespaces"
        return Reason(f"this kernel has no {kind}")
    return None


def _explain_forbidden_unshare(step: Stage, other_way: str) -> Reason:
    makes_user_namespace = step not in (Stage.NETWORK, Stage.MOUNT)
    if not makes_user_namespace and not libc.permitted_capabilities() >> _CAP_SYS_ADMIN & 1 and os.geteuid() == 0:
        remedy = "run it as an ordinary user, or give the container --cap-add SYS_ADMIN"
        return Reason("root has no CAP_SYS_ADMIN here", remedy)
    if makes_user_namespace and _setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return Reason("this system disables user namespaces for users", "sysctl kernel.unprivileged_userns_clone=1")
    if _is_restricted_by_apparmor():
        return _apparmor(other_way)
    if _is_filtered():
        remedy = f"run the container with a profile that allows it, or {other_way}"
        return Reason("the container's seccomp profile forbids unshare", remedy)
    return Reason("the process is in a chroot, or a security module refused the step", other_way)


def _explain_open(_step: Stage, number: int, _other_way: str) -> Reason | None:
    return {
        errno.ENOENT: Reason("there is no /dev/net/tun", "modprobe tun (containers: --device /dev/net/tun)"),
        errno.EACCES: Reason(
            "/dev/net/tun is not readable and writable for this user", "chmod 0666 /dev/net/tun, like most systems"
        ),
        errno.EPERM: Reason("the device cgroup denies /dev/net/tun", "start the container with --device /dev/net/tun"),
        errno.ENODEV: Reason("the tun module is not loaded", "modprobe tun"),
        errno.ENXIO: Reason("the tun module is not loaded", "modprobe tun"),
    }.get(number)


def _explain_packet(_step: Stage, _number: int, _other_way: str) -> Reason:
    return Reason("a packet sent inside never reached the TUN: this kernel's namespaces or TUN driver are incomplete")


def _explain_inside(_step: Stage, number: int, other_way: str) -> Reason | None:
    """Explain a step inside the namespaces, where the caller has every capability."""
    if number not in (errno.EPERM, errno.EACCES):
        return None
    if _is_restricted_by_apparmor():
        return _apparmor(other_way)
    return Reason(f"a security module refused it ({os.strerror(number)})", "check the audit log")


def _apparmor(other_way: str) -> Reason:
    return Reason(
        "AppArmor restricts user namespaces for this program (Ubuntu 23.10 and later)",
        f"install an AppArmor profile that grants it `userns,`, or {other_way}",
    )


_EXPLAINERS: dict[Stage, Callable[[Stage, int, str], Reason | None]] = {
    Stage.SPAWN: _explain_spawn,
    Stage.UNSHARE: _explain_unshare,
    Stage.SETNS: _explain_unshare,
    Stage.USER: _explain_unshare,
    Stage.NETWORK: _explain_unshare,
    Stage.MOUNT: _explain_unshare,
    Stage.OPEN: _explain_open,
    Stage.PACKET: _explain_packet,
}


def _is_restricted_by_apparmor() -> bool:
    return _setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1"


def _is_filtered() -> bool:
    """Whether a seccomp filter is in force; see proc(5)."""
    status = _setting("/proc/self/status")
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())


def _setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
