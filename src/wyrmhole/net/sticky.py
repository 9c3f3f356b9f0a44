"""Sticky sources: a reply leaves from the local address its question came to.

A host with several addresses must answer from the one that was asked, or the peer's firewall drops the answer. The
kernel tells the address and the interface of arrival in a PKTINFO control message (ip(7), RFC 3542); that value is kept
per peer as `source` and given back when sending.

What goes back is the address only. The interface index is put to zero, so that routing, not the history of a packet,
chooses the way out: a host with asymmetric routes stays reachable, and a changed route is followed at once. Link-local
IPv6 addresses are the exception, for they mean nothing without their interface. The index is kept in `source` to notice
that routing would leave by another interface, with which the address should be forgotten (`RouteWatch`).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from wyrmhole.net import netlink
from wyrmhole.wire.endpoint import SockAddr

IP_PKTINFO = 8

IPV4_SOURCE_SIZE = 12
IPV6_SOURCE_SIZE = 20

ControlMessage = tuple[int, int, bytes]

_PKTINFO4 = struct.Struct("=i4s4s")
_PKTINFO6 = struct.Struct("=16si")


def emit_source(host: str, interface: int) -> bytes:
    """The `source` value of a local address and the interface it was asked through."""
    packed = ipaddress.ip_address(host).packed
    return _PKTINFO4.pack(interface, packed, packed) if len(packed) == 4 else _PKTINFO6.pack(packed, interface)


def parse_source(source: bytes) -> tuple[str, int]:
    """The local address and the interface index of a `source`. Raises ValueError for a value that is none."""
    if len(source) == IPV4_SOURCE_SIZE:
        interface, packed, _header_destination = _PKTINFO4.unpack(source)
    elif len(source) == IPV6_SOURCE_SIZE:
        packed, interface = _PKTINFO6.unpack(source)
    else:
        raise ValueError(f"a source has {IPV4_SOURCE_SIZE} or {IPV6_SOURCE_SIZE} bytes, not {len(source)}")
    return str(ipaddress.ip_address(packed)), interface


def pin_source(source: bytes) -> ControlMessage:
    """The control message that makes the kernel send from `source`."""
    host, interface = parse_source(source)
    address = ipaddress.ip_address(host)
    pinned = emit_source(host, interface if address.version == 6 and address.is_link_local else 0)
    if address.version == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, pinned
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, pinned


class RouteWatch:
    """Tells that routes, rules, addresses or links changed, and whether a source still is the one to use.

    Belongs to the network namespace it was made in. One thread uses it.
    """

    def __init__(self) -> None:
        """Raises OSError where netlink is not allowed."""
        self._listener = netlink.open_listener(netlink.ROUTING_GROUPS)
        try:
            self._client = netlink.Client()
        except OSError:
            self._listener.close()
            raise

    def close(self) -> None:
        self._listener.close()
        self._client.close()

    def fileno(self) -> int:
        return self._listener.fileno()

    def take_changes(self) -> bool:
        """Whether anything changed since the last call; lost notices count as a change."""
        messages, lost = netlink.drain(self._listener)
        return lost or bool(messages)

    def source_is_valid(self, sockaddr: SockAddr, source: bytes, mark: int) -> bool:
        """Whether the kernel would send to `sockaddr` from that address and through that interface.

        True also when the kernel could not be asked: sending will tell.
        """
        try:
            host, interface = parse_source(source)
            return _is_local(host, interface) and interface == self._output_interface(sockaddr, host, interface, mark)
        except (netlink.Refused, ValueError):
            return False
        except OSError:
            return True

    def _output_interface(self, sockaddr: SockAddr, host: str, interface: int, mark: int) -> int:
        destination = sockaddr[0].partition("%")[0]
        if ipaddress.ip_address(destination).version != ipaddress.ip_address(host).version:
            raise ValueError("the source and the destination are of different families")
        if len(sockaddr) == 4 and sockaddr[3]:
            return sockaddr[3]
        return self._client.output_interface(destination, host, mark)


def _is_local(host: str, interface: int) -> bool:
    """Whether the address is one of the host's own. A route request checks that for IPv4 but not for IPv6."""
    if ":" not in host:
        return True
    scope = interface if ipaddress.ip_address(host).is_link_local else 0
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((host, 0, 0, scope))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.EINVAL):
                return False
            raise
    return True
