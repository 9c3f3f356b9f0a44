"""Set up an interface by rtnetlink: up, MTU, addresses, routes. What ip(8) does, in any namespace one has a socket of.

Source: rtnetlink(7), linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import time

from wyrmhole.net import netlink

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = 1
"""The index of `lo`: the first interface of every namespace."""
MAIN_TABLE = 254
LOOK_SECONDS, LOOKS = 0.001, 1000
"""A millisecond as a rule; an interface that is down never gets there."""

_RTM_NEWADDR, _RTM_DELADDR, _RTM_DELROUTE = 20, 21, 25
_REPLACE, _CREATE = 0x100, 0x400
_IFF_UP = 0x1
_IFLA_MTU, _IFLA_TXQLEN, _IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE = 4, 13, 26, 8
_NO_LINK_LOCAL = b"\x01"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_F_NODAD = 1, 2, 8, 0x02
_RTA_DST, _RTA_OIF = 1, 4
_RTA_TABLE = 15
_PROTOCOL_STATIC, _SCOPE_LINK, _SCOPE_GLOBAL, _UNICAST = 4, 253, 0, 1
_EXCLUSIVE = 0x200
_AF_INET_CONF, _RP_FILTER = 1, 8

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_UINT = struct.Struct("=I")


def set_up(client: netlink.Client, index: int, *, mtu: int | None = None, queue: int | None = None) -> None:
    """Raises OSError: EINVAL for an MTU out of range."""
    body = _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP)
    body += _number(_IFLA_MTU, mtu) + _number(_IFLA_TXQLEN, queue)
    client.change(netlink.RTM_NEWLINK, 0, body)


def refuse_link_local(client: netlink.Client, index: int) -> None:
    """Before it is up: give it no address of its own choosing (fe80::), nor what follows from one on the wire.
    Raises OSError where IPv6 is not there."""
    mode = netlink.emit_attribute(_IFLA_INET6_ADDR_GEN_MODE, _NO_LINK_LOCAL)
    families = netlink.emit_attribute(_IFLA_AF_SPEC, netlink.emit_attribute(socket.AF_INET6, mode))
    client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + families)


def delete(client: netlink.Client, index: int) -> None:
    client.change(netlink.RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))


def add_address(client: netlink.Client, index: int, address: Interface) -> None:
    """Usable when this returns: a point-to-point link needs no duplicate address detection. Once more does no harm.

    The kernel begins to take packets to an IPv6 address some time after it said that it has it (addrconf_dad_work): the
    answer to a program's first packet would be lost now and then.
    """
    client.change(_RTM_NEWADDR, _CREATE | _REPLACE, _address(index, address))
    looks = LOOKS if address.version == 6 else 0
    while looks and not client.is_local(str(address.ip)):
        time.sleep(LOOK_SECONDS)
        looks -= 1


def remove_address(client: netlink.Client, index: int, address: Interface) -> None:
    client.change(_RTM_DELADDR, 0, _address(index, address))


def add_route(client: netlink.Client, index: int, network: Network) -> None:
    """By this interface, without a gateway. Once more does no harm."""
    client.change(netlink.RTM_NEWROUTE, _CREATE | _REPLACE, _route(index, network))


def remove_route(client: netlink.Client, index: int, network: Network, table: int = MAIN_TABLE) -> None:
    client.change(_RTM_DELROUTE, 0, _route(index, network, table))


def reserve_route(client: netlink.Client, index: int, network: Network, table: int) -> None:
    """Add a route to a table that must not have this prefix yet. Raises Refused: EEXIST if it has."""
    client.change(netlink.RTM_NEWROUTE, _CREATE | _EXCLUSIVE, _route(index, network, table))


def accept_any_source(client: netlink.Client, index: int) -> None:
    """Set the interface's own rp_filter to 0, which also works where /proc/sys is read-only. Raises OSError."""
    setting = netlink.emit_attribute(_AF_INET_CONF, netlink.emit_attribute(_RP_FILTER, _UINT.pack(0)))
    families = netlink.emit_attribute(_IFLA_AF_SPEC, netlink.emit_attribute(socket.AF_INET, setting))
    client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + families)


def _address(index: int, address: Interface) -> bytes:
    body = _ADDRESS.pack(_family(address), address.network.prefixlen, _IFA_F_NODAD, 0, index)
    for kind in (_IFA_LOCAL, _IFA_ADDRESS):
        body += netlink.emit_attribute(kind, address.ip.packed)
    return body + _number(_IFA_FLAGS, _IFA_F_NODAD)


def _route(index: int, network: Network, table: int = MAIN_TABLE) -> bytes:
    scope = _SCOPE_LINK if network.version == 4 else _SCOPE_GLOBAL
    small = table if table < 256 else 0
    body = _ROUTE.pack(_family(network), network.prefixlen, 0, 0, small, _PROTOCOL_STATIC, scope, _UNICAST, 0)
    if network.prefixlen:
        body += netlink.emit_attribute(_RTA_DST, network.network_address.packed)
    return body + _number(_RTA_OIF, index) + _number(_RTA_TABLE, table)


def _number(kind: int, value: int | None) -> bytes:
    return b"" if value is None else netlink.emit_attribute(kind, _UINT.pack(value))


def _family(value: Interface | Network) -> int:
    return socket.AF_INET if value.version == 4 else socket.AF_INET6
