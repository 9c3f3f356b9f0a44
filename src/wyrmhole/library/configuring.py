"""The checks of a configuration that `open`, `reload` and `peers.add` share."""

from __future__ import annotations

import logging
from collections.abc import Collection

from wyrmhole.control.config.file import Config, ConfigInterface, ConfigPeer
from wyrmhole.control.config.values import MAX_KEEPALIVE, MAX_MTU, MIN_MTU
from wyrmhole.errors import ConfigFileError
from wyrmhole.library.common.reachability import is_own, prefixes_around
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import MAX_PORT
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.prefix import Prefix
from wyrmhole.wire.probes import IpAddress

log = logging.getLogger(__name__)


def check_config(config: Config) -> None:
    """Check a configuration for a tunnel.

    Raises ConfigFileError for a missing key that a tunnel requires, and for a value that no file could contain (a
    Config may be made by a program).
    """
    interface = config.interface
    if interface.private_key is None or interface.private_key.is_zero:
        raise ConfigFileError(config.source, 0, "no PrivateKey is configured: add one to [Interface]")
    if not interface.addresses:
        raise ConfigFileError(config.source, 0, "no Address is configured: add the tunnel's own to [Interface]")
    try:
        check_interface(interface)
    except ValueError as error:
        raise ConfigFileError(config.source, config.line_of(interface), str(error)) from None
    for peer in config.peers:
        try:
            check_peer(peer)
        except ValueError as error:
            raise ConfigFileError(config.source, config.line_of(peer), str(error)) from None


def check_interface(interface: ConfigInterface) -> None:
    """Check the values of an [Interface]. Raises ValueError."""
    within("MTU", interface.mtu, MIN_MTU, MAX_MTU)
    within("ListenPort", interface.listen_port, 0, MAX_PORT)
    within("FwMark", interface.fwmark, 0, 0xFFFFFFFF)
    uses_v6 = any(address.version == 6 for address in interface.addresses)
    if interface.mtu is not None and interface.mtu < IPV6_MINIMUM_MTU and uses_v6:
        raise ValueError(
            f"MTU {interface.mtu} is below the {IPV6_MINIMUM_MTU} of IPv6: raise it, or remove the IPv6 Address"
        )


def check_peer(peer: ConfigPeer, own: PublicKey | None = None) -> None:
    """Check the values of a [Peer]. `own` is the tunnel's public key, which a peer must not have. Raises ValueError."""
    if peer.public_key == own:
        raise ValueError("the PublicKey is the tunnel's own: use the peer's")
    within("PersistentKeepalive", peer.persistent_keepalive, 0, MAX_KEEPALIVE)
    if peer.endpoint is not None:
        within("the port of Endpoint", peer.endpoint.port, 1, MAX_PORT)


def within(what: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{what} is {value}; expected {low} to {high}")


def warn_of_servers(config: Config) -> None:
    """Log a warning for each name server that is in no peer's AllowedIPs."""
    prefixes = {prefix for peer in config.peers for prefix in peer.allowed_ips}
    for server in config.interface.dns_servers:
        if not leads_to(prefixes, server) and not is_own(config.interface.addresses, server):
            log.warning(
                "%s: DNS server %s is in no peer's AllowedIPs and is not used: add it to a peer's AllowedIPs, or "
                "configure another server",
                config.source,
                server,
            )


def leads_to(prefixes: Collection[Prefix], address: IpAddress) -> bool:
    return any(prefix in prefixes for prefix in prefixes_around(address))
