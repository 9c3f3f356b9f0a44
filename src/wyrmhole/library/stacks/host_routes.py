"""A way into an interface for the sockets that are bound to it, and for nothing else on this host.

For each family: a routing table of its own with the default route, and a rule that sends only packets of sockets bound
to the interface there (`oif NAME lookup TABLE`). Other programs keep the routes that they have, or lack.

The default route is what reserves the table: the kernel refuses a second one (EEXIST), and the next table is tried.
Routes go with the interface, so after SIGKILL a rule is left that matches no socket and leads to an empty table; the
next `device="tun"` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wyrmhole.net import link_setup, netlink, policy_rules
from wyrmhole.net.link_setup import Interface, Network
from wyrmhole.net.policy_rules import FAMILIES, Rule

FIRST_TABLE, TABLES = 52820, 1024
"""Not near wg-quick's, which counts up from 51820."""
NO_RULES = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


@dataclass
class HostRoutes:
    """`name` and `index` are the interface's; `client` asks the kernel and stays the caller's."""

    client: netlink.Client
    name: str
    index: int
    _rules: dict[int, list[Rule]] = field(default_factory=dict)
    """By IP version; the first leads to the table."""

    def configure(self, networks: Sequence[Network], addresses: Sequence[Interface]) -> None:
        """Have exactly these. Raises OSError, which leaves the families that were done."""
        wanted = {network.version: network for network in networks}
        for version in [old for old in self._rules if old not in wanted]:
            self._remove(version)
        for version, network in wanted.items():
            self._add(version, network)
        if 4 in wanted:
            self._let_in([address for address in addresses if address.version == 4])

    def close(self) -> None:
        """Remove the rules; the routes go with the interface."""
        for version in list(self._rules):
            self._remove(version)

    def _add(self, version: int, network: Network) -> None:
        if known := self._rules.get(version):
            # The kernel drops an interface's routes when it goes down.
            with contextlib.suppress(FileExistsError):
                _reserve(self.client, self.index, network, known[0].table)
            return
        family = FAMILIES[version]
        try:
            rule = Rule(family, self._reserve_table(network), oif=self.name)
            policy_rules.add(self.client, rule)
        except netlink.Refused as error:
            if error.errno in NO_RULES:
                message = "this kernel has no policy routing (CONFIG_IP_MULTIPLE_TABLES)"
                raise OSError(error.errno, message) from error
            raise
        self._rules[version] = [rule]

    def _reserve_table(self, network: Network) -> int:
        family = FAMILIES[network.version]
        taken = {rule.table for rule in policy_rules.rules(self.client, family)}
        for table in range(FIRST_TABLE, FIRST_TABLE + TABLES):
            if table in taken or policy_rules.has_routes(table, family):
                continue
            with contextlib.suppress(FileExistsError):
                _reserve(self.client, self.index, network, table)
                return table
        last = FIRST_TABLE + TABLES - 1
        raise OSError(errno.ENOSPC, f"the routing tables {FIRST_TABLE} to {last} are all taken: close other tunnels")

    def _remove(self, version: int) -> None:
        network = ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")
        rules = self._rules.pop(version)
        for rule in rules:
            with contextlib.suppress(OSError):
                policy_rules.remove(self.client, rule)
        with contextlib.suppress(OSError):
            link_setup.remove_route(self.client, self.index, network, rules[0].table)

    def _let_in(self, addresses: Sequence[Interface]) -> None:
        """Keep the host's reverse path filter from dropping what comes out of the tunnel.

        That filter does not know which socket a packet is for, so `oif` does not help it. Cryptokey routing has
        checked the source already. The filter is switched off on this interface; where net.ipv4.conf.all switches it
        on for all of them, a rule for packets from the tunnel's own addresses shows it the way.
        """
        with contextlib.suppress(OSError):
            link_setup.accept_any_source(self.client, self.index)
        table, *_ = (rule.table for rule in self._rules[4])
        filtered = filters_all() and addresses
        wanted = [Rule(FAMILIES[4], table, source=address.ip.packed) for address in addresses] if filtered else []
        present = self._rules[4][1:]
        for rule in [old for old in present if old not in wanted]:
            with contextlib.suppress(OSError):
                policy_rules.remove(self.client, rule)
        for rule in [new for new in wanted if new not in present]:
            policy_rules.add(self.client, rule)
        self._rules[4][1:] = wanted


def remove_orphans() -> None:
    """Remove the rules of tunnels whose program was killed. Before an interface is made: a name that is used again
    would make such a rule one of a living interface."""
    with contextlib.suppress(OSError), contextlib.closing(netlink.Client()) as client:
        for family in FAMILIES.values():
            policy_rules.remove_orphans(client, family)


def _reserve(client: netlink.Client, index: int, network: Network, table: int) -> None:
    """Raises FileExistsError, OSError."""
    try:
        link_setup.reserve_route(client, index, network, table)
    except netlink.Refused as error:
        if error.errno == errno.EEXIST:
            raise FileExistsError(error.errno, error.strerror) from error
        raise


def filters_all() -> bool:
    """Whether rp_filter is on for every interface of this host."""
    try:
        return Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text().strip() != "0"
    except OSError:
        return False
