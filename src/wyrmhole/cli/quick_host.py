"""The kernel's side of `up` and `down`: link, addresses, routes and rules of one interface, by netlink.

Everything is made with the attributes that ip(8) gives it, so that what `up` leaves behind looks like wg-quick's and
either `down` finds it. Raises DeviceError with what was tried and why it failed.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from wyrmhole.control.wg_values import Address
from wyrmhole.errors import DeviceError
from wyrmhole.wire.prefix import Prefix

MAIN_TABLE = 254
RTPROT_BOOT = 3
SCOPE_LINK = 253
FIB_RULE_INVERT = 2
FR_ACT_TO_TBL = 1
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Host:
    """A context manager: it holds one netlink socket, of the network namespace it was made in."""

    def __init__(self, interface: str) -> None:
        from pyroute2 import IPRoute

        self.interface = interface
        self._ip: Any = IPRoute()

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
    def _index(self) -> int:
        found = self._ip.link_lookup(ifname=self.interface)
        if not found:
            raise DeviceError(f"{self.interface} is gone")
        return int(found[0])

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

    def addresses(self) -> list[Address]:
        """Those of the interface, in the kernel's order, without the link-local one that the kernel made."""
        found = []
        for message in self._ip.get_addr(index=self._index):
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            found.append(ipaddress.ip_interface(f"{text}/{message['prefixlen']}"))
        return [address for address in found if not address.ip.is_link_local]

    def set_up(self, mtu: int) -> None:
        with _explained(f"bring {self.interface} up with MTU {mtu}"):
            self._ip.link("set", index=self._index, mtu=mtu, state="up")

    def mtu(self) -> int:
        return self._mtu_of(self._index)

    def delete(self) -> None:
        with _explained(f"delete {self.interface}"):
            self._ip.link("del", index=self._index)

    def _mtu_of(self, index: int) -> int:
        return int(self._ip.get_links(index)[0].get_attr("IFLA_MTU"))

    # Routes

    def path_mtu(self, address: str) -> int:
        """Of the route to an address: its own MTU if it has one, else its link's; 0: there is no route."""
        try:
            route = self._ip.route("get", dst=address, family=socket.AF_INET6 if ":" in address else socket.AF_INET)
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
        scope = {"scope": SCOPE_LINK} if prefix.version == 4 else {}
        with _explained(f"add the route {prefix.emit()}"):
            self._ip.route(
                "add",
                dst=prefix.emit(),
                family=FAMILIES[prefix.version],
                oif=self._index,
                table=table,
                proto=RTPROT_BOOT,
                **scope,
            )

    def has_route(self, prefix: Prefix) -> bool:
        """Whether what goes to the prefix goes through the interface already, by the main table."""
        return any(_covers(route, prefix) for route in self._routes(prefix.version, MAIN_TABLE, oif=self._index))

    def is_free(self, table: int) -> bool:
        return not any(list(self._routes(version, table)) for version in FAMILIES)

    def _routes(self, version: int, table: int, **match: Any) -> Iterator[Any]:
        yield from self._ip.get_routes(family=FAMILIES[version], table=table, **match)

    # Rules

    def add_rules(self, version: int, table: int) -> None:
        """Packets without the mark go by `table`, except where the main table knows better than its default route."""
        with _explained(f"add the rules for table {table}"):
            self._add_rule(version, fwmark=table, table=table, flags=FIB_RULE_INVERT)
            self._add_rule(version, table=MAIN_TABLE, suppress_prefixlen=0)

    def _add_rule(self, version: int, **selectors: Any) -> None:
        """Before all rules but the first, where the kernel puts one that does not ask for a place."""
        family = FAMILIES[version]
        places = sorted(rule.get_attr("FRA_PRIORITY") or 0 for rule in self._ip.get_rules(family=family))
        place = max(places[1] - 1, 0) if len(places) > 1 else 0
        self._ip.rule("add", family=family, priority=place, action=FR_ACT_TO_TBL, **selectors)

    def delete_rules(self, table: int) -> list[int]:
        """Take back what `add_rules` made, as often as it was made. Returns the IP versions."""
        deleted = []
        for version, family in FAMILIES.items():
            rules = list(self._ip.get_rules(family=family))
            ours = [rule for rule in rules if _is_table_rule(rule, table)]
            suppressing = [rule for rule in rules if _is_suppressing(rule)]
            for rule in [*ours, *suppressing[: len(ours)]]:
                self._delete_rule(rule)
            deleted += [version] * len(ours)
        return deleted

    def _delete_rule(self, rule: Any) -> None:
        with _explained("delete a routing rule"):
            self._ip.rule("del", family=rule["family"], priority=rule.get_attr("FRA_PRIORITY"), **_selectors(rule))


def _selectors(rule: Any) -> dict[str, Any]:
    if _is_suppressing(rule):
        return {"table": MAIN_TABLE, "suppress_prefixlen": 0, "action": FR_ACT_TO_TBL}
    mark = rule.get_attr("FRA_FWMARK")
    return {"table": rule.get_attr("FRA_TABLE"), "fwmark": mark, "flags": FIB_RULE_INVERT, "action": FR_ACT_TO_TBL}


def _is_table_rule(rule: Any, table: int) -> bool:
    is_inverted = rule["flags"] & FIB_RULE_INVERT
    return bool(is_inverted and rule.get_attr("FRA_TABLE") == table and rule.get_attr("FRA_FWMARK") == table)


def _is_suppressing(rule: Any) -> bool:
    return bool(rule.get_attr("FRA_SUPPRESS_PREFIXLEN") == 0 and rule.get_attr("FRA_TABLE") == MAIN_TABLE)


def _covers(route: Any, prefix: Prefix) -> bool:
    length = route["dst_len"]
    if length > prefix.length:
        return False
    destination = route.get_attr("RTA_DST") or ("0.0.0.0" if prefix.version == 4 else "::")
    shift = prefix.bits - length
    return bool(int(ipaddress.ip_address(destination)) >> shift == prefix.network >> shift)


def _netlink_error() -> type[Exception]:
    from pyroute2 import NetlinkError

    error: type[Exception] = NetlinkError
    return error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except _netlink_error() as error:
        code = getattr(error, "code", 0)
        hint = ": run as root" if code == errno.EPERM else ""
        name = errno.errorcode.get(code, str(code))
        raise DeviceError(f"cannot {what}: {name}, {error.args[1] if len(error.args) > 1 else error}{hint}") from error
