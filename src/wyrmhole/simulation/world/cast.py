"""The hosts of a world: their creation, their timers, and the calls that wait while a host sleeps."""

from __future__ import annotations

from collections.abc import Callable

from wyrmhole.simulation import packets
from wyrmhole.simulation.clock import SECOND, HostClock
from wyrmhole.simulation.model.ledger import Ledger
from wyrmhole.simulation.world.edges import EdgeCalls
from wyrmhole.simulation.world.host import Host
from wyrmhole.simulation.world.network import Network
from wyrmhole.simulation.world.scenario import Scenario
from wyrmhole.simulation.world.schedule import Call, Schedule
from wyrmhole.simulation.world.settings import PeerSettings
from wyrmhole.wire.endpoint import SockAddr

RESTART = 2 * SECOND
"""The delay before an interface whose TUN was deleted is started again."""


class Cast:
    """Fills `hosts`, by number. `transmit` carries their datagrams."""

    def __init__(
        self,
        hosts: dict[int, Host],
        scenario: Scenario,
        schedule: Schedule,
        network: Network,
        ledger: Ledger,
        calls: EdgeCalls,
        transmit: Callable[[Host, SockAddr, bytes], None],
    ) -> None:
        self.hosts = hosts
        self._scenario = scenario
        self._schedule = schedule
        self._network = network
        self._wakes: dict[int, int] = {}
        self._asleep: dict[int, list[tuple[Call, tuple[object, ...]]]] = {}
        """Calls that wait until a host wakes, by its number."""
        for number in range(1, scenario.hosts + 1):
            hosts[number] = self._make_host(number, ledger, calls, transmit)

    def _make_host(
        self, number: int, ledger: Ledger, calls: EdgeCalls, transmit: Callable[[Host, SockAddr, bytes], None]
    ) -> Host:
        return Host(
            number,
            seed=str(self._scenario.seed),
            ledger=ledger,
            clock=HostClock(lambda: self._schedule.now, self._scenario.drifts[number - 1]),
            calls=calls,
            transmit=transmit,
            wake=self.wake,
            ended=lambda host: self._schedule.after(RESTART, self.restart, host.number),
        )

    def introduce(self) -> None:
        """Give every host every other as a peer, without an endpoint if that one is behind a NAT."""
        for host in self.hosts.values():
            self._network.place(host.number, host.address)
            for other in self.hosts.values():
                if other is not host:
                    host.settings.peers[other.number] = self.settings_for(host, other)

    def settings_for(self, host: Host, other: Host) -> PeerSettings:
        endpoint = None if other.number in self._network.nats else other.address
        # Only every fourth host: a host that cannot reach host 1 for hours retries every five seconds, and these
        # retries would dominate the run.
        keepalive = 25 if host.number in self._network.nats and host.number % 4 == 3 and other.number == 1 else 0
        prefixes = [packets.v4_prefix(other.number), packets.v6_prefix(other.number)]
        return PeerSettings(other.number, other.public, prefixes, None, endpoint, keepalive)

    def close(self) -> None:
        """Release the engines' descriptors."""
        for host in self.hosts.values():
            if host.running:
                host.crash()

    def restart(self, number: int) -> None:
        if not self.hosts[number].running:
            self.hosts[number].start()
            self.catch_up(number)

    # Timers

    def wake(self, host: Host, when: int) -> None:
        """Plan to run the host's timers at `when`, unless an earlier time is planned."""
        due = self._wakes.get(host.number)
        if due is None or when < due:
            self._wakes[host.number] = max(when, self._schedule.now)
            self._schedule.at(when, self.fire, host)

    def fire(self, host: Host) -> None:
        due = self._wakes.get(host.number)
        if due is not None and due <= self._schedule.now:
            del self._wakes[host.number]
            host.fire()

    # Sleep

    def waits(self, number: int, call: Call, *arguments: object) -> bool:
        """Return whether the host sleeps. If so, the call is made when it wakes or starts again."""
        host = self.hosts[number]
        if host.running and not host.awake:
            self._asleep.setdefault(number, []).append((call, arguments))
            return True
        return False

    def catch_up(self, number: int) -> None:
        """Make the calls that waited for the host to wake."""
        for call, arguments in self._asleep.pop(number, []):
            call(*arguments)
