"""An immutable picture of a device, as `wg show` needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


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
