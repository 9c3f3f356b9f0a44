"""Means to give a device handshake messages that are genuine except for some edits.

Keys and randomness are fixed, and results of Diffie-Hellman are cached. The fuzzer tests the logic around them, which
it then reaches thirty times as often.
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
    """A replacement for the library's class that caches keys, because making a key costs as much as an exchange."""

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
    """Cache Diffie-Hellman results in the whole process."""
    for module, name, value in REPLACED:
        setattr(module, name, value)


def edited(reader: Reader, message: bytes, receiver: Node) -> bytes:
    """Return the message with up to 15 bytes changed. The input decides whether mac1 is made valid again."""
    out = bytearray(message)
    shape = reader.byte()
    for _ in range(shape & 15):
        out[reader.byte() % len(out)] ^= reader.byte()
    if shape & 16 or len(out) < 32 or out[0] == messages.MESSAGE_COOKIE_REPLY:
        return bytes(out)
    covered = messages.before_mac1(bytes(out))
    return covered + mac(mac1_key(receiver.key.public_key()), covered) + messages.mac2_of(bytes(out))


REPORTS = (CookieReceived, CookieReplySent, HandshakeRefused)
"""Events for the log. They are not compared, because the state that they describe is."""


def give(node: Node, message: bytes, *, load: bool) -> None:
    """Deliver the message from an unknown address."""
    node.plane.queue_depth = UNDER_LOAD_QUEUE_DEPTH if load else 0
    node.plane.receive(message, STRANGER)
    node.settle()


def state_of(node: Node) -> tuple[object, ...]:
    """Return the state that an unauthenticated message must not change (I12)."""
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
