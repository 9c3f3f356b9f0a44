"""Advice to the user when this host cannot send to a peer: a sentence for each errno of sendmsg(2).

Transient errors (no room, a late ICMP error, a path MTU that is too small, a network card that cannot segment) have
automatic remedies in `net/udp_socket.py`, and get here only if the remedy failed.
"""

from __future__ import annotations

import errno
import os

from wyrmhole.wire.endpoint import Endpoint

_FIREWALL = "a firewall rule or a prohibiting route of this host refuses it: allow UDP to this address"
_NO_ROUTE = "there is no route to it: check `ip route get {host}`, or set an endpoint of another address family"
_LINK = "its network interface is down or gone: bring it up"
_MEMORY = "the kernel has no memory or no room in a queue: check `ip -s link` and the host's memory"

_ADVICE = {
    errno.EACCES: _FIREWALL,
    errno.EPERM: _FIREWALL,
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.EADDRNOTAVAIL: _NO_ROUTE,
    errno.EAFNOSUPPORT: "this host has no socket of its address family: set an endpoint of the other family",
    errno.EINVAL: "a blackhole route, or a link-local address without %interface: check `ip route get {host}`",
    errno.EMSGSIZE: "the path does not carry packets of this size: lower the interface's MTU",
    errno.ENETDOWN: _LINK,
    errno.ENODEV: _LINK,
    errno.ENXIO: _LINK,
    errno.EAGAIN: _MEMORY,
    errno.ENOBUFS: _MEMORY,
    errno.ENOMEM: _MEMORY,
}


def explain(number: int, endpoint: Endpoint | None) -> str:
    """Return cause and remedy of a failed send."""
    where = "its endpoint" if endpoint is None else endpoint.emit()
    host = "ADDRESS" if endpoint is None else endpoint.host
    advice = _ADVICE.get(number, "check `ip route get {host}` and the firewall rules").format(host=host)
    return f"cannot send to {where}: {os.strerror(number).lower()} ({advice})"
