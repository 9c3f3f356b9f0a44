"""An immutable picture of a device, as `wg show` needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
