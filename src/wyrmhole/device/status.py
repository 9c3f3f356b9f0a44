"""An immutable snapshot of a device, with everything that `wg show` prints."""

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
"""The all-zero key, which stands for no preshared key, like in the kernel."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A snapshot of one peer."""

    public_key: PublicKey
    preshared_key: PresharedKey
    endpoint: Endpoint | None
    last_handshake: tuple[int, int]
    """The wall clock at the last handshake: (seconds, nanoseconds), or (0, 0) if there was none."""
    tx_bytes: int
    rx_bytes: int
    persistent_keepalive: int
    allowed_ips: tuple[Prefix, ...]
    attempts: int = 0
    """Retransmitted initiations of the current attempt at a handshake. This and the following fields are known only to
    the device itself; a status read from a UAPI socket has their defaults."""
    session_age: int | None = None
    """Nanoseconds since the start of the session with which packets are sent, or None if there is no such session."""
    unanswered: int = 0
    """Initiations sent since the last completed handshake."""
    unanswered_for: int = 0
    """Nanoseconds since the first of these was sent."""
    silent_for: int | None = None
    """Nanoseconds since the peer was reported silent, or None if it is not silent."""
    handshake_age: int | None = None
    """Nanoseconds since the last completed handshake by the wall clock, or None if there was none."""
    problem: DropReason | None = None
    """The reason why the peer's last response was refused; None after a completed handshake."""


@dataclass(frozen=True, slots=True)
class DropCounts:
    """Packets dropped since the start, by the names of `DropReason`. Another version may have names that this one does
    not know. `peers` has those whose peer is known; `total` includes them."""

    total: Mapping[str, int]
    peers: Mapping[PublicKey, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A snapshot of a device."""

    name: str
    private_key: PrivateKey | None = field(repr=False)
    listen_port: int
    fwmark: int
    mtu: int
    peers: tuple[PeerStatus, ...]


def peer_status(peer: Peer, counters: PeerCounters, *, reject_after: int, now: int, wall: int) -> PeerStatus:
    """Take a snapshot of a peer. `now` is the boottime: session ages do not use the wall clock, which may be set."""
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
