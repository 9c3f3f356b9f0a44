"""A record of what all hosts of a world did over all their lives: packets, sending keys, and genuine messages.

A run may last for weeks of virtual time, so the ledger must not grow with it. It keeps whatever can still be delivered
or accepted. Of an ended session it keeps only a fingerprint of the key, until about 50,000 more sessions have ended.
The world calls `forget` at each audit.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

from wyrmhole.simulation.clock import SECOND
from wyrmhole.simulation.model.checks import Check, Violation, require
from wyrmhole.simulation.packets import PacketRecord
from wyrmhole.wire.messages import RESPONSE_RECEIVER_OFFSET, SENDER_OFFSET, before_mac1

LifeId = tuple[int, int]
"""(host number, number of the life, from 1)."""
MEMORY = 1200 * SECOND
"""How long a packet or a handshake message is kept after its last use. A session ends after 180 s, and a trial looks
back for 600 s. A packet that is delivered after this time is unknown to the ledger, which is a violation too."""
RETIRED = 1 << 16
"""Slots in one table of `RetiredKeys`, each of 16 bytes."""


@dataclass(slots=True)
class KeyUse:
    """One sending key: the life that owns it, and the counter that must be used next."""

    life: LifeId
    next_counter: int = 0


class RetiredKeys:
    """Remembers which life owned a sending key that is no longer in use, for at least the latest 49,152 such keys.

    There are two hash tables of fixed size, each with an array of 64-bit fingerprints and an array of lives. When the
    newer table is three quarters full, it replaces the older one, and a new table is begun.
    """

    def __init__(self, size: int = RETIRED) -> None:
        self._size = size
        self._tables = (self._empty(), self._empty())
        self._used = 0

    def _empty(self) -> tuple[array[int], array[int]]:
        return array("Q", bytes(8 * self._size)), array("Q", bytes(8 * self._size))

    def add(self, key: bytes, life: LifeId) -> None:
        if self._used >= self._size // 4 * 3:
            self._tables, self._used = (self._empty(), self._tables[0]), 0
        fingerprints, lives = self._tables[0]
        fingerprint = _fingerprint(key)
        slot = self._slot(fingerprints, fingerprint)
        self._used += not fingerprints[slot]
        fingerprints[slot], lives[slot] = fingerprint, life[0] << 48 | life[1]

    def life_of(self, key: bytes) -> LifeId | None:
        fingerprint = _fingerprint(key)
        for fingerprints, lives in self._tables:
            slot = self._slot(fingerprints, fingerprint)
            if fingerprints[slot]:
                return lives[slot] >> 48, lives[slot] & (1 << 48) - 1
        return None

    def _slot(self, fingerprints: array[int], fingerprint: int) -> int:
        """Return the slot of the fingerprint, or the empty slot where it belongs."""
        slot = fingerprint % self._size
        while fingerprints[slot] not in (0, fingerprint):
            slot = (slot + 1) % self._size
        return slot


@dataclass(frozen=True, slots=True)
class Genuine:
    """A handshake message that a host made.

    `to` is the public key of the receiver; it is None for a cookie reply, whose receiver is unproven. `secret` is the
    preshared key of a response, `cookie` the cookie inside a cookie reply.
    """

    kind: int
    sender: bytes
    to: bytes | None
    stamp: bytes = b""
    secret: bytes = b""
    cookie: bytes = b""


class Ledger:
    """The record of a world. `digest` hashes everything that happened, in order: equal seeds give equal digests."""

    def __init__(self) -> None:
        self.packets: dict[int, PacketRecord] = {}
        self.owners: dict[bytes, int] = {}
        """The host that has or had each public key."""
        self.keys: dict[bytes, KeyUse] = {}
        """The sending keys of sessions that are in a slot."""
        self._genuine: dict[bytes, tuple[Genuine, int]] = {}
        """Each message with the time when it was made or last seen in flight, by its authenticated part."""
        self._retired = RetiredKeys()
        self.now = 0
        """The world's time at the last `forget`."""
        self.counts: Counter[str] = Counter()
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def trace(self, now: int, host: int, data: bytes) -> None:
        self._hash.update(now.to_bytes(8, "little") + host.to_bytes(2, "little") + data)

    def made(self, message: bytes, genuine: Genuine) -> None:
        self._genuine[_authenticated_part(message)] = genuine, self.now

    def genuine(self, message: bytes) -> Genuine | None:
        """Return the record of a message that a host made, even if its macs were replaced on the way."""
        found = self._genuine.get(_authenticated_part(message))
        return None if found is None else found[0]

    def new_key(self, key: bytes, life: LifeId) -> None:
        use = self.keys.get(key)
        former = self._retired.life_of(key) if use is None else use.life
        if former is not None:
            if former != life:
                raise Violation(
                    Check.LIVES_SHARE_NOTHING, f"host {life[0]}: life {life} reuses a sending key of life {former}"
                )
            raise Violation(Check.NONCES_ARE_UNIQUE, f"host {life[0]} installed the same sending key twice")
        self.keys[key] = KeyUse(life)

    def retire_key(self, key: bytes) -> None:
        """Record that the key's session left its slot: nothing can be sealed under the key any more."""
        self._retired.add(key, self.keys.pop(key).life)

    def seal(self, key: bytes, counter: int) -> None:
        """Record that a datagram under this key and counter left."""
        use = self.keys[key]
        require(
            counter >= use.next_counter,
            Check.NONCES_ARE_UNIQUE,
            f"host {use.life[0]} sealed with counter {counter} twice",
        )
        require(
            counter == use.next_counter,
            Check.COUNTERS_HAVE_NO_GAP,
            f"host {use.life[0]}: counter {counter} follows {use.next_counter - 1}",
        )
        use.next_counter = counter + 1

    def forget(self, now: int, staged: Set[int], in_flight: list[bytes]) -> None:
        """Forget old packets and messages that can no longer be delivered or accepted.

        `staged` has the numbers of packets that wait for a keypair, `in_flight` the handshake messages that may still
        arrive, be replayed or be taken from a queue.
        """
        self.now = now
        oldest = now - MEMORY
        for number in [number for number, record in self.packets.items() if record.at < oldest]:
            if number not in staged:
                del self.packets[number]
        for part in map(_authenticated_part, in_flight):
            if part in self._genuine:
                self._genuine[part] = self._genuine[part][0], now
        for part in [part for part, (_, at) in self._genuine.items() if at < oldest]:
            del self._genuine[part]


def _fingerprint(key: bytes) -> int:
    """Take eight bytes of the key, which is random already; 0 marks an empty slot."""
    return int.from_bytes(key[:8], "little") or 1


def _authenticated_part(message: bytes) -> bytes:
    """Return the part of a handshake message that Noise authenticates.

    This excludes the indices and the macs: anybody who knows the receiver's public key can compute a mac1.
    """
    if message[0] == 3:
        return message
    return before_mac1(message)[SENDER_OFFSET + 4 if message[0] == 1 else RESPONSE_RECEIVER_OFFSET + 4 :]
