"""Keep an interface from talking by itself, like the kernel's WireGuard interfaces: no link-local IPv6 address and
so no router solicitations, and no MULTICAST flag, which makes programs such as mDNS responders send.

Everything here is a wish. A kernel without IPv6, missing rights, and an interface whose MTU is too small for IPv6 all
leave something out, and none of them is a reason not to start. Source: linux/if_link.h, linux/if_addr.h.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from wyrmhole.net import netlink

_RTM_DELADDR, _RTM_GETADDR = 21, 22
_IFF_UP, _IFF_MULTICAST = 0x1, 0x1000
_IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE, _MODE_NONE = 26, 8, b"\x01"
_IFA_ADDRESS, _IFA_LOCAL, _IFA_PROTO, _MADE_BY_KERNEL = 1, 2, 11, b"\x03"

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")


def silence(client: netlink.Client, link: netlink.Link) -> None:
    """Apply it to an interface of the client's namespace, best before it is up."""
    mode = netlink.emit_attribute(_IFLA_INET6_ADDR_GEN_MODE, _MODE_NONE)
    families = netlink.emit_attribute(_IFLA_AF_SPEC, netlink.emit_attribute(socket.AF_INET6, mode))
    with contextlib.suppress(OSError):
        client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, link.interface, 0, 0) + families)
    if link.flags & _IFF_MULTICAST:
        with contextlib.suppress(OSError):
            client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, link.interface, 0, _IFF_MULTICAST))
    if link.flags & _IFF_UP:
        with contextlib.suppress(OSError):
            _remove_link_local(client, link.interface)


def _remove_link_local(client: netlink.Client, index: int) -> None:
    """Remove the address that the kernel made when the interface came up; what somebody set stays. The end of router
    solicitations, too, which need one. Before Linux 5.18 the kernel does not tell who made an address."""
    for message in list(client.dump(_RTM_GETADDR, _ADDRESS.pack(socket.AF_INET6, 0, 0, 0, index))):
        if len(message.payload) < _ADDRESS.size:
            continue
        _, length, _, _, owner = _ADDRESS.unpack_from(message.payload)
        attributes = netlink.parse_attributes(message.payload, _ADDRESS.size)
        address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS) or b""
        if owner == index and attributes.get(_IFA_PROTO) == _MADE_BY_KERNEL and address[:2] == b"\xfe\x80":
            body = _ADDRESS.pack(socket.AF_INET6, length, 0, 0, index) + netlink.emit_attribute(_IFA_LOCAL, address)
            client.change(_RTM_DELADDR, 0, body)
