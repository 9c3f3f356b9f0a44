"""What all hosts of a world did, over all their lives: which keys sealed what, which messages are genuine."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

from wyrmhole.simulation.checks import Violation, require
from wyrmhole.simulation.packets import PacketRecord
from wyrmhole.wire.messages import RESPONSE_RECEIVER_OFFSET, SENDER_OFFSET, before_mac1

LifeId = tuple[int, int]
"""(host number, how many lives it had before)."""


@dataclass(slots=True)
class KeyUse:
    """One sending key: who has it, and the counter that must come next."""

    life: LifeId
    next_counter: int = 0


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
        self._genuine: dict[bytes, Genuine] = {}
        self.keys: dict[bytes, KeyUse] = {}
        self.counts: Counter[str] = Counter()
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def trace(self, now: int, host: int, what: bytes) -> None:
        self._hash.update(now.to_bytes(8, "little") + host.to_bytes(2, "little") + what)

    def made(self, message: bytes, genuine: Genuine) -> None:
        self._genuine[_said(message)] = genuine

    def genuine(self, message: bytes) -> Genuine | None:
        """What a host made, whatever somebody did to its macs."""
        return self._genuine.get(_said(message))

    def new_key(self, key: bytes, life: LifeId) -> None:
        former = self.keys.get(key)
        if former is not None:
            if former.life != life:
                raise Violation("I27", f"host {life[0]}: a sending key of life {former.life} is used again by {life}")
            raise Violation("I1", f"host {life[0]} installed one sending key twice")
        self.keys[key] = KeyUse(life)

    def seal(self, key: bytes, counter: int) -> None:
        """A datagram under this key and counter left."""
        use = self.keys[key]
        require(counter >= use.next_counter, "I1", f"host {use.life[0]} sealed with counter {counter} again")
        require(counter == use.next_counter, "I2", f"host {use.life[0]}: {counter} follows {use.next_counter - 1}")
        use.next_counter = counter + 1


def _said(message: bytes) -> bytes:
    """The part of a handshake message that Noise authenticates: not the indices, and not the macs, which everybody
    who knows the receiver's public key can make."""
    if message[0] == 3:
        return message
    return before_mac1(message)[SENDER_OFFSET + 4 if message[0] == 1 else RESPONSE_RECEIVER_OFFSET + 4 :]
