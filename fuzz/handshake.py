"""A device under handshake messages that are genuine but for some edits, or invented with a valid mac1.

Keys and randomness are fixed, and the results of Diffie-Hellman remembered: the fuzzer is after the logic around them,
and gets there thirty times as often.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fuzz.reader import Reader
from tests.support.world import Node, World
from wyrmhole.protocol import exchange, keys, noise, primitives
from wyrmhole.protocol.constants import UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.cookie import mac1_key
from wyrmhole.protocol.events import CookieReceived, CookieReplySent, HandshakeRefused
from wyrmhole.protocol.primitives import mac
from wyrmhole.wire import messages
from wyrmhole.wire.endpoint import Endpoint

STRANGER = Endpoint("198.51.100.9", 9999)


class _Library:
    """In the place of the library's class: keys made once, which costs as much as an exchange."""

    from_private_bytes = staticmethod(lru_cache(maxsize=4096)(X25519PrivateKey.from_private_bytes))


@lru_cache(maxsize=4096)
def _dh(private: X25519PrivateKey, public: bytes) -> bytes:
    return primitives.dh(private, public)


REPLACED = (
    (noise, "dh", _dh),
    (exchange, "dh", _dh),
    (noise, "X25519PrivateKey", _Library),
    (keys, "X25519PrivateKey", _Library),
)


def remember_diffie_hellman() -> None:
    """For the whole process."""
    for module, name, value in REPLACED:
        setattr(module, name, value)


def edited(reader: Reader, message: bytes, receiver: Node) -> bytes:
    """The message with up to 15 bytes changed; mac1 is made right again unless told otherwise."""
    out = bytearray(message)
    shape = reader.byte()
    for _ in range(shape & 15):
        out[reader.byte() % len(out)] ^= reader.byte()
    if shape & 16 or len(out) < 32 or out[0] == messages.MESSAGE_COOKIE_REPLY:
        return bytes(out)
    covered = messages.before_mac1(bytes(out))
    return covered + mac(mac1_key(receiver.key.public_key()), covered) + messages.mac2_of(bytes(out))


REPORTS = (CookieReceived, CookieReplySent, HandshakeRefused)
"""For the log: what they are about is compared by itself."""


def give(node: Node, message: bytes, *, load: bool) -> None:
    """From a stranger's address."""
    node.plane.queue_depth = UNDER_LOAD_QUEUE_DEPTH if load else 0
    node.plane.receive(message, STRANGER)
    node.settle()


def state_of(node: Node) -> tuple[object, ...]:
    """What an unauthenticated message must not change (I12), the shields and counters of drops aside."""
    plane = node.plane
    return (
        [
            (
                peer.endpoint,
                peer.keypair_indices,
                peer.last_stamp_received,
                peer.last_handshake_wall,
                peer.last_initiation_consumed,
                peer.sent,
                plane.marks(peer.id),
                plane.peers[peer.id].endpoint,
                plane.peers[peer.id].keypairs.current,
                plane.peers[peer.id].keypairs.next,
            )
            for peer in node.interface.peers
        ],
        sorted(plane.indices),
        node.interface.poll_timeout(),
        [event for event in node.events if not isinstance(event, REPORTS)],
    )


def pair() -> tuple[Node, Node]:
    return World(seed=7).pair()
