"""The kernel's side of `up` and `down`: link, addresses, routes and rules of one interface, by netlink.

Everything is made with the attributes that ip(8) gives it, so that what `up` leaves behind looks like wg-quick's and
either `down` finds it. Raises DeviceError with what was tried and why it failed.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from wyrmhole.control.config.values import Address
from wyrmhole.errors import DeviceError
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.messages import OVERHEAD_V6, USUAL_OUTER_MTU
from wyrmhole.wire.prefix import Prefix

MAIN_TABLE, LOCAL_TABLE = 254, 255
RTPROT_BOOT = 3
SCOPE_LINK = 253
FIB_RULE_INVERT = 2
FR_ACT_TO_TBL = 1
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
RULE_TRIES = 100
"""Other programs add rules at the same time, and may take the place that was free when this one looked."""

IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")
MADE_BY_KERNEL = 3
"""IFAPROT_KERNEL_LL: a link-local address that the kernel made by itself. Linux 5.18 and later tell."""

IPV6_ADDRESSES = Path("/proc/net/if_inet6")

Selectors = dict[str, Any]
"""What names a routing rule to pyroute2."""


class Route(NamedTuple):
    version: int
    table: int
    device: int
    length: int
    network: int
    """Without the bits after `length`."""


class MarkRule(NamedTuple):
    version: int
    table: int
    rule: Selectors
    main_rule: Selectors | None


class Taken(DeviceError):
    """The table has a route to that prefix already."""


class Host:
    """A context manager: it holds one netlink socket, of the network namespace it was made in."""

    def __init__(self, interface: str) -> None:
        from pyroute2 import IPRoute

        self.interface = interface
        self._ip: Any = IPRoute()
        self._covered: dict[int, set[tuple[int, int]]] = {}
        """By IP version: length and leading bits of each route of the main table by this interface."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ip.close()

    @property
    def exists(self) -> bool:
        return bool(self._ip.link_lookup(ifname=self.interface))

    @property
    def kind(self) -> str:
        """Of the interface, as ip(8) prints it: tun, wireguard, veth; empty if it has none."""
        link = self._ip.get_links(self._index)[0].get_attr("IFLA_LINKINFO")
        return str(link.get_attr("IFLA_INFO_KIND") or "") if link is not None else ""

    @cached_property
    def _index(self) -> int:
        """Looked up once: a name is no way to ask for an interface 10,000 times."""
        found = self._ip.link_lookup(ifname=self.interface)
        if not found:
            raise DeviceError(f"{self.interface} is gone")
        return int(found[0])

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
            self._ip.addr(
                "add",
                index=self._index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                family=FAMILIES[address.version],
            )
        self._covered.clear()

    def addresses(self) -> list[Address]:
        """Those of the interface, in the kernel's order, without a link-local one that the kernel made."""
        found = []
        for message in self._ip.get_addr(index=self._index):
            if message.get_attr("IFA_PROTO") == MADE_BY_KERNEL:
                continue
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            found.append(ipaddress.ip_interface(f"{text}/{message['prefixlen']}"))
        return found

    def set_up(self, mtu: int) -> None:
        with _explained(f"bring {self.interface} up with MTU {mtu}"):
            self._ip.link("set", index=self._index, mtu=mtu, state="up")
        self._covered.clear()

    def mtu(self) -> int:
        return self._mtu_of(self._index)

    def delete(self) -> None:
        with _explained(f"delete {self.interface}"):
            self._ip.link("del", index=self._index)
        self.forget()

    def _mtu_of(self, index: int) -> int:
        return int(self._ip.get_links(index)[0].get_attr("IFLA_MTU"))

    # Routes

    def path_mtu(self, endpoint: Endpoint) -> int:
        """Of the route to an endpoint: its own MTU if it has one, else its link's; 0: there is no route."""
        family = socket.AF_INET6 if endpoint.is_v6 else socket.AF_INET
        # A link-local address is on every link; its scope names the right one.
        link = {"oif": endpoint.scope_id} if endpoint.scope_id else {}
        try:
            route = self._ip.route("get", dst=endpoint.host, family=family, **link)
        except _netlink_error():
            return 0
        return self._mtu_of_route(next(iter(route)))

    def default_mtu(self) -> int:
        """Of the IPv4 default route; 0: there is none."""
        for route in self._ip.get_default_routes(family=socket.AF_INET):
            return self._mtu_of_route(route)
        return 0

    def _mtu_of_route(self, route: Any) -> int:
        metrics = route.get_attr("RTA_METRICS")
        stated = metrics.get_attr("RTAX_MTU") if metrics is not None else None
        link = route.get_attr("RTA_OIF")
        return int(stated or (self._mtu_of(link) if link else 0))

    def add_route(self, prefix: Prefix, table: int = MAIN_TABLE) -> None:
        """Raises Taken, and DeviceError for any other reason."""
        try:
            self._change_route("add", prefix, table)
        except _netlink_error() as error:
            kind = Taken if getattr(error, "code", 0) == errno.EEXIST else DeviceError
            raise kind(_explain(f"add the route {prefix.emit()}{_in_table(table)}", error)) from error
        if table == MAIN_TABLE and prefix.version in self._covered:
            self._covered[prefix.version].add((prefix.length, prefix.network >> prefix.bits - prefix.length))

    def delete_route(self, prefix: Prefix, table: int) -> None:
        with _explained(f"delete the route {prefix.emit()}{_in_table(table)}"):
            self._change_route("del", prefix, table)

    def _change_route(self, action: str, prefix: Prefix, table: int) -> None:
        scope = {"scope": SCOPE_LINK} if prefix.version == 4 else {}
        self._ip.route(
            action,
            dst=prefix.emit(),
            family=FAMILIES[prefix.version],
            oif=self._index,
            table=table,
            proto=RTPROT_BOOT,
            **scope,
        )

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
        return [_route(message, version) for message in self._ip.get_routes(family=FAMILIES[version])]

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

    def add_rules(self, version: int, table: int) -> Iterator[Selectors]:
        """Packets without the mark go by `table`; before that, they go by the main table where it has more than a
        default route. Yields each rule when it is there, in the form that `delete_rule` takes."""
        mark = {"fwmark": table, "table": table, "flags": FIB_RULE_INVERT}
        main = {"table": MAIN_TABLE, "suppress_prefixlen": 0}
        _, is_crowded = self._place(version)
        # The kernel puts a rule behind those of the same priority, and otherwise each goes before the last one.
        for selectors in (main, mark) if is_crowded else (mark, main):
            yield self._add_rule(version, selectors)

    def _add_rule(self, version: int, selectors: Selectors) -> Selectors:
        with _explained(f"add a routing rule for IPv{version}"):
            for _ in range(RULE_TRIES):
                place, is_crowded = self._place(version)
                rule = {"family": FAMILIES[version], "priority": place, "action": FR_ACT_TO_TBL, **selectors}
                try:
                    self._ip.rule("add", **rule)
                    return rule
                except _netlink_error() as error:
                    # Another `up` put the same rule into the same place between the look and now.
                    if getattr(error, "code", 0) != errno.EEXIST:
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
            (rule.get_attr("FRA_PRIORITY") or 0, rule.get_attr("FRA_TABLE") == LOCAL_TABLE)
            for rule in self._ip.get_rules(family=FAMILIES[version])
        ]
        local = max((priority for priority, is_local in rules if is_local), default=0)
        place = min((priority for priority, _ in rules if priority > local), default=local + 1) - 1
        return place, place == local

    def delete_rule(self, rule: Selectors) -> None:
        with _explained("delete a routing rule"):
            self._ip.rule("del", **rule)

    def mark_rules(self, version: int) -> list[MarkRule]:
        """The rules by mark that `add_rules` makes, each with the one for the main table that stands nearest before it,
        or behind it with the same priority: ip(8) makes them in that order, also where there is no room."""
        if version not in self.versions:
            return []
        found: list[MarkRule] = []
        main: list[Selectors] = []
        rules = list(self._ip.get_rules(family=FAMILIES[version]))
        for rule in sorted(rules, key=lambda rule: rule.get_attr("FRA_PRIORITY") or 0):
            if _is_suppressing(rule):
                main.append(_selectors(rule))
            elif _is_table_rule(rule):
                found.append(
                    MarkRule(version, rule.get_attr("FRA_TABLE"), _selectors(rule), main.pop() if main else None)
                )
        return [_with_main_behind(rule, main) for rule in found]


def best_mtu(host: Host, endpoints: Iterable[Endpoint | None]) -> int:
    """As wg-quick(8): the narrowest way to a peer, else the default route, else 1500; less what goes around."""
    ways = (host.path_mtu(endpoint) for endpoint in endpoints if endpoint is not None)
    return (min(filter(None, ways), default=0) or host.default_mtu() or USUAL_OUTER_MTU) - OVERHEAD_V6


def too_narrow(mtu: int) -> str | None:
    """Why an interface of that MTU has no IPv6; None: it may."""
    return f"MTU {mtu} is below {IPV6_MINIMUM_MTU}, the least for IPv6" if mtu < IPV6_MINIMUM_MTU else None


def _with_main_behind(rule: MarkRule, main: list[Selectors]) -> MarkRule:
    """Take one of the same priority out of `main` for a rule that has none."""
    if rule.main_rule is not None:
        return rule
    behind = [selectors for selectors in main if selectors["priority"] == rule.rule["priority"]]
    if not behind:
        return rule
    main.remove(behind[0])
    return rule._replace(main_rule=behind[0])


def _selectors(rule: Any) -> Selectors:
    place = {"family": rule["family"], "priority": rule.get_attr("FRA_PRIORITY") or 0, "action": FR_ACT_TO_TBL}
    if _is_suppressing(rule):
        return {**place, "table": MAIN_TABLE, "suppress_prefixlen": 0}
    table = rule.get_attr("FRA_TABLE")
    return {**place, "table": table, "fwmark": table, "flags": FIB_RULE_INVERT}


def _is_table_rule(rule: Any) -> bool:
    table = rule.get_attr("FRA_TABLE")
    return bool(rule["flags"] & FIB_RULE_INVERT and table and rule.get_attr("FRA_FWMARK") == table)


def _is_suppressing(rule: Any) -> bool:
    return bool(rule.get_attr("FRA_SUPPRESS_PREFIXLEN") == 0 and rule.get_attr("FRA_TABLE") == MAIN_TABLE)


def _route(message: Any, version: int) -> Route:
    length = message["dst_len"]
    destination = message.get_attr("RTA_DST")
    table = message.get_attr("RTA_TABLE") or message["table"]
    network = int(ipaddress.ip_address(destination)) if destination else 0
    return Route(version, table, message.get_attr("RTA_OIF") or 0, length, network)


def _in_table(table: int) -> str:
    return "" if table == MAIN_TABLE else f" in table {table}"


def _netlink_error() -> type[Exception]:
    from pyroute2 import NetlinkError

    error: type[Exception] = NetlinkError
    return error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except _netlink_error() as error:
        raise DeviceError(_explain(what, error)) from error


def _explain(what: str, error: Exception) -> str:
    code = getattr(error, "code", 0)
    hint = ": run as root" if code == errno.EPERM else ""
    name = errno.errorcode.get(code, str(code))
    return f"cannot {what}: {name}, {error.args[1] if len(error.args) > 1 else error}{hint}"
