"""Keep an interface from talking by itself, like the kernel's WireGuard interfaces: no link-local IPv6 address and
so no router solicitations, and no MULTICAST flag, which makes programs such as mDNS responders send.

Everything here is a wish. A kernel without IPv6, missing rights, and an interface whose MTU is too small for IPv6 all
leave something out, and none of them is a reason not to start. Source: linux/if_link.h.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from wyrmhole.net import link_setup, netlink

_IFF_UP, _IFF_MULTICAST = 0x1, 0x1000
_LINK = struct.Struct("=BxHiII")


def silence(client: netlink.Client, link: netlink.Link) -> None:
    """Apply it to an interface of the client's namespace, best before it is up."""
    with contextlib.suppress(OSError):
        link_setup.refuse_link_local(client, link.interface)
    if link.flags & _IFF_MULTICAST:
        with contextlib.suppress(OSError):
            client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, link.interface, 0, _IFF_MULTICAST))
    if link.flags & _IFF_UP:
        with contextlib.suppress(OSError):
            _remove_link_local(client, link.interface)


def _remove_link_local(client: netlink.Client, index: int) -> None:
    """Remove the address that the kernel made when the interface came up; what somebody set stays. The end of router
    solicitations, too, which need one. Before Linux 5.18 the kernel does not tell who made an address."""
    for found in list(link_setup.addresses(client, socket.AF_INET6)):
        if found.interface == index and found.is_kernel_made and found.address.is_link_local:
            link_setup.remove_address(client, index, found.address)
