"""The state of an interface as a value, for tests and the simulator only.

The values are named tuples because the simulator compares two of them around every datagram that does not authenticate.
Drop counters, the rate limiter, the load clock and received cookies are left out, because unproven input may change
them.
"""

from __future__ import annotations

from typing import NamedTuple

from wyrmhole.protocol.data_plane import PeerId
from wyrmhole.protocol.peer import Peer
from wyrmhole.wire.endpoint import Endpoint


class PeerState(NamedTuple):
    """The state of one peer. `sent` is the index of the pending initiation; `timers` has every field of PeerTimers."""

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
    """The state of an interface.

    `indices` are those of handshakes and sessions, `armed` the peers with an entry in the timer wheel. `prefixes`
    counts the allowed IPs.
    """

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
