"""The state of an interface as a value, for tests and the simulator. No other code of the product looks at it.

The values are named tuples because the simulator takes and compares one around every datagram that proves nothing.
Counters of drops, the rate limiter, the load clock and received cookies are left out: unproven input may move those.
"""

from __future__ import annotations

from typing import NamedTuple

from wyrmhole.protocol.data_plane import PeerId
from wyrmhole.protocol.peer import Peer
from wyrmhole.wire.endpoint import Endpoint


class PeerState(NamedTuple):
    """`sent` is the index of the initiation that waits for its response; `timers` has every field of PeerTimers."""

    id: PeerId
    endpoint: Endpoint | None
    sent: int | None
    keypair_indices: tuple[int, ...]
    last_stamp_received: bytes
    last_stamp_sent: bytes | None
    last_initiation_consumed: int
    last_handshake_sent: int
    last_handshake_wall: int
    timers: tuple[object, ...]


class InterfaceState(NamedTuple):
    """`indices` are those that lead to a handshake or a session, `armed` the peers with an entry in the timer wheel,
    `prefixes` counts the allowed ips."""

    peers: tuple[PeerState, ...]
    indices: frozenset[int]
    armed: frozenset[PeerId]
    prefixes: int


def peer_state(peer: Peer) -> PeerState:
    timers = peer.timers
    return PeerState(
        peer.id,
        peer.endpoint,
        None if peer.sent is None else peer.sent.local_index,
        peer.keypair_indices,
        peer.last_stamp_received,
        peer.last_stamp_sent,
        peer.last_initiation_consumed,
        peer.last_handshake_sent,
        peer.last_handshake_wall,
        tuple([getattr(timers, name) for name in timers.__slots__]),
    )
