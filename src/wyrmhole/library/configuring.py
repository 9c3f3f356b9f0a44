"""What a configuration must hold, for `open`, `reload` and `peers.add` alike, and how a stack gets it."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence

from wyrmhole.control.config.file import Config, ConfigInterface, ConfigPeer
from wyrmhole.control.config.values import MAX_KEEPALIVE, MAX_MTU, MIN_MTU
from wyrmhole.errors import ConfigFileError, NamespaceError, TunnelError
from wyrmhole.library.common import arguments
from wyrmhole.library.stacks import refusals
from wyrmhole.library.stacks.stack import Stack
from wyrmhole.net.link_setup import Interface, Network
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import MAX_PORT
from wyrmhole.wire.ip import IPV6_MINIMUM_MTU
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.prefix import Prefix

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

log = logging.getLogger(__name__)


def load_config(config: Config | str | os.PathLike[str]) -> Config:
    """A Config, a file of one, or the text of one: what has more than a line or begins with `[`, `#`.
    Raises TypeError, ValueError, OSError, ConfigFileError."""
    arguments.check_config(config)
    if isinstance(config, Config):
        return config
    if isinstance(config, str) and ("\n" in config or config.lstrip().startswith(("[", "#"))):
        return Config.parse(config, source="<text>")
    return Config.load(os.path.expanduser(config))


def check_config(config: Config) -> None:
    """Raises ConfigFileError for what a tunnel cannot do without, and for values that no file could hold."""
    interface = config.interface
    if interface.private_key is None or interface.private_key.is_zero:
        raise ConfigFileError(config.source, 0, "a tunnel needs PrivateKey = in its [Interface]")
    if not interface.addresses:
        raise ConfigFileError(config.source, 0, "a tunnel needs Address = in its [Interface], for its sockets to have")
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
    """Raises ValueError."""
    within("MTU", interface.mtu, MIN_MTU, MAX_MTU)
    within("ListenPort", interface.listen_port, 0, MAX_PORT)
    within("FwMark", interface.fwmark, 0, 0xFFFFFFFF)
    uses_v6 = any(address.version == 6 for address in interface.addresses)
    if interface.mtu is not None and interface.mtu < IPV6_MINIMUM_MTU and uses_v6:
        raise ValueError(
            f"MTU {interface.mtu} is below the {IPV6_MINIMUM_MTU} of IPv6: raise it, or drop the IPv6 Address"
        )


def check_peer(peer: ConfigPeer, own: PublicKey | None = None) -> None:
    """Raises ValueError. `own` is the tunnel's own public key, where a peer must not have it."""
    if peer.public_key == own:
        raise ValueError("the PublicKey is the tunnel's own: give the peer's")
    within("PersistentKeepalive", peer.persistent_keepalive, 0, MAX_KEEPALIVE)
    if peer.endpoint is not None:
        within("the port of Endpoint", peer.endpoint.port, 1, MAX_PORT)


def within(what: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{what} is {value}: expected {low} to {high}")


def warn_of_servers(config: Config) -> None:
    """Log a warning for each name server that no peer leads to."""
    prefixes = {prefix for peer in config.peers for prefix in peer.allowed_ips}
    for server in config.interface.dns_servers:
        if not leads_to(prefixes, server) and not is_own(config.interface.addresses, server):
            log.warning(
                "%s: DNS server %s is in no peer's AllowedIPs, so no name is asked of it: add it to one, or name "
                "another server",
                config.source,
                server,
            )


def leads_to(prefixes: Collection[Prefix], address: IpAddress) -> bool:
    return any(prefix in prefixes for prefix in prefixes_around(address))


def prefixes_around(address: IpAddress) -> Iterator[Prefix]:
    """Every prefix that contains the address, which are few beside those that a tunnel may have."""
    number, bits = int(address), address.max_prefixlen
    return (Prefix(address.version, number >> free << free, bits - free) for free in range(bits + 1))


def is_own(addresses: Sequence[Interface], address: IpAddress) -> bool:
    """Whether packets to an address stay inside: the tunnel's own, or loopback."""
    return address.is_loopback or any(own.ip == address for own in addresses)


def configure_stack(stack: Stack, config: Config) -> None:
    """Addresses, MTU, and a way into the tunnel for every family with an address; the engine knows whose is what."""
    interface = config.interface
    stack.configure(interface.addresses, routes_for(interface.addresses), interface.mtu or DEFAULT_MTU)


def reconfigure_stack(stack: Stack, old: Config, new: Config) -> Callable[[], None]:
    """Have a stack follow a reload; returns what takes it back. Raises TunnelError; the stack is as before then."""

    def undo() -> None:
        try:
            configure_stack(stack, old)
        except OSError as error:
            log.error("the tunnel's interface could not be set up as it was: %s", error)

    try:
        configure_stack(stack, new)
    except OSError as error:
        undo()
        raise TunnelError(error.errno, f"not reloaded, the tunnel is as it was: {reason_of_stack(error)}") from error
    return undo


def reason_of_stack(error: OSError) -> str:
    """Without the words that belong to the opening of a tunnel."""
    if isinstance(error, NamespaceError) and isinstance(error.__cause__, OSError):
        return f"{refusals.STAGES[error.stage]} failed: {error.__cause__.strerror}"
    return str(error.strerror or error)


def routes_for(addresses: Sequence[Interface]) -> list[Network]:
    versions = sorted({address.version for address in addresses})
    return [ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0") for version in versions]
