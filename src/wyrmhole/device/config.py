"""What a caller wants of a device, as plain values: the whole of one UAPI `set`, parsed and not yet applied."""

from __future__ import annotations

from dataclasses import dataclass

from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


@dataclass(frozen=True, slots=True)
class AllowedIPChange:
    prefix: Prefix
    remove: bool = False


@dataclass(frozen=True, slots=True)
class PeerChange:
    """One peer section. None means "leave as it is"; an all-zero preshared key means none."""

    public_key: PublicKey
    remove: bool = False
    update_only: bool = False
    preshared_key: PresharedKey | None = None
    endpoint: Endpoint | None = None
    persistent_keepalive: int | None = None
    """Seconds, 0 (off) to 65535."""
    replace_allowed_ips: bool = False
    allowed_ips: tuple[AllowedIPChange, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """None means "leave as it is"; an all-zero private key unsets it; listen_port 0: any; fwmark 0: none."""

    private_key: PrivateKey | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()
