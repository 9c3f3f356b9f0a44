"""The state of the portable engine's tables as a value, used only by tests and the simulator.

The values are named tuples because the simulator takes and compares them around every datagram that is not
authenticated. Drop counters and queued handshake messages are left out, because unauthenticated input may change those.
"""

from __future__ import annotations

from typing import NamedTuple

from wyrmhole.datapath.keypair import Keypair
from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.datapath.tables import Tables
from wyrmhole.protocol.data_plane import Marks, PeerId, Source
from wyrmhole.wire.endpoint import SockAddr


class KeypairState(NamedTuple):
    """The state of a keypair. `seen` is the replay window: bit i stands for the counter `greatest - i`."""

    local_index: int
    send_counter: int
    send_until: int
    rekey_asked: bool
    greatest: int
    seen: int


class EnginePeerState(NamedTuple):
    """The state of a peer. `staged` and `staged_bytes` count the packets that wait for a keypair."""

    id: PeerId
    sockaddr: SockAddr
    source: Source | None
    tx_bytes: int
    rx_bytes: int
    marks: Marks
    active_reported: bool
    key_wanted_reported: bool
    staged: int
    staged_bytes: int
    previous: KeypairState | None
    current: KeypairState | None
    next: KeypairState | None

    @property
    def slots(self) -> tuple[int | None, ...]:
        """Return the local indices of the previous, the current and the next keypair."""
        return tuple(slot and slot.local_index for slot in (self.previous, self.current, self.next))


class EngineState(NamedTuple):
    """The state of the tables. `indices` are the receiver indices of keypairs, `routes` counts the allowed ips.
    `staged_bytes` is the engine's own counter over all peers."""

    peers: tuple[EnginePeerState, ...]
    indices: frozenset[int]
    routes: int
    staged_bytes: int


def engine_state(tables: Tables) -> EngineState:
    return EngineState(
        tuple([peer_state(peer) for peer in tables.peers.values()]),
        frozenset(tables.indices),
        len(tables.allowed_ips),
        tables.staged_bytes,
    )


def peer_state(peer: EnginePeer) -> EnginePeerState:
    keypairs, staged = peer.keypairs, peer.staged
    return EnginePeerState(
        peer.id,
        peer.sockaddr,
        peer.source,
        peer.tx_bytes,
        peer.rx_bytes,
        peer.marks(),
        peer.active_reported,
        peer.key_wanted_reported,
        len(staged) if staged else 0,
        sum(map(len, staged)) if staged else 0,
        _keypair_state(keypairs.previous),
        _keypair_state(keypairs.current),
        _keypair_state(keypairs.next),
    )


def _keypair_state(keypair: Keypair | None) -> KeypairState | None:
    if keypair is None:
        return None
    return KeypairState(
        keypair.local_index,
        keypair.send_counter,
        keypair.send_until,
        keypair.rekey_asked,
        *keypair.window.inspect(),
    )
