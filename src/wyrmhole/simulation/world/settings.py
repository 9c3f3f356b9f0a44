"""What a host's configuration file says. It survives a crash; everything else of a life does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


@dataclass(slots=True)
class PeerSettings:
    """The section of the peer that is host `number`."""

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
        """The owner of each prefix, of the peers known so far: at the start of a life they come one by one."""
        peers = (peer for peer in self.peers.values() if peer.public.raw in known)
        return {prefix: peer.public.raw for peer in peers for prefix in peer.prefixes}

    def take_prefix(self, prefix: Prefix) -> None:
        """Remove the prefix from its owner. Like in the table, a prefix has one owner at most."""
        for peer in self.peers.values():
            peer.prefixes = [each for each in peer.prefixes if each != prefix]

    def secrets(self) -> Iterator[bytes]:
        yield self.key.raw
        for peer in self.peers.values():
            if peer.psk is not None:
                yield peer.psk.raw
