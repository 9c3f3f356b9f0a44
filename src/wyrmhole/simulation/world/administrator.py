"""Steps that change the configuration of a host."""

from __future__ import annotations

import dataclasses
import functools
from random import Random
from typing import Any

from wyrmhole.protocol.keys import PresharedKey, PrivateKey
from wyrmhole.simulation import packets
from wyrmhole.simulation.clock import MILLISECOND, SECOND
from wyrmhole.simulation.model.checks import Check, require
from wyrmhole.simulation.world.cast import Cast
from wyrmhole.simulation.world.delivery import Delivery
from wyrmhole.simulation.world.schedule import Call, Schedule
from wyrmhole.simulation.world.settings import PeerSettings
from wyrmhole.wire.prefix import Prefix

ATTEMPT = 5400 * MILLISECOND
"""The time in which a handshake completes that must first wait for Rekey-Timeout."""
CLOCKS = 1.02
"""The factor between two clocks that drift by 1 % in opposite directions."""
WATCH_EVERY = 3 * SECOND


def handshake_age(interval: int, other: int) -> int:
    """Return how old the latest handshake may get while all persistent keepalives arrive.

    The initiator renews with the first keepalive that it sends after 120 s. If the other side's keepalives always come
    first, the initiator sends nothing; it then renews with the first keepalive that it receives after 165 s, or the
    session ends at 179 s and the next keepalive renews it.
    """
    flows = min(each for each in (interval, other) if each)
    if interval and (not other or interval < other):
        return int((120 + flows) * SECOND * CLOCKS) + ATTEMPT
    return int(((165 if flows < 13 else 180) + flows) * SECOND * CLOCKS) + ATTEMPT


class Administrator:
    """Changes the settings of hosts and their interfaces. A change on a sleeping host waits until it wakes."""

    def __init__(self, cast: Cast, schedule: Schedule, delivery: Delivery, random: Random) -> None:
        self._cast = cast
        self._schedule = schedule
        self._delivery = delivery
        self._random = random

    def steps(self) -> dict[str, Call]:
        """Return the steps that this class carries out, by name."""
        return {
            "readd": self.remove_and_add,
            "change_psk": self.change_psk,
            "change_key": self.change_key,
            "change_keepalive": self.change_keepalive,
            "change_routes": self.change_routes,
            "keepalive": self.keepalive,
            "idle": self.idle,
        }

    # Changes that steps and trials make

    def reconfigure(self, a: int, b: int, **changes: Any) -> None:
        """Change host a's settings for peer b, in its file and, if it runs, in its interface."""
        host = self._cast.hosts[a]
        if self._cast.waits(a, functools.partial(self.reconfigure, a, b, **changes)) or b not in host.settings.peers:
            return
        settings = host.settings.peers[b] = dataclasses.replace(host.settings.peers[b], **changes)
        if host.running:
            host.apply_peer(settings)

    def forget(self, a: int, b: int) -> PeerSettings | None:
        """Remove the peer and return its former settings. The host must not be asleep."""
        host = self._cast.hosts[a]
        settings = host.settings.peers.get(b)
        if settings is not None and host.running:
            host.remove_peer(b)
        elif settings is not None:
            del host.settings.peers[b]
        return settings

    def add(self, a: int, settings: PeerSettings) -> None:
        host = self._cast.hosts[a]
        if not self._cast.waits(a, self.add, a, settings) and settings.number not in host.settings.peers:
            settings.public = self._cast.hosts[settings.number].public
            for prefix in settings.prefixes:
                host.settings.take_prefix(prefix)
            host.settings.peers[settings.number] = settings
            if host.running:
                host.apply_peer(settings)

    def readd(self, a: int, b: int, **changes: Any) -> None:
        """Remove peer b from host a and add it again."""
        settings = self.forget(a, b)
        if settings is not None:
            self.add(a, dataclasses.replace(settings, **changes))

    # Steps

    def remove_and_add(self, a: int, b: int, gap: int) -> None:
        """Remove peer b from host a and add it again `gap` ns later."""
        if self._cast.waits(a, self.remove_and_add, a, b, gap):
            return
        settings = self.forget(a, b)
        if settings is not None:
            self._schedule.after(gap, self.add, a, settings)

    def change_psk(self, a: int, b: int, gap: int) -> None:
        """Change the preshared key on one side first, on the other `gap` ns later."""
        psk = PresharedKey(self._random.randbytes(32))
        self.reconfigure(a, b, psk=psk)
        self._schedule.after(gap, self._change_psk, b, a, psk)

    def _change_psk(self, a: int, b: int, psk: PresharedKey) -> None:
        self.reconfigure(a, b, psk=psk)

    def change_key(self, a: int, gap: int) -> None:
        """Give the host a new identity, of which the others learn one by one, within `gap` ns."""
        if self._cast.waits(a, self.change_key, a, gap):
            return
        self._cast.hosts[a].change_key(PrivateKey(self._random.randbytes(32)))
        for number in self._cast.hosts:
            if number != a:
                self._schedule.after(self._random.randrange(gap + 1), self._learn_key, number, a)

    def _learn_key(self, a: int, b: int) -> None:
        if self._cast.waits(a, self._learn_key, a, b):
            return
        settings = self._cast.hosts[a].settings.peers.get(b)
        if settings is not None and settings.public != self._cast.hosts[b].public:
            self.readd(a, b, public=self._cast.hosts[b].public)

    def change_keepalive(self, a: int, b: int, seconds: int, duration: int) -> None:
        self.reconfigure(a, b, keepalive=seconds)
        if seconds:
            self._schedule.after(duration, self.change_keepalive, a, b, 0, 0)

    def keepalive(self, a: int, b: int, interval: int) -> None:
        self.reconfigure(a, b, keepalive=interval)

    def change_routes(self, a: int) -> None:
        """Move half of a random host's network to another peer, and shuffle that peer's prefixes."""
        host = self._cast.hosts[a]
        if not host.settings.peers or self._cast.waits(a, self.change_routes, a):
            return
        owner = self._random.choice(list(host.settings.peers))
        whole = packets.v4_prefix(self._random.choice(list(self._cast.hosts)))
        half = Prefix(4, whole.network | 128, 25)
        prefixes = [prefix for prefix in host.settings.peers[owner].prefixes if prefix != half]
        host.settings.take_prefix(half)
        self._random.shuffle(prefixes)
        self.reconfigure(a, owner, prefixes=[*prefixes, half])

    def idle(self, a: int, b: int, interval: int, other: int, duration: int) -> None:
        """Let host a initiate a session with b, which persistent keepalives then keep alive without data.

        `interval` is that of a, `other` that of b; either may be 0.
        """
        self._delivery.send(a, b)
        self._schedule.after(2 * SECOND, self.keepalive, a, b, interval)
        self._schedule.after(3 * SECOND, self.keepalive, b, a, other)
        # The first packet may have to wait for a handshake, and is answered by a keepalive.
        self._schedule.after(
            25 * SECOND, self._watch_handshake, a, b, handshake_age(interval, other), self._schedule.now + duration
        )

    def _watch_handshake(self, a: int, b: int, most: int, end: int) -> None:
        """Check every 3 s, on both sides, the age of the handshake that `wg show` displays (L11)."""
        for host, other in ((self._cast.hosts[a], self._cast.hosts[b]), (self._cast.hosts[b], self._cast.hosts[a])):
            peer = host.interface.peer(other.public)
            age = most + 1 if peer is None else host.clock.wall() - peer.last_handshake_wall
            text = f"host {host.number}: the latest handshake with {other.number} is {age / SECOND:.1f} s old"
            require(age <= most, Check.KEEPALIVES_RENEW_SESSIONS, text)
        if self._schedule.now + WATCH_EVERY <= end:
            self._schedule.after(WATCH_EVERY, self._watch_handshake, a, b, most, end)
