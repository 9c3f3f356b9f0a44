"""The routes and rules of an interface: `up` adds them, and `down` removes them.

A default route goes into its own table, whose number is the tunnel's mark. Packets without the mark use that table, and
the tunnel's own packets use the main one. Destinations for which the main table has a route other than its default
route are not affected.

A mark identifies a table, not its owner: a split tunnel may have the mark of a full one, so that its own packets bypass
the latter. Therefore the routes show what belongs to an interface. The default route reserves the table (the kernel
refuses a second one), and a rule is removed only if its table has the default route of this interface, or none after a
crash.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wyrmhole.cli.quick import firewall
from wyrmhole.cli.quick.host import Host, MarkRule, Taken, too_narrow
from wyrmhole.errors import DeviceError
from wyrmhole.net.link_setup import MAIN_TABLE, Route
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.prefix import Prefix

FIRST_TABLE = 51820
MAX_TABLES = 1000
"""Limit of tables to try: more tunnels with a default route than any host has."""

KERNEL_TABLES = range(253, 256)
"""The tables default, main and local, which no tunnel may use for itself."""

SYSCTLS = Path("/proc/sys/net/ipv4/conf")

Say = Callable[[str], None]
Note = Callable[[Callable[[], object]], None]


@dataclass(frozen=True, slots=True)
class Routing:
    """`say` takes a line for the user: what is done, as a command of ip(8). `warn` takes a sentence."""

    host: Host
    say: Say
    warn: Say

    @property
    def _name(self) -> str:
        return self.host.interface

    # Up

    def usable(self, prefixes: Iterable[Prefix]) -> list[Prefix]:
        """Remove prefixes of an IP version that the interface cannot have. Raises DeviceError if packets would leave
        outside the tunnel.

        Long prefixes come first, so that a route is added before a shorter one that makes it superfluous.
        """
        wanted = sorted(dict.fromkeys(prefixes), key=lambda prefix: -prefix.length)
        reason = self.host.lacks(6) if any(prefix.version == 6 for prefix in wanted) else None
        if reason is None:
            return wanted
        without = [prefix.emit() for prefix in wanted if prefix.version == 6]
        text = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        if self.host.others_have_ipv6():
            if too_narrow(self.host.mtu()):
                remedy = f"set MTU to {IPV6_MINIMUM_MTU} or more"
            else:
                remedy = "switch it on (sysctl net.ipv6.conf.default.disable_ipv6=0)"
            raise DeviceError(
                f"{reason}, but other interfaces have IPv6: packets to {text} would leave outside the tunnel; "
                f"{remedy}, or take IPv6 out of AllowedIPs"
            )
        self.warn(f"{reason}: left out the routes to {text}")
        return [prefix for prefix in wanted if prefix.version == 4]

    def add(self, prefix: Prefix, table: int | None) -> None:
        """Add a route that needs no rules."""
        if table is None and self.host.has_route(prefix):
            return
        suffix = "" if table is None else f" table {table}"
        self.say(f"ip -{prefix.version} route add {prefix.emit()} dev {self._name}{suffix}")
        try:
            self.host.add_route(prefix, table or MAIN_TABLE)
        except Taken as error:
            owner = self._owner_of(prefix, table or MAIN_TABLE)
            where = "AllowedIPs there or here" if table is None else "AllowedIPs, or give another Table"
            raise DeviceError(f"{error} ({owner} has it: take it out of {where})") from error

    def _owner_of(self, prefix: Prefix, table: int) -> str:
        wanted = (table, prefix.length, prefix.network)
        routes = self.host.routes(prefix.version)
        devices = [route.device for route in routes if (route.table, route.length, route.network) == wanted]
        return self.host.name_of(devices[0]) if devices else "another interface"

    def add_defaults(
        self, prefixes: Sequence[Prefix], mark: int, may_change: bool, set_mark: Callable[[int], None], undo: Note
    ) -> None:
        """Those of length 0. `mark`: the tunnel's; 0: it has none. `may_change`: a mark whose table another interface
        has is given up for another. `set_mark` gives the tunnel a mark. `undo` notes how to take back rules and
        firewall; the routes end with the interface.
        """
        table = self._reserve(prefixes, mark, may_change)
        if table != mark:
            self.say(f"wyrmhole set {self._name} fwmark {table}")
            set_mark(table)
        for prefix in prefixes:
            self._steer(prefix.version, table, undo)

    def _reserve(self, prefixes: Sequence[Prefix], mark: int, may_change: bool) -> int:
        if mark:
            if mark in KERNEL_TABLES:
                raise DeviceError(
                    f"FwMark = {mark} would make the kernel's own table {mark} the tunnel's: choose another"
                )
            owner = self._try_table(prefixes, mark)
            if owner is None:
                return mark
            if not may_change:
                raise DeviceError(
                    f"FwMark = {mark}: routing table {mark} has the default route of {owner}: "
                    "give this tunnel another FwMark, or none"
                )
            self.warn(f"FwMark = {mark} was saved, but routing table {mark} is {owner}'s by now: another one is taken")
        used = {route.table for version in self.host.versions for route in self.host.routes(version)}
        free = (table for table in range(FIRST_TABLE, FIRST_TABLE + MAX_TABLES) if table not in used)
        for table in free:
            if self._try_table(prefixes, table) is None:
                return table
        raise DeviceError(f"no routing table from {FIRST_TABLE} to {FIRST_TABLE + MAX_TABLES - 1} is free")

    def _try_table(self, prefixes: Sequence[Prefix], table: int) -> str | None:
        """Add the routes to a table. If another interface has one there, return its name and add none."""
        added: list[Prefix] = []
        try:
            for prefix in prefixes:
                self.host.add_route(prefix, table)
                added.append(prefix)
        except Taken:
            pass
        others = self._others_in(table)
        if len(added) == len(prefixes) and not others:
            for prefix in prefixes:
                self.say(f"ip -{prefix.version} route add {prefix.emit()} dev {self._name} table {table}")
            return None
        for prefix in added:
            self.host.delete_route(prefix, table)
        return others or "another route"

    def _others_in(self, table: int) -> str:
        """Return the other interfaces with a default route in the table, of either IP version, because both share the
        mark."""
        own = self.host.index
        routes = [route for version in self.host.versions for route in self.host.routes(version)]
        found = {route.device for route in routes if (route.table, route.length) == (table, 0) and route.device != own}
        return ", ".join(self.host.name_of(device) for device in sorted(found))

    def _steer(self, version: int, table: int, undo: Note) -> None:
        for rule in self.host.add_rules(version, table):
            selectors = f"not fwmark {table} table {table}" if rule.mark else "table main suppress_prefixlength 0"
            undo(partial(self.host.delete_rule, rule))
            self.say(f"ip -{version} rule add {selectors}")
        own = [str(address.ip) for address in self.host.addresses() if address.version == version]
        if version == 4:
            validate_marks(self._name, self.say, self.warn)
        undo(partial(firewall.remove, self._name))
        firewall.add(self._name, version, table, own, self.say)

    # Down

    def remove_rules(self, marks: Collection[int]) -> None:
        """Remove the rules of this interface.

        Rules for its former `marks` are removed too if their table has no default route, as after a crash.
        """
        own = self.host.index
        for version in self.host.versions:
            rules = self.host.mark_rules(version)
            owners = _owners(self.host.routes(version)) if rules else {}
            for rule in rules:
                devices = owners.get(rule.table)
                if devices == {own} if devices else rule.table in marks:
                    self._remove(rule)

    def orphaned_tables(self) -> set[int]:
        """Return the tables that rules refer to but that have no default route, so that their owner is unknown."""
        found = set()
        for version in self.host.versions:
            owners = _owners(self.host.routes(version))
            found |= {rule.table for rule in self.host.mark_rules(version) if rule.table not in owners}
        return found

    def _remove(self, found: MarkRule) -> None:
        self.say(f"ip -{found.version} rule delete table {found.table}")
        self.host.delete_rule(found.rule)
        if found.main_rule is not None:
            self.say(f"ip -{found.version} rule delete table main suppress_prefixlength 0")
            self.host.delete_rule(found.main_rule)


def _owners(routes: Iterable[Route]) -> dict[int, set[int]]:
    """Map each table to the interfaces that have a default route in it."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for route in routes:
        if route.length == 0:
            found[route.table].add(route.device)
    return found


def validate_marks(interface: str, say: Say, warn: Say) -> None:
    """Make the reverse path filter respect marks. Raises DeviceError if it would drop the tunnel's packets."""
    setting = SYSCTLS / "all/src_valid_mark"
    try:
        if setting.read_text().strip() == "1":
            return
        say("sysctl -q net.ipv4.conf.all.src_valid_mark=1")
        setting.write_text("1")
    except OSError as error:
        reason = f"cannot set net.ipv4.conf.all.src_valid_mark to 1: {error.strerror}"
        remedy = "in a container, start it with --sysctl net.ipv4.conf.all.src_valid_mark=1"
        if strict := _strict_filters(interface):
            raise DeviceError(
                f"{reason}, and the strict rp_filter of {strict} would drop the answers; {remedy}"
            ) from error
        warn(f"{reason}; it matters only with a strict rp_filter, which is off here; {remedy}")


def _strict_filters(interface: str) -> str:
    """Return the interfaces with a strict reverse path filter: the larger of their own value and that of `all` counts.

    The tunnel's own packets do not arrive on `interface` itself.
    """
    values = {}
    for path in SYSCTLS.glob("*/rp_filter"):
        try:
            values[path.parent.name] = int(path.read_text())
        except (OSError, ValueError):
            continue
    common = values.pop("all", 0)
    names = [
        name for name, value in values.items() if name not in ("default", "lo", interface) and max(value, common) == 1
    ]
    return ", ".join(sorted(names))
