"""Turn a configuration file into a change of a device, for `setconf`, `addconf` and `syncconf` of wg(8).

The caller resolves endpoint names: `resolve` is called once per endpoint, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from wyrmhole.control.config.file import Config, ConfigPeer
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.device.status import DeviceStatus, PeerStatus
from wyrmhole.protocol.keys import KEY_SIZE, PresharedKey, PrivateKey
from wyrmhole.wire.endpoint import Endpoint

ResolveEndpoint = Callable[[ConfigEndpoint], Endpoint | None]
"""Returns None if the name cannot be resolved and the peer goes without an endpoint. May raise."""


def numeric_only(endpoint: ConfigEndpoint) -> Endpoint | None:
    return endpoint.literal


def set_change(config: Config, resolve: ResolveEndpoint = numeric_only) -> DeviceChange:
    """Return the change that replaces the configuration: all peers are replaced, and missing settings are reset."""
    interface = config.interface
    return DeviceChange(
        private_key=interface.private_key or PrivateKey(bytes(KEY_SIZE)),
        listen_port=interface.listen_port or 0,
        fwmark=interface.fwmark or 0,
        replace_peers=True,
        peers=_peers(config, resolve),
    )


def add_change(config: Config, resolve: ResolveEndpoint = numeric_only) -> DeviceChange:
    """Return the change that adds the file's peers and settings to those of the device."""
    interface = config.interface
    return DeviceChange(
        private_key=interface.private_key,
        listen_port=interface.listen_port,
        fwmark=interface.fwmark,
        peers=_peers(config, resolve),
    )


def sync_change(config: Config, status: DeviceStatus, resolve: ResolveEndpoint = numeric_only) -> DeviceChange:
    """Return a change like `set_change` that keeps the sessions of peers which stay.

    A preshared key or keepalive that the file no longer has is removed, like in wg(8) since 1.0.20260223.
    """
    running = {peer.public_key: peer for peer in status.peers}
    wanted = {peer.public_key for peer in config.peers}
    removed = [PeerChange(key, remove=True) for key in running if key not in wanted]
    kept = [_sync_peer(_peer(peer, resolve), running.get(peer.public_key)) for peer in config.peers]
    whole = set_change(Config(config.interface))
    return replace(whole, replace_peers=False, peers=(*removed, *kept))


def _peers(config: Config, resolve: ResolveEndpoint) -> tuple[PeerChange, ...]:
    return tuple(_peer(peer, resolve) for peer in config.peers)


def _peer(peer: ConfigPeer, resolve: ResolveEndpoint) -> PeerChange:
    return PeerChange(
        peer.public_key,
        preshared_key=peer.preshared_key,
        endpoint=None if peer.endpoint is None else resolve(peer.endpoint),
        persistent_keepalive=peer.persistent_keepalive,
        replace_allowed_ips=True,
        allowed_ips=tuple(map(AllowedIPChange, peer.allowed_ips)),
    )


def _sync_peer(change: PeerChange, running: PeerStatus | None) -> PeerChange:
    if running is None:
        return change
    lost_key = change.preshared_key is None and not running.preshared_key.is_zero
    lost_keepalive = change.persistent_keepalive is None and running.persistent_keepalive
    return PeerChange(
        change.public_key,
        preshared_key=PresharedKey(bytes(KEY_SIZE)) if lost_key else change.preshared_key,
        endpoint=change.endpoint,
        persistent_keepalive=0 if lost_keepalive else change.persistent_keepalive,
        replace_allowed_ips=True,
        allowed_ips=change.allowed_ips,
    )
