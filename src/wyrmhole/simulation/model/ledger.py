"""What all hosts of a world did, over all their lives: which keys sealed what, which messages are genuine.

A run may last for weeks, so nothing here grows with it. What can still be delivered or accepted is kept whole; of a
session that ended a fingerprint of its key stays, until 50,000 more have ended. `forget` is called now and then.
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
"""(host number, how many lives it had before)."""
MEMORY = 1200 * SECOND
"""How long a packet or a handshake message is kept after its last use. A session ends after 180 s and a trial looks
back for 600 s; what is delivered later is unknown, and that is a violation too."""
RETIRED = 1 << 16
"""Places in one table of `RetiredKeys`, each of 16 bytes."""


@dataclass(slots=True)
class KeyUse:
    """One sending key: who has it, and the counter that must come next."""

    life: LifeId
    next_counter: int = 0


class RetiredKeys:
    """Which life had a sending key that is no longer in use: of the latest 49,152 keys, and of up to as many more.

    Two hash tables of fixed size, each an array of fingerprints of 64 bits and one of lives. A full table becomes the
    former one, and the one before that is forgotten."""

    def __init__(self, size: int = RETIRED) -> None:
        self._size = size
        self._tables = (self._empty(), self._empty())
        self._used = 0

    def _empty(self) -> tuple[array[int], array[int]]:
        return array("Q", bytes(8 * self._size)), array("Q", bytes(8 * self._size))

    def add(self, key: bytes, life: LifeId) -> None:
        if self._used >= self._size // 4 * 3:
            self._tables, self._used = (self._empty(), self._tables[0]), 0
        marks, lives = self._tables[0]
        mark = _fingerprint(key)
        place = self._place(marks, mark)
        self._used += not marks[place]
        marks[place], lives[place] = mark, life[0] << 48 | life[1]

    def life_of(self, key: bytes) -> LifeId | None:
        mark = _fingerprint(key)
        for marks, lives in self._tables:
            place = self._place(marks, mark)
            if marks[place]:
                return lives[place] >> 48, lives[place] & (1 << 48) - 1
        return None

    def _place(self, marks: array[int], mark: int) -> int:
        """Where the fingerprint is, or the empty place where it belongs."""
        place = mark % self._size
        while marks[place] not in (0, mark):
            place = (place + 1) % self._size
        return place


@dataclass(frozen=True, slots=True)
class Genuine:
    """A handshake message that a host made. `secret` is the preshared key that it stands for, `cookie` what a cookie
    reply holds. `to` is the public key it was made for; None: whoever sent the message that earned the cookie."""

    kind: int
    sender: bytes
    to: bytes | None
    stamp: bytes = b""
    secret: bytes = b""
    cookie: bytes = b""


class Ledger:
    """`digest` is the hash over everything that happened, in order: equal seeds give equal digests."""

    def __init__(self) -> None:
        self.packets: dict[int, PacketRecord] = {}
        self.owners: dict[bytes, int] = {}
        """Which host has, or had, a public key."""
        self.keys: dict[bytes, KeyUse] = {}
        """Those of sessions that are in some slot."""
        self._genuine: dict[bytes, tuple[Genuine, int]] = {}
        """With the time when it was made or last seen under way."""
        self._retired = RetiredKeys()
        self.now = 0
        """The world's time at the last `forget`."""
        self.counts: Counter[str] = Counter()
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def trace(self, now: int, host: int, what: bytes) -> None:
        self._hash.update(now.to_bytes(8, "little") + host.to_bytes(2, "little") + what)

    def made(self, message: bytes, genuine: Genuine) -> None:
        self._genuine[_said(message)] = genuine, self.now

    def genuine(self, message: bytes) -> Genuine | None:
        """What a host made, whatever somebody did to its macs."""
        found = self._genuine.get(_said(message))
        return None if found is None else found[0]

    def new_key(self, key: bytes, life: LifeId) -> None:
        use = self.keys.get(key)
        former = self._retired.life_of(key) if use is None else use.life
        if former is not None:
            if former != life:
                raise Violation(
                    Check.LIVES_SHARE_NOTHING, f"host {life[0]}: a sending key of life {former} is used again by {life}"
                )
            raise Violation(Check.NONCES_ARE_UNIQUE, f"host {life[0]} installed one sending key twice")
        self.keys[key] = KeyUse(life)

    def retire_key(self, key: bytes) -> None:
        """Its session left the last slot: nothing can be sealed under it any more."""
        self._retired.add(key, self.keys.pop(key).life)

    def seal(self, key: bytes, counter: int) -> None:
        """A datagram under this key and counter left."""
        use = self.keys[key]
        require(
            counter >= use.next_counter,
            Check.NONCES_ARE_UNIQUE,
            f"host {use.life[0]} sealed with counter {counter} again",
        )
        require(
            counter == use.next_counter,
            Check.COUNTERS_HAVE_NO_GAP,
            f"host {use.life[0]}: {counter} follows {use.next_counter - 1}",
        )
        use.next_counter = counter + 1

    def forget(self, now: int, staged: Set[int], under_way: list[bytes]) -> None:
        """Drop what nothing can come of any more. `staged` are the numbers of packets that wait for a key, `under_way`
        the handshake messages that may still arrive, be replayed or be taken from a queue."""
        self.now = now
        oldest = now - MEMORY
        for number in [number for number, record in self.packets.items() if record.at < oldest]:
            if number not in staged:
                del self.packets[number]
        for said in map(_said, under_way):
            if said in self._genuine:
                self._genuine[said] = self._genuine[said][0], now
        for said in [said for said, (_, at) in self._genuine.items() if at < oldest]:
            del self._genuine[said]


def _fingerprint(key: bytes) -> int:
    """Session keys are random already; 0 is an empty place."""
    return int.from_bytes(key[:8], "little") or 1


def _said(message: bytes) -> bytes:
    """The part of a handshake message that Noise authenticates: not the indices, and not the macs, which everybody
    who knows the receiver's public key can make."""
    if message[0] == 3:
        return message
    return before_mac1(message)[SENDER_OFFSET + 4 if message[0] == 1 else RESPONSE_RECEIVER_OFFSET + 4 :]
