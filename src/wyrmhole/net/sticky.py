"""Sticky sources: an answer is sent from the local address that received the request.

A host with several addresses must answer from the address that was contacted, because the peer's firewall would drop
another answer. The kernel reports the address and the interface of arrival in a PKTINFO control message (ip(7), RFC
3542). This value is kept per peer as `source` and passed back when sending.

Only the address is passed back. The interface index is set to zero, so that routing chooses the output interface: a
host with asymmetric routes stays reachable, and a changed route takes effect immediately. Link-local IPv6 addresses are
the exception, because they are meaningless without their interface. The index is kept in `source` to detect that
routing would now use another interface; the address should then be forgotten (`RouteWatch`).
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
    """Return the `source` value of a local address and the interface of arrival."""
    packed = ipaddress.ip_address(host).packed
    return _PKTINFO4.pack(interface, packed, packed) if len(packed) == 4 else _PKTINFO6.pack(packed, interface)


def parse_source(source: bytes) -> tuple[str, int]:
    """Return the local address and the interface index of a `source`. Raises ValueError for an invalid value."""
    if len(source) == IPV4_SOURCE_SIZE:
        interface, packed, _header_destination = _PKTINFO4.unpack(source)
    elif len(source) == IPV6_SOURCE_SIZE:
        packed, interface = _PKTINFO6.unpack(source)
    else:
        raise ValueError(f"a source has {IPV4_SOURCE_SIZE} or {IPV6_SOURCE_SIZE} bytes, not {len(source)}")
    return str(ipaddress.ip_address(packed)), interface


def pin_source(source: bytes) -> ControlMessage:
    """Return the control message that makes the kernel send from `source`."""
    host, interface = parse_source(source)
    address = ipaddress.ip_address(host)
    pinned = emit_source(host, interface if address.version == 6 and address.is_link_local else 0)
    if address.version == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, pinned
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, pinned


class RouteWatch:
    """Reports changes of routes, rules, addresses and links, and whether a source is still valid.

    It belongs to the network namespace in which it was made. One thread may use it.
    """

    def __init__(self) -> None:
        """Raises OSError if netlink is not permitted."""
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
        """Return whether anything changed since the last call. Lost notifications count as a change."""
        messages, lost = netlink.drain(self._listener)
        return lost or bool(messages)

    def source_is_valid(self, sockaddr: SockAddr, source: bytes, mark: int) -> bool:
        """Whether the kernel would send to `sockaddr` from the address and through the interface of `source`.

        Also True if the kernel cannot be queried: a later send will fail if the source is invalid.
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
    """Whether the address is one of the host's own. A route request checks this only for IPv4."""
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
