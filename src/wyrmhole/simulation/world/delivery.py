"""Delivery of datagrams from one host to another, and of packets into a host's TUN."""

from __future__ import annotations

import itertools
from random import Random

from wyrmhole.simulation import packets
from wyrmhole.simulation.model.ledger import Ledger
from wyrmhole.simulation.world.attacker import Attacker
from wyrmhole.simulation.world.host import Host
from wyrmhole.simulation.world.network import Captured, Network
from wyrmhole.simulation.world.schedule import Schedule
from wyrmhole.wire.endpoint import SockAddr

MAX_TRAIN = 64


class Delivery:
    """Carries the hosts' datagrams. The network decides which copies arrive, and when."""

    def __init__(
        self,
        hosts: dict[int, Host],
        schedule: Schedule,
        network: Network,
        attacker: Attacker,
        ledger: Ledger,
        random: Random,
    ) -> None:
        self._hosts = hosts
        self._schedule = schedule
        self._network = network
        self._attacker = attacker
        self._ledger = ledger
        self._random = random
        self._numbers = itertools.count(1)

    def transmit(self, host: Host, destination: SockAddr, data: bytes) -> None:
        now = self._schedule.now
        self._ledger.trace(now, host.number, data)
        self._ledger.counts["datagrams"] += 1
        source = self._network.source_of(host.number, host.address, now)
        self._network.captured.append(Captured(source, destination, data))
        receiver = self._network.receiver(destination, now)
        if receiver is None:
            self._attacker.hears(destination, data)
            return
        for when, copy in self._network.copies(host.number, receiver, data, now):
            self._schedule.at(when, self.arrive, destination, source, copy)

    def arrive(self, destination: SockAddr, source: SockAddr, data: bytes) -> None:
        """Deliver a datagram together with the following ones that a socket would return in one train."""
        train = [data]
        while len(train[-1]) == len(data) and (following := self._schedule.next_of(self.arrive)) is not None:
            is_same_flow = following[:2] == (destination, source)
            if not is_same_flow or len(following[2]) > len(data) or len(train) == MAX_TRAIN:
                break
            train.append(following[2])
            self._schedule.drop_next()
        self.deliver(destination, source, train)

    def deliver(self, destination: SockAddr, source: SockAddr, train: list[bytes]) -> None:
        number = self._network.receiver(destination, self._schedule.now)
        if number is not None:
            self._hosts[number].receive(source, train)

    def in_flight(self) -> list[bytes]:
        """Return all datagrams that may still arrive: in flight, held back, or captured by the attacker."""
        heard = [heard.data for heard in self._network.captured]
        return heard + self._network.all_held() + [arguments[2] for arguments in self._schedule.planned(self.arrive)]

    def send(self, source: int, destination: int, size: int = 48, *, v6: bool = False, as_host: int = 0) -> int | None:
        """Send a packet from a program on one host to another. Return its number, or None if the host is not up."""
        host = self._hosts[source]
        if not host.running or not host.awake or not host.interface.is_up or host.tun.gone:
            return None
        number = next(self._numbers)
        inner = packets.address(destination, self._random.choice((1, 200)), v6=v6)
        packet = packets.build(packets.address(as_host or source, 1, v6=v6), inner, number, size)
        host.inject(number, packet, inner)
        return number

    def was_delivered(self, number: int | None) -> bool:
        return number is not None and self._ledger.packets[number].delivered
