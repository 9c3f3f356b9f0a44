"""Two interfaces and the network between them, under actions of administrators, programs and the network.

A command is one byte and its arguments. Keys and randomness are fixed, and results of Diffie-Hellman are cached.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from fuzz.handshake import STRANGER, remember_diffie_hellman
from fuzz.reader import Reader
from tests.support.world import Flight, Node, World
from wyrmhole.protocol.constants import SECOND, UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.keys import PresharedKey, PrivateKey

remember_diffie_hellman()

_MOST_COMMANDS = 40
_MILLISECOND = 1_000_000
_WAITS = (
    1,
    20,
    100,
    1_000,
    5_000,
    5_400,
    10_000,
    15_400,
    60_000,
    119_999,
    120_001,
    165_000,
    180_000,
    540_001,
)
_REKEY_TIMEOUT = 5 * SECOND
_PSK = PresharedKey(b"\x07" * 32)


class Play:
    """The world, the texts sent so far, and the fate of the next datagrams."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.world = World(seed=11)
        self.nodes = self.world.pair()
        self.sent: list[set[bytes]] = [set(), set()]
        self.number = 0
        self.fate = 0
        self.strict_since = [self.world.now, self.world.now]
        """The time of each node's last change of configuration. A peer that is added again may initiate at once."""
        self.world.filters.append(self._suffer)

    def _suffer(self, flight: Flight) -> list[Flight]:
        fate = self.fate & 7
        if fate == 1:
            return []
        if fate == 2:
            return [flight, flight]
        if fate == 3:
            self.world.carry(flight, 3 * SECOND)
            return []
        if fate == 4:
            at = self.fate >> 3
            data = bytearray(flight.data)
            data[at % len(data)] ^= 1 << (at & 7)
            return [Flight(flight.at, flight.sender, flight.source, flight.destination, bytes(data))]
        if fate == 5:
            return [Flight(flight.at, flight.sender, STRANGER, flight.destination, flight.data)]
        return [flight]

    def send(self, sender: int) -> None:
        self.number += 1
        text = b"%d" % self.number
        self.sent[sender].add(text)
        node, other = self.nodes[sender], self.nodes[1 - sender]
        if node.interface.peer(other.key.public_key()) is not None:
            node.send(other, text)

    def replay(self, node: int) -> None:
        wire = self.world.wire
        if wire:
            flight = wire[self.reader.integer(2) % len(wire)]
            target = self.nodes[node]
            target.plane.receive(flight.data, STRANGER if self.reader.byte() & 1 else flight.source)
            target.settle()

    def forge(self, node: int) -> None:
        data = self.reader.block()
        self.nodes[node].plane.receive(data, STRANGER)
        self.nodes[node].settle()

    def change(self, node: int) -> None:
        self.strict_since[node] = self.world.now
        changed, other = self.nodes[node], self.nodes[1 - node]
        peer = changed.interface.peer(other.key.public_key())
        kind = self.reader.choose(7)
        now = self.world.now
        if kind == 0:
            changed.interface.down()
        elif kind == 1:
            changed.interface.up(now)
        elif kind == 2 and peer is not None:
            changed.interface.set_preshared_key(peer, _PSK if self.reader.byte() & 1 else None)
        elif kind == 3 and peer is not None:
            changed.interface.set_persistent_keepalive(peer, self.reader.byte() & 0xF0, now)
        elif kind == 4 and peer is not None:
            changed.interface.remove_peer(peer)
        elif kind == 5 and peer is None:
            for former in list(changed.interface.peers):
                changed.interface.remove_peer(former)
            changed.know(other)
        elif kind == 6:
            self._rekey(changed, PrivateKey(bytes([self.reader.byte() | 1] * 32)))
        changed.settle()

    def _rekey(self, node: Node, key: PrivateKey) -> None:
        if all(other.key.public_key() != key.public_key() for other in self.nodes):
            node.interface.set_private_key(key, self.world.now)
            node.key = key

    def load(self, node: int) -> None:
        self.nodes[node].plane.queue_depth = UNDER_LOAD_QUEUE_DEPTH * (self.reader.byte() & 1)

    def wait(self, _node: int) -> None:
        self.world.run(_WAITS[self.reader.choose(len(_WAITS))] * _MILLISECOND)

    def set_fate(self, _node: int) -> None:
        self.fate = self.reader.integer(2)

    def commands(self) -> tuple[Callable[[int], None], ...]:
        return self.send, self.wait, self.set_fate, self.replay, self.send, self.change, self.load, self.forge

    def run(self) -> None:
        commands = self.commands()
        for _ in range(_MOST_COMMANDS):
            if self.reader.is_done:
                return
            command = self.reader.byte()
            commands[command & 7](command >> 3 & 1)
            self.check()

    # Invariants

    def check(self) -> None:
        for number, node in enumerate(self.nodes):
            received = node.received
            assert len(set(received)) == len(received), "I3: delivered twice"
            assert set(received) <= self.sent[1 - number] | {b"after all"}, "I4: delivered without being sent"
            indices = [peer.keypair_indices for peer in node.interface.peers]
            assert len(node.plane.indices) <= 3 * max(len(indices), 1), "I14: more keypairs than slots"
            assert all(len(peer.staged) <= 128 for peer in node.plane.peers.values()), "I17: more than 128 staged"
        self._check_initiations()

    def _check_initiations(self) -> None:
        """Check that there is at most one initiation in Rekey-Timeout, whatever its cause (I7)."""
        for number, node in enumerate(self.nodes):
            times = [flight.at for flight in self.world.sent(1, node.name, since=self.strict_since[number] + 1)]
            assert all(b - a >= _REKEY_TIMEOUT for a, b in pairwise(times)), (node.name, times)

    def heal(self) -> None:
        """End all faults and correct the configuration, then check that a packet arrives (L1)."""
        self.world.filters.clear()
        # Datagrams in flight may still move endpoints.
        self.world.run(5 * SECOND)
        for number, node in enumerate(self.nodes):
            other = self.nodes[1 - number]
            node.plane.queue_depth = 0
            for peer in list(node.interface.peers):
                if peer.public_key != other.key.public_key():
                    node.interface.remove_peer(peer)
            peer = node.interface.peer(other.key.public_key()) or node.know(other)
            node.interface.set_preshared_key(peer, None)
            node.interface.set_endpoint(peer, other.endpoint, self.world.now)
            node.interface.up(self.world.now)
            node.settle()
        # Sessions made under another configuration end within this time.
        self.world.run(200 * SECOND)
        self.nodes[0].send(self.nodes[1], b"after all")
        self.world.run(16 * SECOND)
        assert b"after all" in self.nodes[1].received, "L1: not delivered after healing"


def TestOneInput(data: bytes) -> None:
    """The invariants hold after every command (I2 in the model plane, I3, I4, I7, I14, I17), and data arrives when the
    network works again (L1)."""
    play = Play(Reader(data))
    play.run()
    play.heal()
