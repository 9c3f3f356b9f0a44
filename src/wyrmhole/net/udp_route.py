"""Find the host's route to a UDP endpoint, by connecting a UDP socket, which sends no packet."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from wyrmhole.wire.endpoint import Endpoint

_IP_MTU = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}


@dataclass(frozen=True, slots=True)
class Route:
    """The present source address for an endpoint, and the path MTU that the kernel knows, in bytes."""

    source: str
    mtu: int


def family_of(endpoint: Endpoint) -> socket.AddressFamily:
    return socket.AF_INET6 if endpoint.is_v6 else socket.AF_INET


def find_route(endpoint: Endpoint) -> Route:
    """Find the route to an endpoint.

    Raises OSError: ENETUNREACH without a route, EAFNOSUPPORT if the family is switched off, EACCES.
    """
    family = family_of(endpoint)
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(endpoint.sockaddr)
        return Route(sock.getsockname()[0], sock.getsockopt(*_IP_MTU[family]))


def why_unreachable(endpoint: Endpoint) -> str | None:
    """Explain why this host has no route to an endpoint. Return None if it has one."""
    version = "IPv6" if endpoint.is_v6 else "IPv4"
    try:
        find_route(endpoint)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return f"{version} is switched off on this host"
        return f"this host has no {version} route to {endpoint.host} ({error.strerror})"
    return None
