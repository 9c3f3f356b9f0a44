"""The kernel's side of `up` and `down`: link, addresses, routes and rules of one interface, by netlink.

Everything is made with the attributes that ip(8) gives it, so that what `up` leaves behind looks like wg-quick's and
either `down` finds it. Raises DeviceError with what was tried and why it failed.
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
"""Other programs add rules at the same time, and may take the place that was free when this one looked."""

IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")

IPV6_ADDRESSES = Path("/proc/net/if_inet6")


class MarkRule(NamedTuple):
    version: int
    table: int
    rule: Rule
    main_rule: Rule | None


class Taken(DeviceError):
    """The table has a route to that prefix already."""


class Host:
    """A context manager: it holds one netlink socket, of the network namespace it was made in."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        with _explained("ask the kernel about interfaces and routes"):
            self._kernel = netlink.Client()
        self._covered: dict[int, set[tuple[int, int]]] = {}
        """By IP version: length and leading bits of each route of the main table by this interface."""

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
        """Of the interface, as ip(8) prints it: tun, wireguard, veth; empty if it has none."""
        return self._link_at(self._index).kind

    @cached_property
    def _index(self) -> int:
        """Looked up once: a name is no way to ask for an interface 10,000 times."""
        found = self._look_up()
        if found is None:
            raise DeviceError(f"{self.interface} is gone")
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
        """The interface was deleted or made anew."""
        self.__dict__.pop("_index", None)
        self._covered.clear()

    # IPv6, which is not everywhere

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
        """Why the interface cannot have addresses and routes of that version; None: it can."""
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
        """Whether packets of IPv6 could leave by another interface."""
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
        """Those of the interface, in the kernel's order, without a link-local one that the kernel made."""
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
        """Of the route to an endpoint: its own MTU if it has one, else its link's; 0: there is no route."""
        try:
            # A link-local address is on every link; its scope names the right one.
            message = self._kernel.route(endpoint.host, endpoint.scope_id)
        except netlink.Refused:
            return 0
        return self._mtu_of_route(link_setup.parse_route(message))

    def default_mtu(self) -> int:
        """Of the IPv4 default route; 0: there is none."""
        for route in self.routes(4):
            if (route.table, route.length) == (MAIN_TABLE, 0):
                return self._mtu_of_route(route)
        return 0

    def _mtu_of_route(self, route: Route) -> int:
        return route.mtu or (self._link_at(route.device).mtu if route.device else 0)

    def add_route(self, prefix: Prefix, table: int = MAIN_TABLE) -> None:
        """Raises Taken, and DeviceError for any other reason."""
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
        """Whether packets to the prefix go through the interface already, by the main table.

        The kernel is asked once, and `add_route` adds to what it answered: a file may have 10,000 prefixes.
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
        """All of them, of every table."""
        if version not in self.versions:
            return []
        with _explained("list routes"):
            return link_setup.routes(self._kernel, FAMILIES[version])

    def name_of(self, device: int) -> str:
        """Of an interface, by its index; for messages."""
        try:
            return socket.if_indextoname(device)
        except OSError:
            return f"interface {device}"

    @property
    def index(self) -> int | None:
        """None: the interface does not exist."""
        return self._index if self.exists else None

    # Rules

    def add_rules(self, version: int, table: int) -> Iterator[Rule]:
        """Packets without the mark go by `table`; before that, they go by the main table where it has more than a
        default route. Yields each rule when it is there, in the form that `delete_rule` takes."""
        family = FAMILIES[version]
        mark = Rule(family, table, mark=table, inverted=True, protocol=0)
        main = Rule(family, MAIN_TABLE, suppressed=0, protocol=0)
        _, is_crowded = self._place(version)
        # The kernel puts a rule behind those of the same priority, and otherwise each goes before the last one.
        for rule in (main, mark) if is_crowded else (mark, main):
            yield self._add_rule(version, rule)

    def _add_rule(self, version: int, wanted: Rule) -> Rule:
        with _explained(f"add a routing rule for IPv{version}"):
            for _ in range(RULE_TRIES):
                place, is_crowded = self._place(version)
                rule = replace(wanted, priority=place)
                try:
                    policy_rules.add(self._kernel, rule)
                    return rule
                except netlink.Refused as error:
                    # Another `up` put the same rule into the same place between the look and now.
                    if error.errno != errno.EEXIST:
                        raise
                    if is_crowded:
                        raise DeviceError(
                            f"cannot add a routing rule for IPv{version}: another tunnel has the only priority before "
                            f"the rules of this host, {place}: give those higher ones (ip rule)"
                        ) from error
        raise DeviceError(f"cannot add a routing rule for IPv{version}: other programs add rules all the time")

    def _place(self, version: int) -> tuple[int, bool]:
        """The priority before all rules but the local table's, and whether that is the local table's own.

        The kernel takes the first rule for the local table's. Where another one is first, as Cilium's are, that would
        send packets to this host's own addresses into the tunnel.
        """
        rules = [
            (rule.priority or 0, rule.table == LOCAL_TABLE)
            for rule in policy_rules.rules(self._kernel, FAMILIES[version])
        ]
        local = max((priority for priority, is_local in rules if is_local), default=0)
        place = min((priority for priority, _ in rules if priority > local), default=local + 1) - 1
        return place, place == local

    def delete_rule(self, rule: Rule) -> None:
        with _explained("delete a routing rule"):
            policy_rules.remove(self._kernel, rule)

    def mark_rules(self, version: int) -> list[MarkRule]:
        """The rules by mark that `add_rules` makes, each with the one for the main table that stands nearest before it,
        or behind it with the same priority: ip(8) makes them in that order, also where there is no room."""
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
    """As wg-quick(8): the narrowest way to a peer, else the default route, else 1500; less what goes around."""
    ways = (host.path_mtu(endpoint) for endpoint in endpoints if endpoint is not None)
    return (min(filter(None, ways), default=0) or host.default_mtu() or USUAL_OUTER_MTU) - OVERHEAD_V6


def too_narrow(mtu: int) -> str | None:
    """Why an interface of that MTU has no IPv6; None: it may."""
    return f"MTU {mtu} is below {IPV6_MINIMUM_MTU}, the least for IPv6" if mtu < IPV6_MINIMUM_MTU else None


def _with_main_behind(rule: MarkRule, main: list[Rule]) -> MarkRule:
    """Take one of the same priority out of `main` for a rule that has none."""
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
