"""An attacker that hears everything and knows all public keys. It replays, reflects, splices, forges and floods.

It has no private key, so nothing that it makes may be accepted. A genuine datagram that it replays before the receiver
has seen it is accepted from any source, as the protocol demands (rule M44).
"""

from __future__ import annotations

from random import Random

from wyrmhole.protocol.cookie import cookie_key, mac1_key
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.protocol.primitives import InvalidTag, mac, xopen
from wyrmhole.simulation.world.network import Captured, Network
from wyrmhole.wire.endpoint import SockAddr
from wyrmhole.wire.messages import INITIATION_SIZE, RESPONSE_SIZE, CookieReply, before_mac2, mac1_of

_LENGTHS = (0, 1, 3, 4, 31, 32, 33, 63, 64, 65, 91, 92, 93, 147, 148, 149, 200, 1500, 65_507)
_MACS = 32
_MAILBOXES = 256
Attack = tuple[SockAddr, bytes]
"""(claimed source, datagram)."""


class Attacker:
    def __init__(self, network: Network, random: Random) -> None:
        self.mail: dict[SockAddr, bytes] = {}
        """The last datagram that arrived at each of the attacker's addresses."""
        self._network = network
        self._random = random

    def hears(self, address: SockAddr, data: bytes) -> None:
        """Keep a datagram that was sent to an address without a host."""
        if len(self.mail) >= _MAILBOXES:
            self.mail.clear()
        self.mail[address] = data

    def address(self) -> SockAddr:
        random = self._random
        if random.random() < 0.2:
            return (f"2001:db8::{random.randrange(1, 0xFFFF):x}", random.randrange(1, 65_536), 0, 0)
        return (f"198.51.100.{random.randrange(1, 255)}", random.randrange(1, 65_536))

    def garbage(self, count: int) -> list[Attack]:
        """Return random datagrams of all types and lengths."""
        random = self._random
        made: list[Attack] = []
        for _ in range(count):
            kind = bytes((random.choice((0, 1, 2, 3, 4, 5, 255)), 0, random.choice((0, 0, 1)), 0))
            made.append((self.address(), (kind + random.randbytes(random.choice(_LENGTHS)))[: random.choice(_LENGTHS)]))
        return made

    def forged(self, public: PublicKey, count: int) -> list[Attack]:
        """Return altered copies of captured datagrams, and random initiations with a valid mac1."""
        random, heard = self._random, list(self._network.captured)
        made: list[Attack] = []
        for _ in range(count):
            if heard and random.random() < 0.7:
                made.append((self._source(heard[random.randrange(len(heard))].source), self._twist(public, heard)))
            else:
                made.append((self.address(), self.initiation(public)))
        return made

    def _source(self, genuine: SockAddr) -> SockAddr:
        return genuine if self._random.random() < 0.5 else self.address()

    def _twist(self, public: PublicKey, heard: list[Captured]) -> bytes:
        """Return an altered copy of one captured datagram. A handshake message gets a new valid mac1."""
        random = self._random
        data = bytearray(random.choice(heard).data)
        if data[0] == 4 and len(data) >= 32:
            choice = random.randrange(3)
            if choice == 0:
                data[8:16] = random.choice((2**64 - 1, 2**40, 8192, 0)).to_bytes(8, "little")
            elif choice == 1:
                data[-1 - random.randrange(16)] ^= 1 << random.randrange(8)
            else:
                other = random.choice(heard).data
                data[4:8] = other[4:8].ljust(4, b"\1")
        elif len(data) > 12:
            data[4 + random.randrange(len(data) - 4)] ^= 1 << random.randrange(8)
        if data[0] in (1, 2) and len(data) in (INITIATION_SIZE, RESPONSE_SIZE):
            data[-_MACS:-16] = mac(mac1_key(public), bytes(data[:-_MACS]))
        return bytes(data)

    def initiation(self, public: PublicKey) -> bytes:
        """Return random bytes as an initiation with a valid mac1, which costs the receiver one Diffie-Hellman."""
        body = b"\1\0\0\0" + self._random.randbytes(112)
        return body + mac(mac1_key(public), body) + bytes(16)

    def flood(self, public: PublicKey, count: int, sources: int) -> list[Attack]:
        addresses = [self.address() for _ in range(sources)]
        return [(addresses[number % sources], self.initiation(public)) for number in range(count)]

    def with_cookies(self, public: PublicKey, sent: list[Attack], each: int) -> list[Attack]:
        """Return `each` more initiations, with a valid mac2, from every address that received a cookie reply."""
        made: list[Attack] = []
        for address, message in sent:
            reply = self.mail.get(address)
            if reply is None or reply[0] != 3:
                continue
            cookie = _cookie_of(public, message, CookieReply.parse(reply))
            if cookie is not None:
                fresh = [before_mac2(self.initiation(public)) for _ in range(each)]
                made += [(address, each_message + mac(cookie, each_message)) for each_message in fresh]
        return made


def _cookie_of(public: PublicKey, message: bytes, reply: CookieReply) -> bytes | None:
    """Return the cookie in the reply to the message, or None if the reply answers another message."""
    try:
        return xopen(cookie_key(public), reply.nonce, reply.encrypted_cookie, mac1_of(message))
    except InvalidTag:
        return None
