"""Set up an interface by rtnetlink, like ip(8): state, MTU, addresses, routes. The socket determines the namespace.

Source: rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from wyrmhole.net import netlink

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = 1
"""The index of `lo`, which is the first interface of every namespace."""
MAIN_TABLE = 254
POLL_SECONDS, POLLS = 0.001, 1000
"""An address is normally usable after 1 ms; on an interface that is down it never is."""

_REPLACE, _CREATE = 0x100, 0x400
_IFF_UP = 0x1
_IFLA_MTU, _IFLA_TXQLEN, _IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE = 4, 13, 26, 8
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_FD, _IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 3, 18, 28, 1, 2, 1
_NO_LINK_LOCAL = b"\x01"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_PROTO, _IFA_F_NODAD = 1, 2, 8, 11, 0x02
_MADE_BY_KERNEL = b"\x03"
_RTA_DST, _RTA_OIF, _RTA_METRICS, _RTA_TABLE, _RTAX_MTU = 1, 4, 8, 15, 2
PROTOCOL_BOOT, PROTOCOL_STATIC = 3, 4
"""The origin of a route: the default of ip(8), and an administrator."""
_SCOPE_LINK, _SCOPE_GLOBAL, _UNICAST = 253, 0, 1
_EXCLUSIVE = 0x200
_AF_INET_CONF, _RP_FILTER = 1, 8

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_UINT = struct.Struct("=I")


class Address(NamedTuple):
    interface: int
    address: Interface
    is_kernel_made: bool
    """Whether it is a link-local address that the kernel made. Linux before 5.18 does not report this."""


class Route(NamedTuple):
    version: int
    table: int
    device: int
    """The interface index; 0 for none or several."""
    length: int
    network: int
    """The network address as a number. All bits after `length` are zero."""
    mtu: int = 0
    """The route's own MTU; 0 if it uses that of the device."""


def set_up(client: netlink.Client, index: int, *, mtu: int | None = None, queue: int | None = None) -> None:
    """Set an interface up, with an MTU and a queue length. Raises OSError: EINVAL for an MTU out of range."""
    body = _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP)
    body += _number(_IFLA_MTU, mtu) + _number(_IFLA_TXQLEN, queue)
    client.change(netlink.RTM_NEWLINK, 0, body)


def refuse_link_local(client: netlink.Client, index: int) -> None:
    """Prevent the kernel from giving the interface a link-local address (fe80::), and so from sending solicitations.

    Must be called before the interface is up. Raises OSError if the kernel has no IPv6.
    """
    mode = netlink.emit_attribute(_IFLA_INET6_ADDR_GEN_MODE, _NO_LINK_LOCAL)
    families = netlink.emit_attribute(_IFLA_AF_SPEC, netlink.emit_attribute(socket.AF_INET6, mode))
    client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + families)


def add_cable(client: netlink.Client, name: str, other_namespace: int) -> None:
    """Make a veth pair: one end here, and one of the same name in the network namespace of a descriptor.

    Raises Refused: EEXIST if the name exists in one of them.
    """
    label = netlink.emit_attribute(_IFLA_IFNAME, name.encode() + b"\0")
    link = _LINK.pack(0, 0, 0, 0, 0) + label
    peer = netlink.emit_attribute(_VETH_INFO_PEER, link + _number(_IFLA_NET_NS_FD, other_namespace))
    info = netlink.emit_attribute(_IFLA_INFO_KIND, b"veth") + netlink.emit_attribute(_IFLA_INFO_DATA, peer)
    client.change(netlink.RTM_NEWLINK, _CREATE | _EXCLUSIVE, link + netlink.emit_attribute(_IFLA_LINKINFO, info))


def delete(client: netlink.Client, index: int) -> None:
    client.change(netlink.RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))


def add_address(client: netlink.Client, index: int, address: Interface) -> None:
    """Add an address and wait until it is usable. Idempotent.

    Duplicate address detection is switched off, because a point-to-point link does not need it. The kernel acknowledges
    an IPv6 address before it accepts packets for it (addrconf_dad_work). Without the wait, the answer to a program's
    first packet would sometimes be lost.
    """
    client.change(netlink.RTM_NEWADDR, _CREATE | _REPLACE, _address(index, address, _IFA_F_NODAD))
    polls = POLLS if address.version == 6 else 0
    while polls and not client.is_local(str(address.ip)):
        time.sleep(POLL_SECONDS)
        polls -= 1


def claim_address(client: netlink.Client, index: int, address: Interface) -> None:
    """Add an address with the kernel's own checks, like `ip address add`. Raises Refused: EEXIST if it exists."""
    client.change(netlink.RTM_NEWADDR, _CREATE | _EXCLUSIVE, _address(index, address, 0))


def addresses(client: netlink.Client, family: int = socket.AF_UNSPEC) -> Iterator[Address]:
    """Yield the addresses of all interfaces in the kernel's order. Do not use the client meanwhile. Raises OSError."""
    for message in client.dump(netlink.RTM_GETADDR, _ADDRESS.pack(family, 0, 0, 0, 0)):
        if message.kind != netlink.RTM_NEWADDR or len(message.payload) < _ADDRESS.size:
            continue
        _, length, _, _, index = _ADDRESS.unpack_from(message.payload)
        attributes = netlink.parse_attributes(message.payload, _ADDRESS.size)
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS) or b""
        if len(packed) in (4, 16):
            address = ipaddress.ip_interface((packed, length))
            yield Address(index, address, attributes.get(_IFA_PROTO) == _MADE_BY_KERNEL)


def remove_address(client: netlink.Client, index: int, address: Interface) -> None:
    client.change(netlink.RTM_DELADDR, 0, _address(index, address, 0))


def add_route(client: netlink.Client, index: int, network: Network) -> None:
    """Add a route through the interface, without a gateway. Idempotent."""
    client.change(netlink.RTM_NEWROUTE, _CREATE | _REPLACE, _route(index, network))


def remove_route(
    client: netlink.Client, index: int, network: Network, table: int = MAIN_TABLE, protocol: int = PROTOCOL_STATIC
) -> None:
    """Remove a route. Raises Refused: ESRCH if it does not exist."""
    client.change(netlink.RTM_DELROUTE, 0, _route(index, network, table, protocol))


def reserve_route(
    client: netlink.Client, index: int, network: Network, table: int, protocol: int = PROTOCOL_STATIC
) -> None:
    """Add a route to a table that must not have this prefix yet. Raises Refused: EEXIST if it has."""
    client.change(netlink.RTM_NEWROUTE, _CREATE | _EXCLUSIVE, _route(index, network, table, protocol))


def routes(client: netlink.Client, family: int) -> list[Route]:
    """Return the routes of a family in all tables. Raises OSError."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    messages = client.dump(netlink.RTM_GETROUTE, body)
    return [parse_route(message) for message in messages if len(message.payload) >= _ROUTE.size]


def parse_route(message: netlink.Message) -> Route:
    family, length, _, _, small, *_ = _ROUTE.unpack_from(message.payload)
    attributes = netlink.parse_attributes(message.payload, _ROUTE.size)
    metrics = netlink.parse_attributes(memoryview(attributes.get(_RTA_METRICS, b"")), 0)
    return Route(
        4 if family == socket.AF_INET else 6,
        _value(attributes.get(_RTA_TABLE)) or small,
        _value(attributes.get(_RTA_OIF)),
        length,
        int.from_bytes(attributes.get(_RTA_DST, b""), "big"),
        _value(metrics.get(_RTAX_MTU)),
    )


def accept_any_source(client: netlink.Client, index: int) -> None:
    """Set the interface's own rp_filter to 0, which works even if /proc/sys is read-only. Raises OSError."""
    setting = netlink.emit_attribute(_AF_INET_CONF, netlink.emit_attribute(_RP_FILTER, _UINT.pack(0)))
    families = netlink.emit_attribute(_IFLA_AF_SPEC, netlink.emit_attribute(socket.AF_INET, setting))
    client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + families)


def _address(index: int, address: Interface, flags: int) -> bytes:
    body = _ADDRESS.pack(_family(address), address.network.prefixlen, flags, 0, index)
    for kind in (_IFA_LOCAL, _IFA_ADDRESS):
        body += netlink.emit_attribute(kind, address.ip.packed)
    return body + _number(_IFA_FLAGS, flags or None)


def _route(index: int, network: Network, table: int = MAIN_TABLE, protocol: int = PROTOCOL_STATIC) -> bytes:
    scope = _SCOPE_LINK if network.version == 4 else _SCOPE_GLOBAL
    small = table if table < 256 else 0
    body = _ROUTE.pack(_family(network), network.prefixlen, 0, 0, small, protocol, scope, _UNICAST, 0)
    if network.prefixlen:
        body += netlink.emit_attribute(_RTA_DST, network.network_address.packed)
    return body + _number(_RTA_OIF, index) + _number(_RTA_TABLE, table)


def _number(kind: int, value: int | None) -> bytes:
    return b"" if value is None else netlink.emit_attribute(kind, _UINT.pack(value))


def _value(attribute: bytes | None) -> int:
    return int(_UINT.unpack(attribute)[0]) if attribute is not None and len(attribute) == _UINT.size else 0


def _family(value: Interface | Network) -> int:
    return socket.AF_INET if value.version == 4 else socket.AF_INET6
