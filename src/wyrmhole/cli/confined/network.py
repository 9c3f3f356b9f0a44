"""The network inside `wyrmhole run`: addresses and routes of the TUN, in a namespace that has nothing else.

A family that is switched off on the host, and ping without privileges, are left out with a warning, because the rest is
still useful. The time is linear in the number of routes.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypedDict, TypeVar

from wyrmhole.errors import DeviceError
from wyrmhole.net import link_setup, netlink
from wyrmhole.net.link_setup import Interface, Network
from wyrmhole.net.tun_ioctl import interface_index
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU

LOOPBACK_MTU = 65536
PING_GROUPS = "/proc/sys/net/ipv4/ping_group_range"
ROUTES_PER_REPORT = 500
_UNAVAILABLE = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)
"""The errors of adding an address whose family the kernel lacks or the interface has switched off."""

_T = TypeVar("_T")

Report = Callable[[], None]
Warn = Callable[[str], None]


class Plan(TypedDict):
    """The instructions of the parent to the child."""

    name: str
    mtu: int
    addresses: list[str]
    routes: list[str]
    resolv_conf: str
    user: bool
    command: list[str]


def configure(plan: Plan, report: Report, warn: Warn) -> None:
    """Set up `lo` and the TUN. `report` is called every 500 routes, to report progress. Raises DeviceError."""
    addresses = [ipaddress.ip_interface(text) for text in plan["addresses"]]
    routes = [ipaddress.ip_network(text) for text in plan["routes"]]
    with closing(netlink.Client()) as client:
        _step("set lo up", lambda: link_setup.set_up(client, link_setup.LOOPBACK, mtu=LOOPBACK_MTU))
        index = _step(f"find {plan['name']}", lambda: interface_index(plan["name"]))
        _refuse_link_local(client, index)
        what = f"set {plan['name']} up with MTU {plan['mtu']}"
        _step(what, lambda: link_setup.set_up(client, index, mtu=plan["mtu"]))
        missing = _add_addresses(client, index, addresses, plan["mtu"], warn)
        wanted = [route for route in routes if route.version not in missing]
        for number, route in enumerate(uncovered(wanted, addresses), 1):
            _add_route(client, index, route)
            if number % ROUTES_PER_REPORT == 0:
                report()


def _refuse_link_local(client: netlink.Client, index: int) -> None:
    """Refuse a link-local address. Without IPv6, which raises OSError, there is none."""
    try:
        link_setup.refuse_link_local(client, index)
    except OSError:
        return


def _add_addresses(
    client: netlink.Client, index: int, addresses: list[Interface], mtu: int, warn: Warn
) -> dict[int, str]:
    """Add the addresses, and return the IP versions that are not available, with the reasons.

    Raises DeviceError if no address is available.
    """
    missing: dict[int, str] = {}
    for address in addresses:
        if address.version in missing:
            continue
        try:
            link_setup.add_address(client, index, address)
        except OSError as error:
            reason = _unavailable(address, error, mtu)
            if reason is None:
                raise DeviceError(f"cannot add the address {address}: {error.strerror}") from error
            missing[address.version] = reason
    if addresses and all(address.version in missing for address in addresses):
        raise DeviceError(f"cannot add an address: {' and '.join(missing.values())}")
    for version, reason in missing.items():
        left_out = ", ".join(str(address) for address in addresses if address.version == version)
        warn(f"{reason}: {left_out} and the IPv{version} routes are left out")
    return missing


def _unavailable(address: Interface, error: OSError, mtu: int) -> str | None:
    if address.version == 6 and mtu < IPV6_MINIMUM_MTU:
        return f"IPv6 needs an MTU of {IPV6_MINIMUM_MTU}, but the MTU is {mtu}"
    if error.errno in _UNAVAILABLE:
        return f"this host has IPv{address.version} switched off"
    return None


def uncovered(routes: list[Network], addresses: list[Interface]) -> Iterator[Network]:
    """Yield the routes that do not lie within the network of an address, and default routes.

    The kernel has added a route for the network of each address, and that route specifies the source address.
    """
    networks = [address.network for address in addresses]
    connected = {(each.version, each.prefixlen, int(each.network_address)) for each in networks}
    lengths = {(version, length) for version, length, _ in connected}
    for route in routes:
        value = int(route.network_address)
        covering = (
            (version, length, value >> route.max_prefixlen - length << route.max_prefixlen - length)
            for version, length in lengths
            if version == route.version and length <= route.prefixlen
        )
        if route.prefixlen == 0 or not any(network in connected for network in covering):
            yield route


def _add_route(client: netlink.Client, index: int, route: Network) -> None:
    try:
        link_setup.add_route(client, index, route)
    except OSError as error:
        raise DeviceError(f"cannot add the route {route}: {error.strerror}") from error


def open_ping(is_user: bool, warn: Warn) -> None:
    """Permit pings for the caller's group. The range is empty in a new namespace; on hosts, systemd sets it.

    Root needs this for programs that drop their privileges.
    """
    groups = f"{os.getegid()} {os.getegid()}" if is_user else "0 2147483647"
    try:
        with open(PING_GROUPS, "w") as file:
            file.write(groups)
    except OSError as error:
        if is_user:
            warn(f"ping may need privileges inside: cannot write {PING_GROUPS}: {error.strerror}")


def _step(what: str, step: Callable[[], _T]) -> _T:
    try:
        return step()
    except OSError as error:
        raise DeviceError(f"cannot {what}: {error.strerror}") from error
