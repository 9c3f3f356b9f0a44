"""The peers of a running tunnel: inspect and change them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from wyrmhole.control.config.file import ConfigPeer
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.library.common.arguments import NOT_PICKLED, check_instance, check_timeout, named_type
from wyrmhole.protocol.keys import PresharedKey, PublicKey
from wyrmhole.wire.prefix import Prefix

if TYPE_CHECKING:
    from wyrmhole.library.configured_device import ConfiguredDevice


@dataclass(frozen=True, slots=True)
class PeerStats:
    """The state and counters of a peer.

    `last_handshake` is in seconds since 1970, or None. Bytes are counted like in `wg show`. `drops` counts dropped
    packets to or from the peer, by reason.
    """

    public_key: str
    name: str | None
    endpoint: str | None
    allowed_ips: tuple[str, ...]
    last_handshake: float | None
    rx_bytes: int
    tx_bytes: int
    persistent_keepalive: int
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stats:
    """The state and counters of a tunnel.

    `drops` counts dropped packets by reason. `wyrmhole.protocol.drops.MEANINGS` explains each reason.
    """

    listen_port: int
    mtu: int
    rx_bytes: int
    tx_bytes: int
    peers: Mapping[str, PeerStats]
    drops: Mapping[str, int]
    oddities: Mapping[str, int]
    engine: str
    stack: str


class Peer:
    """A peer, identified by its public key. `name` is its name in the configuration."""

    __slots__ = ("_outside", "name", "public_key")

    def __init__(self, outside: ConfiguredDevice, public_key: PublicKey, name: str | None) -> None:
        self._outside = outside
        self.public_key = public_key
        self.name = name

    def __repr__(self) -> str:
        return f"<Peer {self.name or self.public_key}>"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError(NOT_PICKLED)

    def stats(self) -> PeerStats:
        """Return the peer's state and counters. Raises KeyError if the peer was removed."""
        return self._outside.stats_of(self.public_key)

    async def wait_handshake(self, timeout: float | None = None) -> None:
        """Wait for a session; start a handshake if there is none. Raises TimeoutError."""
        check_timeout(timeout)
        await self._outside.handshakes.wait_handshake(self.public_key, timeout)

    async def handshake(self, timeout: float | None = None) -> None:
        """Start a handshake even if there is a session, and wait for the new session.

        This verifies that the peer is still reachable. At most one initiation per 5 s is sent (whitepaper 6.1). Raises
        TimeoutError, KeyError.
        """
        check_timeout(timeout)
        await self._outside.handshakes.handshake(self.public_key, timeout)


class Peers(Mapping[str, Peer]):
    """The peers by public key, in base64 or as a PublicKey."""

    def __init__(self, outside: ConfiguredDevice, check: Callable[[], None]) -> None:
        self._outside = outside
        self._check = check

    def __getitem__(self, key: str | PublicKey) -> Peer:
        return self._outside.handle(as_public_key(key))

    def __iter__(self) -> Iterator[str]:
        return (key.base64() for key in self._outside.device.peer_keys())

    def __len__(self) -> int:
        return len(self._outside.device.peer_keys())

    def __repr__(self) -> str:
        return f"<Peers {list(self.values())!r}>"

    async def add(
        self,
        public_key: str | PublicKey,
        *,
        allowed_ips: Iterable[str | Prefix] = (),
        endpoint: str | ConfigEndpoint | None = None,
        preshared_key: str | PresharedKey | None = None,
        persistent_keepalive: int | None = None,
        name: str | None = None,
    ) -> Peer:
        """Add a peer, or change an existing one: replace its allowed ips, and set the other arguments that are given.

        `endpoint` is `host:port`; a name is resolved outside the tunnel. Raises ValueError for an invalid value,
        socket.gaierror, TunnelError.
        """
        self._check()
        check_peer_arguments(allowed_ips, endpoint, preshared_key, persistent_keepalive, name)
        peer = ConfigPeer(
            public_key=as_public_key(public_key),
            preshared_key=PresharedKey.from_base64(preshared_key) if isinstance(preshared_key, str) else preshared_key,
            endpoint=ConfigEndpoint.parse(endpoint) if isinstance(endpoint, str) else endpoint,
            allowed_ips=[as_prefix(prefix) for prefix in allowed_ips],
            persistent_keepalive=persistent_keepalive,
            name=name,
        )
        return await self._outside.add_peer(peer)

    async def handshake(self, public_key: str | PublicKey, timeout: float | None = None) -> None:
        """See `Peer.handshake`."""
        self._check()
        await self[public_key].handshake(timeout)

    async def remove(self, public_key: str | PublicKey) -> None:
        """Remove a peer and its sessions. Raises KeyError if the peer does not exist."""
        self._check()
        self._outside.remove_peer(as_public_key(public_key))


def as_public_key(key: str | PublicKey) -> PublicKey:
    """Convert a key. Raises ValueError for an invalid key, TypeError for another type."""
    if not isinstance(key, str | PublicKey):
        raise TypeError(f"a public key must be base64 text or a PublicKey, not {named_type(key)}")
    return PublicKey.from_base64(key) if isinstance(key, str) else key


def check_peer_arguments(
    allowed_ips: object, endpoint: object, preshared_key: object, persistent_keepalive: object, name: object
) -> None:
    """Check the types of the arguments. Raises TypeError."""
    if isinstance(allowed_ips, str | bytes) or not isinstance(allowed_ips, Iterable):
        raise TypeError(f"allowed_ips must be a list such as ['10.0.0.0/24'], not {named_type(allowed_ips)}")
    if not isinstance(endpoint, str | ConfigEndpoint | None):
        raise TypeError(f"endpoint must be text such as 'vpn.example:51820', not {named_type(endpoint)}")
    if not isinstance(preshared_key, str | PresharedKey | None):
        raise TypeError(f"preshared_key must be base64 text or a PresharedKey, not {named_type(preshared_key)}")
    if isinstance(persistent_keepalive, bool) or not isinstance(persistent_keepalive, int | None):
        raise TypeError(f"persistent_keepalive must be an int of seconds, not {named_type(persistent_keepalive)}")
    check_instance("name", name, str, "a str")


def as_prefix(text: str | Prefix) -> Prefix:
    """Convert a prefix such as `10.0.0.0/24`, or a single address. Raises ValueError, TypeError."""
    if isinstance(text, Prefix):
        return text
    if isinstance(text, IPv4Network | IPv6Network | IPv4Address | IPv6Address):
        text = str(text)
    if not isinstance(text, str):
        raise TypeError(f"an entry of allowed_ips must be text such as '10.0.0.0/24', not {named_type(text)}")
    return Prefix.parse(text if "/" in text else f"{text}/{128 if ':' in text else 32}")
