"""Prevent an interface from sending packets on its own, like the kernel's WireGuard interfaces.

It gets no link-local IPv6 address and therefore sends no router solicitations. It gets no MULTICAST flag, which would
make programs such as mDNS responders send. All of this is best effort: a step may fail without IPv6, privileges, or an
MTU large enough for IPv6, and the tunnel works anyway. Source: linux/if_link.h.
"""

from __future__ import annotations

import contextlib
import socket
import struct

from wyrmhole.net import link_setup, netlink

_IFF_UP, _IFF_MULTICAST = 0x1, 0x1000
_LINK = struct.Struct("=BxHiII")


def silence(client: netlink.Client, link: netlink.Link) -> None:
    """Silence an interface of the client's namespace, preferably before it is up."""
    with contextlib.suppress(OSError):
        link_setup.refuse_link_local(client, link.interface)
    if link.flags & _IFF_MULTICAST:
        with contextlib.suppress(OSError):
            client.change(netlink.RTM_NEWLINK, 0, _LINK.pack(0, 0, link.interface, 0, _IFF_MULTICAST))
    if link.flags & _IFF_UP:
        with contextlib.suppress(OSError):
            _remove_link_local(client, link.interface)


def _remove_link_local(client: netlink.Client, index: int) -> None:
    """Remove the link-local address that the kernel made, but not one that a user has set.

    This also stops router solicitations, which need the address. Before Linux 5.18 the kernel does not report who made
    an address, and nothing is removed.
    """
    for found in list(link_setup.addresses(client, socket.AF_INET6)):
        if found.interface == index and found.is_kernel_made and found.address.is_link_local:
            link_setup.remove_address(client, index, found.address)
