"""Steps in which programs send packets."""

from __future__ import annotations

from wyrmhole.simulation.clock import SECOND
from wyrmhole.simulation.world.delivery import Delivery
from wyrmhole.simulation.world.faults import Faults
from wyrmhole.simulation.world.host import Host
from wyrmhole.simulation.world.network import Weather
from wyrmhole.simulation.world.schedule import Call, Schedule


class Traffic:
    """Sends packets of programs on the hosts."""

    def __init__(self, hosts: dict[int, Host], schedule: Schedule, delivery: Delivery, faults: Faults) -> None:
        self._hosts = hosts
        self._schedule = schedule
        self._delivery = delivery
        self._faults = faults

    def steps(self) -> dict[str, Call]:
        """Return the steps that this class carries out, by name."""
        return {
            "talk": self.talk,
            "burst": self.talk,
            "deluge": self.deluge,
            "spoof_inside": self.spoof_inside,
        }

    def talk(self, a: int, b: int, count: int, spacing: int, size: int, v6: bool, answered: bool) -> None:
        if not count:
            return
        self._delivery.send(a, b, size, v6=v6)
        if answered:
            self._schedule.after(spacing // 2, self.talk, b, a, 1, 0, size, v6, False)
        if count > 1:
            self._schedule.after(spacing, self.talk, a, b, count - 1, spacing, size, v6, answered)

    def deluge(self, a: int, b: int, count: int, spacing: int, weather: Weather) -> None:
        """Send so many packets that thousands can overtake one.

        The first packet, a second earlier, starts a session.
        """
        self._delivery.send(a, b)
        self._schedule.after(SECOND, self._faults.weather, weather, count * spacing + SECOND)
        self._schedule.after(SECOND, self.talk, a, b, count, spacing, 48, False, False)

    def spoof_inside(self, a: int, b: int) -> None:
        """Send a packet with the inner source address of a third host."""
        others = [number for number in self._hosts if number not in (a, b)]
        self._delivery.send(a, b, as_host=others[0] if others else b)
