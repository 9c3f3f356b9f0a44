"""Steps in which the attacker acts."""

from __future__ import annotations

from random import Random

from wyrmhole.simulation.clock import MILLISECOND
from wyrmhole.simulation.world.attacker import Attack, Attacker
from wyrmhole.simulation.world.delivery import Delivery
from wyrmhole.simulation.world.host import Host
from wyrmhole.simulation.world.network import Captured, Network
from wyrmhole.simulation.world.schedule import Call, Schedule

QUIET_AGAIN = 4200 * MILLISECOND
"""The time until a source that flooded counts as quiet again."""


class Assaults:
    """Delivers the attacker's datagrams to hosts."""

    def __init__(
        self,
        hosts: dict[int, Host],
        schedule: Schedule,
        network: Network,
        attacker: Attacker,
        delivery: Delivery,
        random: Random,
    ) -> None:
        self._hosts = hosts
        self._schedule = schedule
        self._network = network
        self._attacker = attacker
        self._delivery = delivery
        self._random = random

    def steps(self) -> dict[str, Call]:
        """Return the steps that this class carries out, by name."""
        return {
            "replay": self.replay,
            "reflect": self.reflect,
            "garbage": self.garbage,
            "forge": self.forge,
            "flood": self.flood,
        }

    def replay(self, a: int, count: int) -> None:
        """Replay captured datagrams, from their own source or from another."""
        for heard in self._captured(count):
            source = heard.source if self._random.random() < 0.5 else self._attacker.address()
            self._delivery.deliver(heard.destination, source, [heard.data])

    def reflect(self, a: int, count: int) -> None:
        """Send captured datagrams back to the hosts that sent them."""
        for heard in self._captured(count):
            self._delivery.deliver(heard.source, heard.destination, [heard.data])

    def _captured(self, count: int) -> list[Captured]:
        captured = self._network.captured
        return [captured[self._random.randrange(len(captured))] for _ in range(count)] if captured else []

    def garbage(self, a: int, count: int) -> None:
        self._hosts[a].receive_garbage(self._attacker.garbage(count))

    def forge(self, a: int, count: int) -> None:
        host = self._hosts[a]
        for source, data in self._attacker.forged(host.public, count):
            host.receive(source, [data])

    def flood(self, a: int, count: int, sources: int) -> None:
        """Flood the host with initiations that have a valid mac1.

        When the sources count as quiet again, flood it once more and then use the cookies that the sources earned.
        """
        self._schedule.after(QUIET_AGAIN, self._flood_again, a, count, self.flood_once(a, count, sources))

    def flood_once(self, a: int, count: int, sources: int) -> list[Attack]:
        host = self._hosts[a]
        sent = self._attacker.flood(host.public, count, sources)
        host.receive_garbage(sent)
        return sent

    def _flood_again(self, a: int, count: int, sent: list[Attack]) -> None:
        host = self._hosts[a]
        proved = self._attacker.with_cookies(host.public, sent, each=1)
        host.receive_garbage(self._attacker.flood(host.public, count, 1) + proved)
