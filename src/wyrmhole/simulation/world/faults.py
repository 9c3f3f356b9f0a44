"""Steps in which the network or a host fails."""

from __future__ import annotations

import itertools

from wyrmhole.simulation.world.cast import Cast
from wyrmhole.simulation.world.host import PORT
from wyrmhole.simulation.world.network import Network, Weather
from wyrmhole.simulation.world.schedule import Call, Schedule
from wyrmhole.wire.endpoint import Endpoint


class Faults:
    """Causes faults. A fault that has a duration ends by itself."""

    def __init__(self, cast: Cast, schedule: Schedule, network: Network) -> None:
        self._cast = cast
        self._schedule = schedule
        self._network = network
        self._roams = itertools.count(1)

    def steps(self) -> dict[str, Call]:
        """Return the steps that this class carries out, by name."""
        return {
            "weather": self.weather,
            "cut": self.cut,
            "hole": self.hole,
            "roam": self.roam,
            "suspend": self.suspend,
            "wall": self.wall,
            "crash": self.crash,
            "toggle": self.toggle,
            "busy": self.busy,
            "fail_sends": self.fail_sends,
            "fail_writes": self.fail_writes,
            "stale_sources": self.stale_sources,
        }

    def weather(self, weather: Weather, duration: int) -> None:
        self._network.weather = weather
        self._schedule.after(duration, self._clear_weather, weather)

    def _clear_weather(self, weather: Weather) -> None:
        if self._network.weather is weather:
            self._network.weather = Weather()

    def cut(self, a: int, b: int, duration: int) -> None:
        """Cut one direction; another step may cut the opposite one."""
        self._network.cuts[a, b] = self._schedule.now + duration

    def hole(self, a: int, b: int, duration: int, size: int) -> None:
        self._network.holes[a, b] = (self._schedule.now + duration, size)

    def roam(self, a: int) -> None:
        """Give the host another address, or its NAT another port."""
        host = self._cast.hosts[a]
        if a in self._network.nats:
            self._network.rebind(a)
            return
        host.address = Endpoint(f"192.0.{3 + next(self._roams) % 200}.{a}", PORT)
        self._network.place(a, host.address)
        self.stale_sources(a)

    def suspend(self, a: int, duration: int) -> None:
        host = self._cast.hosts[a]
        if host.running and host.awake:
            host.suspend()
            self._schedule.after(duration, self._resume, a, host.lives)

    def _resume(self, a: int, life: int) -> None:
        host = self._cast.hosts[a]
        if host.running and host.lives == life and not host.awake:
            host.resume()
            self._cast.catch_up(a)

    def wall(self, a: int, jump: int) -> None:
        self._cast.hosts[a].clock.wall_offset += jump

    def crash(self, a: int, duration: int) -> None:
        host = self._cast.hosts[a]
        if host.running:
            host.crash()
            self._schedule.after(duration, self._cast.restart, a)

    def toggle(self, a: int, duration: int) -> None:
        """Take the TUN down, and up again `duration` ns later."""
        host = self._cast.hosts[a]
        if host.running and host.awake and host.interface.is_up:
            host.down()
            self._schedule.after(duration, self._up, a, host.lives)

    def _up(self, a: int, life: int) -> None:
        host = self._cast.hosts[a]
        if self._cast.waits(a, self._up, a, life):
            return
        if host.running and host.lives == life and not host.interface.is_up:
            host.up()

    def busy(self, a: int, duration: int) -> None:
        """Keep the control thread busy: packets pass, reports wait."""
        host = self._cast.hosts[a]
        host.busy_until = host.now + duration
        self._cast.wake(host, self._schedule.now + duration)

    def fail_sends(self, a: int, count: int) -> None:
        if self._cast.hosts[a].running:
            self._cast.hosts[a].bind.failing = count

    def fail_writes(self, a: int, count: int) -> None:
        if self._cast.hosts[a].running:
            self._cast.hosts[a].tun.failing = count

    def stale_sources(self, a: int) -> None:
        if self._cast.hosts[a].running and not self._cast.waits(a, self.stale_sources, a):
            self._cast.hosts[a].routes_changed()
