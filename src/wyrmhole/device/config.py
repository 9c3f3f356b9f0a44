"""A change of a device's configuration as plain values: one UAPI `set`, parsed but not yet applied."""

from __future__ import annotations

from dataclasses import dataclass

from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


@dataclass(frozen=True, slots=True)
class AllowedIPChange:
    """An allowed ip to add or to remove."""

    prefix: Prefix
    remove: bool = False


@dataclass(frozen=True, slots=True)
class PeerChange:
    """One peer section. None leaves a value unchanged; an all-zero preshared key removes the key."""

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
    """The whole change. None leaves a value unchanged. An all-zero private key removes the key; `listen_port` 0 means
    any port; `fwmark` 0 means no mark."""

    private_key: PrivateKey | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
    peers: tuple[PeerChange, ...] = ()
