"""What a person can do about a peer to which this host does not send: a sentence for each errno of sendmsg(2).

What passes by itself (no room, a late ICMP error, a narrow path, a card that cannot segment) has its remedy where it
is sent, in `net/udp_socket.py`, and comes here only if the remedy failed.
"""

from __future__ import annotations

import errno
import os

from wyrmhole.wire.endpoint import Endpoint

_FIREWALL = "a firewall rule or a prohibiting route of this host refuses it: allow UDP to this address"
_NO_ROUTE = "there is no route to it: look at `ip route get {host}`, or give an endpoint of another address family"
_LINK = "its network interface is down or gone: bring it up"
_MEMORY = "the system has no memory or queue left for it: look at `ip -s link` and at the host's memory"

_ADVICE = {
    errno.EACCES: _FIREWALL,
    errno.EPERM: _FIREWALL,
    errno.ENETUNREACH: _NO_ROUTE,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.EADDRNOTAVAIL: _NO_ROUTE,
    errno.EAFNOSUPPORT: "this host has no socket of its address family: give an endpoint of the other one",
    errno.EINVAL: "a blackhole route, or a link-local address without %interface: look at `ip route get {host}`",
    errno.EMSGSIZE: "the path takes no packet of this size: lower the interface's MTU",
    errno.ENETDOWN: _LINK,
    errno.ENODEV: _LINK,
    errno.ENXIO: _LINK,
    errno.EAGAIN: _MEMORY,
    errno.ENOBUFS: _MEMORY,
    errno.ENOMEM: _MEMORY,
}


def explain(number: int, endpoint: Endpoint | None) -> str:
    """Cause and remedy of a datagram that was not sent."""
    where = "its endpoint" if endpoint is None else endpoint.emit()
    host = "ADDRESS" if endpoint is None else endpoint.host
    advice = _ADVICE.get(number, "look at `ip route get {host}` and at the firewall's rules").format(host=host)
    return f"cannot send to {where}: {os.strerror(number).lower()} ({advice})"
