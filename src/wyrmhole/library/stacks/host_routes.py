"""Routes through an interface that only the sockets bound to it use.

Each family has a separate routing table with a default route, and a rule that selects the table only for sockets bound
to the interface (`oif NAME lookup TABLE`). The routing of other programs is not affected.

The default route reserves the table: the kernel refuses a second one (EEXIST), and then the next table is tried. The
kernel removes routes together with the interface. After SIGKILL, only a rule remains, which matches no socket and leads
to an empty table. The next tunnel with `device="tun"` removes it.
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
"""Far from the tables of wg-quick, which counts up from 51820."""
NO_RULES = frozenset({errno.EAFNOSUPPORT, errno.EOPNOTSUPP})


@dataclass
class HostRoutes:
    """The routes and rules of an interface, given by `name` and `index`. The caller closes `client`."""

    client: netlink.Client
    name: str
    index: int
    _rules: dict[int, list[Rule]] = field(default_factory=dict)
    """The rules by IP version. The first one selects the table."""

    def configure(self, networks: Sequence[Network], addresses: Sequence[Interface]) -> None:
        """Replace the routes. Raises OSError; families that were already configured stay configured."""
        wanted = {network.version: network for network in networks}
        for version in [old for old in self._rules if old not in wanted]:
            self._remove(version)
        for version, network in wanted.items():
            self._add(version, network)
        if 4 in wanted:
            self._pass_reverse_path_filter([address for address in addresses if address.version == 4])

    def close(self) -> None:
        """Remove the rules. The kernel removes the routes together with the interface."""
        for version in list(self._rules):
            self._remove(version)

    def _add(self, version: int, network: Network) -> None:
        if known := self._rules.get(version):
            # The kernel removes an interface's routes when it goes down.
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
        raise OSError(errno.ENOSPC, f"all routing tables from {FIRST_TABLE} to {last} are in use: close other tunnels")

    def _remove(self, version: int) -> None:
        network = ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")
        rules = self._rules.pop(version)
        for rule in rules:
            with contextlib.suppress(OSError):
                policy_rules.remove(self.client, rule)
        with contextlib.suppress(OSError):
            link_setup.remove_route(self.client, self.index, network, rules[0].table)

    def _pass_reverse_path_filter(self, addresses: Sequence[Interface]) -> None:
        """Prevent the host's reverse path filter from dropping packets that come out of the tunnel.

        The filter does not know the socket of a packet, so a rule with `oif` has no effect on it. It is switched off on
        this interface, because cryptokey routing has already checked the source. If net.ipv4.conf.all enables it for
        all interfaces, a rule for packets from the tunnel's own addresses makes it accept the packets.
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
    """Remove the rules of tunnels whose program was killed.

    This must happen before an interface is made: an old rule would apply to a new interface of the same name.
    """
    with contextlib.suppress(OSError), contextlib.closing(netlink.Client()) as client:
        for family in FAMILIES.values():
            policy_rules.remove_orphans(client, family)


def _reserve(client: netlink.Client, index: int, network: Network, table: int) -> None:
    """Add a route. Raises FileExistsError if the table has one, OSError."""
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
