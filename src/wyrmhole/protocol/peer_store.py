"""A bounded store of peers, by public key and by number."""

from __future__ import annotations

from collections.abc import Iterator

from wyrmhole.protocol.constants import MAX_PEERS
from wyrmhole.protocol.data_plane import PeerId
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.protocol.peer import Peer


class TooManyPeers(Exception):
    """The maximum number of peers is reached."""


class PeerStore:
    """The peers of a device. Numbers start at 1 and are never reused, so a late report cannot hit another peer."""

    __slots__ = ("_by_id", "_by_key", "_last_id", "max_peers")

    def __init__(self, max_peers: int = MAX_PEERS) -> None:
        self._by_key: dict[bytes, Peer] = {}
        self._by_id: dict[PeerId, Peer] = {}
        self._last_id = 0
        self.max_peers = max_peers

    def create(self, public_key: PublicKey) -> Peer:
        """Create a peer for a new key. Raises TooManyPeers."""
        if len(self._by_id) >= self.max_peers:
            raise TooManyPeers(f"a device can have at most {self.max_peers} peers (remove some first)")
        self._last_id += 1
        peer = Peer(self._last_id, public_key)
        self._by_id[peer.id] = self._by_key[public_key.raw] = peer
        return peer

    def remove(self, peer: Peer) -> None:
        del self._by_id[peer.id], self._by_key[peer.public_key.raw]

    def get(self, public_key: PublicKey) -> Peer | None:
        return self._by_key.get(public_key.raw)

    def by_id(self, peer_id: PeerId) -> Peer | None:
        return self._by_id.get(peer_id)

    def __iter__(self) -> Iterator[Peer]:
        """Iterate in the order of addition. Peers may be removed during the iteration."""
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)
