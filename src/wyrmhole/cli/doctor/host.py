"""Examine what hosts and containers often lack: an address family, a writable /proc/sys, name servers, Landlock."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from wyrmhole.cli.doctor.finding import Verdict, reason
from wyrmhole.sandbox import landlock as sandbox_landlock

PROC_SYS = Path("/proc/sys")
RESOLV_CONF = "/etc/resolv.conf"


def families() -> Iterator[Verdict]:
    """Examine IPv4 and IPv6 outside the tunnel. One of them is enough."""
    missing = {name: text for name, text in map(_family, (socket.AF_INET, socket.AF_INET6)) if text}
    if len(missing) == 2:
        advice = "in a container, allow socket(2) in its seccomp profile"
        yield Verdict("bad", "families", "neither IPv4 nor IPv6 sockets", advice)
    elif missing:
        ((name, text),) = missing.items()
        other = "IPv6" if name == "IPv4" else "IPv4"
        yield Verdict("poor", "families", f"{name} is off ({text})", f"peers need an {other} endpoint")
    else:
        yield Verdict("good", "families", "IPv4 and IPv6")


def _family(family: socket.AddressFamily) -> tuple[str, str]:
    """Return the name of the family, and the reason why it cannot be used, or an empty text."""
    name = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}[family]
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
    except OSError as error:
        return name, reason(error)
    switch = PROC_SYS / "net/ipv6/conf/all/disable_ipv6"
    if family == socket.AF_INET6 and _read(switch) == "1":
        return name, f"{switch} is 1"
    return name, ""


def settings() -> Iterator[Verdict]:
    """Examine whether /proc/sys is writable, and whether unprivileged users may ping."""
    path = PROC_SYS / "net/ipv4/ping_group_range"
    read_only = os.path.isdir(PROC_SYS) and bool(os.statvfs(PROC_SYS).f_flag & os.ST_RDONLY)
    if read_only:
        advice = "for a default route in a container, run it with --sysctl net.ipv4.conf.all.src_valid_mark=1"
        yield Verdict("poor", "settings", f"{PROC_SYS} is read-only", advice)
    else:
        yield Verdict("good", "settings", f"{PROC_SYS} is writable by root")
    low, _, high = (_read(path) or "").partition("\t")
    if low.isdigit() and high.isdigit() and int(low) > int(high):
        found = "unprivileged users can ping only inside tunnels"
        yield Verdict("poor", "ping", found, "as root: sysctl -w net.ipv4.ping_group_range='0 2147483647'")


def name_servers() -> Iterator[Verdict]:
    """Examine the host's name servers, which endpoint names need."""
    try:
        with open(RESOLV_CONF, encoding="utf-8", errors="replace") as file:
            has_one = any(line.split()[:1] == ["nameserver"] for line in file)
    except OSError as error:
        advice = "endpoint names cannot be resolved, addresses work; `run` provides its own name servers inside"
        yield Verdict("poor", "name servers", reason(error), advice)
        return
    if has_one:
        yield Verdict("good", "name servers", f"{RESOLV_CONF} has name servers")
    else:
        advice = "endpoint names will be looked up at 127.0.0.1"
        yield Verdict("poor", "name servers", f"{RESOLV_CONF} has no name servers", advice)


def landlock() -> Iterator[Verdict]:
    try:
        version = sandbox_landlock.version()
    except OSError as error:
        advice = "Linux 5.13 and later have it (boot with lsm=landlock,...); otherwise run the daemon with --user"
        yield Verdict("poor", "Landlock", f"not available: {error.strerror}", advice)
        return
    yield Verdict("good", "Landlock", f"version {version}: a daemon can read only the files that it needs")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
