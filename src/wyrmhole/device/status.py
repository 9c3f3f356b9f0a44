"""An immutable picture of a device, as `wg show` needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import KEY_SIZE, PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

if TYPE_CHECKING:
    from wyrmhole.protocol.data_plane import PeerCounters
    from wyrmhole.protocol.peer import Peer

NO_PSK = PresharedKey(bytes(KEY_SIZE))
"""What stands for no preshared key, as in the kernel."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    public_key: PublicKey
    preshared_key: PresharedKey
    endpoint: Endpoint | None
    last_handshake: tuple[int, int]
    """Wall clock (seconds, nanoseconds); (0, 0): never."""
    tx_bytes: int
    rx_bytes: int
    persistent_keepalive: int
    allowed_ips: tuple[Prefix, ...]
    attempts: int = 0
    """Initiations of the present series that were sent again. This and the fields below are known to the device itself
    only; a status that was read from a UAPI socket has their defaults."""
    session_age: int | None = None
    """Nanoseconds since the session began that packets leave under; None: there is none."""
    unanswered: int = 0
    """Initiations sent since the last completed handshake."""
    unanswered_for: int = 0
    """Nanoseconds since the first of them was sent."""
    silent_for: int | None = None
    """Nanoseconds since the peer was reported silent; None: it was not."""
    handshake_age: int | None = None
    """Nanoseconds since the last completed handshake, by the wall clock; None: there was none."""
    problem: DropReason | None = None
    """Why its last response was refused, until a handshake completes."""


@dataclass(frozen=True, slots=True)
class DropCounts:
    """Packets that died since the start, by the names of `DropReason`; another version may have names that this one
    does not know. `peers`: those that are known to be a peer's; they are among `total`."""

    total: Mapping[str, int]
    peers: Mapping[PublicKey, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    name: str
    private_key: PrivateKey | None = field(repr=False)
    listen_port: int
    fwmark: int
    mtu: int
    peers: tuple[PeerStatus, ...]


def peer_status(peer: Peer, counters: PeerCounters, *, reject_after: int, now: int, wall: int) -> PeerStatus:
    """Take the picture of a peer. `now` is boottime, by which sessions live, because the wall clock may be set."""
    session_age = None if peer.session is None else now - peer.session.birth
    return PeerStatus(
        public_key=peer.public_key,
        preshared_key=peer.preshared_key or NO_PSK,
        endpoint=peer.endpoint,
        last_handshake=divmod(peer.last_handshake_wall, SECOND),
        tx_bytes=counters.tx_bytes,
        rx_bytes=counters.rx_bytes,
        persistent_keepalive=peer.timers.persistent_interval,
        allowed_ips=tuple(peer.allowed_ips),
        attempts=peer.timers.attempts,
        session_age=session_age if session_age is not None and session_age < reject_after else None,
        unanswered=peer.unanswered,
        unanswered_for=now - peer.unanswered_since if peer.unanswered else 0,
        silent_for=None if peer.is_silent_since is None else now - peer.is_silent_since,
        handshake_age=max(0, wall - peer.last_handshake_wall) if peer.last_handshake_wall else None,
        problem=peer.problem,
    )
