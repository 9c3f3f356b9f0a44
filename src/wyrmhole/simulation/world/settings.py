"""The configuration file of a host, which survives a crash; all other state does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


@dataclass(slots=True)
class PeerSettings:
    """The configuration of one peer, which is host `number`."""

    number: int
    public: PublicKey
    prefixes: list[Prefix]
    psk: PresharedKey | None = None
    endpoint: Endpoint | None = None
    keepalive: int = 0


@dataclass(slots=True)
class Settings:
    key: PrivateKey
    peers: dict[int, PeerSettings] = field(default_factory=dict)

    def routes(self, known: set[bytes]) -> dict[Prefix, bytes]:
        """Return the owner of each prefix among the known peers. At the start of a life not all are known yet."""
        peers = (peer for peer in self.peers.values() if peer.public.raw in known)
        return {prefix: peer.public.raw for peer in peers for prefix in peer.prefixes}

    def take_prefix(self, prefix: Prefix) -> None:
        """Remove the prefix from its owner, because a prefix has at most one owner."""
        for peer in self.peers.values():
            peer.prefixes = [each for each in peer.prefixes if each != prefix]

    def secrets(self) -> Iterator[bytes]:
        yield self.key.raw
        for peer in self.peers.values():
            if peer.psk is not None:
                yield peer.psk.raw
