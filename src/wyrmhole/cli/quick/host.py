"""The kernel part of `up` and `down`: link, addresses, routes and rules of one interface, by netlink.

All objects have the attributes that ip(8) would give them, so that wg-quick's `down` can remove what our `up` made, and
vice versa. Errors raise DeviceError with the attempted step and the cause.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from wyrmhole.control.config.values import Address
from wyrmhole.errors import DeviceError
from wyrmhole.net import link_setup, netlink, policy_rules
from wyrmhole.net.link_setup import MAIN_TABLE, Network, Route
from wyrmhole.net.policy_rules import FAMILIES, Rule
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.messages import OVERHEAD_V6, USUAL_OUTER_MTU
from wyrmhole.wire.prefix import Prefix

LOCAL_TABLE = 255
RULE_TRIES = 100
"""Limit of attempts to add a rule, because other programs may take a free priority at the same time."""

IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")

IPV6_ADDRESSES = Path("/proc/net/if_inet6")


class MarkRule(NamedTuple):
    version: int
    table: int
    rule: Rule
    main_rule: Rule | None


class Taken(DeviceError):
    """The table already has a route to the prefix."""


class Host:
    """An interface in the network namespace in which this is made. A context manager that holds a netlink socket."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        with _explained("open a netlink socket"):
            self._kernel = netlink.Client()
        self._covered: dict[int, set[tuple[int, int]]] = {}
        """By IP version: length and leading bits of each route through this interface in the main table."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kernel.close()

    @property
    def exists(self) -> bool:
        return self._look_up() is not None

    @property
    def kind(self) -> str:
        """The type that ip(8) prints, for example tun, wireguard or veth; empty if it has no type."""
        return self._link_at(self._index).kind

    @cached_property
    def _index(self) -> int:
        """The interface's index. It is looked up once, because a file may have 10,000 routes."""
        found = self._look_up()
        if found is None:
            raise DeviceError(f"the interface {self.interface} does not exist")
        return found

    def _look_up(self) -> int | None:
        try:
            return self._kernel.link(self.interface, None).interface
        except netlink.Refused:
            return None

    def _link_at(self, index: int) -> netlink.Link:
        with _explained(f"look up {self.name_of(index)}"):
            return self._kernel.link_at(index)

    def forget(self) -> None:
        """Discard cached values, because the interface was deleted or made again."""
        self.__dict__.pop("_index", None)
        self._covered.clear()

    # IPv6, which some hosts lack

    @cached_property
    def versions(self) -> tuple[int, ...]:
        """The IP versions of this kernel."""
        try:
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                return (4,)
        return (4, 6)

    def lacks(self, version: int) -> str | None:
        """Explain why the interface cannot have addresses and routes of a version. Return None if it can."""
        if version == 4:
            return None
        if 6 not in self.versions:
            return "this kernel has no IPv6"
        setting = IPV6_SETTINGS / self.interface / "disable_ipv6"
        with suppress(OSError):
            if setting.read_text().strip() == "1":
                return f"IPv6 is switched off (net.ipv6.conf.{self.interface}.disable_ipv6 is 1)"
        if IPV6_SETTINGS.is_dir() and not setting.exists():
            return too_narrow(self.mtu())
        return None

    def others_have_ipv6(self) -> bool:
        """Whether IPv6 packets could leave through another interface."""
        try:
            lines = IPV6_ADDRESSES.read_text().splitlines()
        except OSError:
            return False
        return any(line.split()[-1] not in ("lo", self.interface) for line in lines)

    # Link and addresses

    def add_address(self, address: Address) -> None:
        with _explained(f"add the address {address}"):
            link_setup.claim_address(self._kernel, self._index, address)
        self._covered.clear()

    def addresses(self) -> list[Address]:
        """Return the interface's addresses in the kernel's order, without a link-local address that the kernel made."""
        index = self._index
        with _explained("list addresses"):
            found = list(link_setup.addresses(self._kernel))
        return [each.address for each in found if each.interface == index and not each.is_kernel_made]

    def set_up(self, mtu: int) -> None:
        with _explained(f"bring {self.interface} up with MTU {mtu}"):
            link_setup.set_up(self._kernel, self._index, mtu=mtu)
        self._covered.clear()

    def mtu(self) -> int:
        return self._link_at(self._index).mtu

    def delete(self) -> None:
        with _explained(f"delete {self.interface}"):
            link_setup.delete(self._kernel, self._index)
        self.forget()

    # Routes

    def path_mtu(self, endpoint: Endpoint) -> int:
        """Return the MTU of the route to an endpoint, or of its link if the route has none; 0 without a route."""
        try:
            # Every link has link-local addresses; the scope selects the right link.
            message = self._kernel.route(endpoint.host, endpoint.scope_id)
        except netlink.Refused:
            return 0
        return self._mtu_of_route(link_setup.parse_route(message))

    def default_mtu(self) -> int:
        """Return the MTU of the IPv4 default route; 0 without a default route."""
        for route in self.routes(4):
            if (route.table, route.length) == (MAIN_TABLE, 0):
                return self._mtu_of_route(route)
        return 0

    def _mtu_of_route(self, route: Route) -> int:
        return route.mtu or (self._link_at(route.device).mtu if route.device else 0)

    def add_route(self, prefix: Prefix, table: int = MAIN_TABLE) -> None:
        """Add a route. Raises Taken if the table has a route to the prefix, DeviceError for any other reason."""
        try:
            link_setup.reserve_route(self._kernel, self._index, _network(prefix), table, link_setup.PROTOCOL_BOOT)
        except OSError as error:
            kind = Taken if error.errno == errno.EEXIST else DeviceError
            raise kind(_explain(f"add the route {prefix.emit()}{_in_table(table)}", error)) from error
        if table == MAIN_TABLE and prefix.version in self._covered:
            self._covered[prefix.version].add((prefix.length, prefix.network >> prefix.bits - prefix.length))

    def delete_route(self, prefix: Prefix, table: int) -> None:
        with _explained(f"delete the route {prefix.emit()}{_in_table(table)}"):
            link_setup.remove_route(self._kernel, self._index, _network(prefix), table, link_setup.PROTOCOL_BOOT)

    def has_route(self, prefix: Prefix) -> bool:
        """Whether a route of the main table already leads packets to the prefix through the interface.

        The kernel's routes are listed once, and `add_route` updates the list, because a file may have 10,000 prefixes.
        """
        if prefix.version not in self._covered:
            own = [route for route in self.routes(prefix.version) if route.device == self._index]
            self._covered[prefix.version] = {
                (route.length, route.network >> prefix.bits - route.length)
                for route in own
                if route.table == MAIN_TABLE
            }
        covered = self._covered[prefix.version]
        return any((length, prefix.network >> prefix.bits - length) in covered for length in range(prefix.length + 1))

    def routes(self, version: int) -> list[Route]:
        """Return the routes of all tables."""
        if version not in self.versions:
            return []
        with _explained("list routes"):
            return link_setup.routes(self._kernel, FAMILIES[version])

    def name_of(self, device: int) -> str:
        """Return the name of an interface, given its index, for messages."""
        try:
            return socket.if_indextoname(device)
        except OSError:
            return f"interface {device}"

    @property
    def index(self) -> int | None:
        """The interface's index, or None if it does not exist."""
        return self._index if self.exists else None

    # Rules

    def add_rules(self, version: int, table: int) -> Iterator[Rule]:
        """Add two rules: use the main table except its default route; then, for packets without the mark, `table`.

        Yield each rule after adding it, in the form that `delete_rule` takes.
        """
        family = FAMILIES[version]
        mark = Rule(family, table, mark=table, inverted=True, protocol=0)
        main = Rule(family, MAIN_TABLE, suppressed=0, protocol=0)
        _, is_shared = self._free_priority(version)
        # With a shared priority, the kernel adds a rule after the others; otherwise each goes before the previous one.
        for rule in (main, mark) if is_shared else (mark, main):
            yield self._add_rule(version, rule)

    def _add_rule(self, version: int, wanted: Rule) -> Rule:
        with _explained(f"add a routing rule for IPv{version}"):
            for _ in range(RULE_TRIES):
                priority, is_shared = self._free_priority(version)
                rule = replace(wanted, priority=priority)
                try:
                    policy_rules.add(self._kernel, rule)
                    return rule
                except netlink.Refused as error:
                    # Another `up` may have added the same rule with this priority in the meantime.
                    if error.errno != errno.EEXIST:
                        raise
                    if is_shared:
                        raise DeviceError(
                            f"cannot add a routing rule for IPv{version}: another tunnel uses {priority}, the only "
                            "priority before the rules of this host: give those higher priorities (ip rule)"
                        ) from error
        raise DeviceError(f"cannot add a routing rule for IPv{version}: other programs keep adding rules (try again)")

    def _free_priority(self, version: int) -> tuple[int, bool]:
        """Return the priority before all rules except that of the local table, and whether it is shared with it.

        Without a priority, the kernel would assume that the first rule is that of the local table. If another rule is
        first, for example of Cilium, packets to this host's own addresses would enter the tunnel.
        """
        rules = [
            (rule.priority or 0, rule.table == LOCAL_TABLE)
            for rule in policy_rules.rules(self._kernel, FAMILIES[version])
        ]
        local = max((priority for priority, is_local in rules if is_local), default=0)
        free = min((priority for priority, _ in rules if priority > local), default=local + 1) - 1
        return free, free == local

    def delete_rule(self, rule: Rule) -> None:
        with _explained("delete a routing rule"):
            policy_rules.remove(self._kernel, rule)

    def mark_rules(self, version: int) -> list[MarkRule]:
        """Return the mark rules of `add_rules`, each with its rule for the main table.

        That is the nearest one before it, or one after it with the same priority. ip(8) adds them in the order that
        causes the latter if no other priority is free.
        """
        if version not in self.versions:
            return []
        found: list[MarkRule] = []
        main: list[Rule] = []
        with _explained("list routing rules"):
            rules = policy_rules.rules(self._kernel, FAMILIES[version])
        for rule in sorted(rules, key=lambda rule: rule.priority or 0):
            if rule.suppressed == 0 and rule.table == MAIN_TABLE:
                main.append(rule)
            elif rule.inverted and rule.table and rule.mark == rule.table:
                found.append(MarkRule(version, rule.table, rule, main.pop() if main else None))
        return [_with_main_behind(rule, main) for rule in found]


def best_mtu(host: Host, endpoints: Iterable[Endpoint | None]) -> int:
    """Return the MTU for an interface, like wg-quick(8).

    It is the smallest path MTU to a peer, otherwise that of the default route, otherwise 1500, minus the overhead.
    """
    path_mtus = (host.path_mtu(endpoint) for endpoint in endpoints if endpoint is not None)
    return (min(filter(None, path_mtus), default=0) or host.default_mtu() or USUAL_OUTER_MTU) - OVERHEAD_V6


def too_narrow(mtu: int) -> str | None:
    """Explain why an interface with this MTU has no IPv6. Return None if it may have it."""
    return f"MTU {mtu} is below {IPV6_MINIMUM_MTU}, the minimum of IPv6" if mtu < IPV6_MINIMUM_MTU else None


def _with_main_behind(rule: MarkRule, main: list[Rule]) -> MarkRule:
    """Give a rule without a main rule one of the same priority, and remove that one from `main`."""
    if rule.main_rule is not None:
        return rule
    behind = [other for other in main if other.priority == rule.rule.priority]
    if not behind:
        return rule
    main.remove(behind[0])
    return rule._replace(main_rule=behind[0])


def _network(prefix: Prefix) -> Network:
    if prefix.version == 4:
        return ipaddress.IPv4Network((prefix.network, prefix.length))
    return ipaddress.IPv6Network((prefix.network, prefix.length))


def _in_table(table: int) -> str:
    return "" if table == MAIN_TABLE else f" in table {table}"


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeviceError(_explain(what, error)) from error


def _explain(what: str, error: OSError) -> str:
    number = error.errno or 0
    hint = ": run as root" if number == errno.EPERM else ""
    return f"cannot {what}: {errno.errorcode.get(number, number)}, {error.strerror or os.strerror(number)}{hint}"
