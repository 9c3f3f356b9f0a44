"""Which peer has which allowed prefix: the one record, and its only writer.

A prefix has one owner, and moves to the peer that is given it last. `Peer.allowed_ips` is the same record by peer, in
the order in which the prefixes were given. So a look-up in either direction costs the same for any number of peers.
"""

from __future__ import annotations

from wyrmhole.protocol.peer import Peer
from wyrmhole.wire.prefix import Prefix


class PrefixOwners:
    def __init__(self) -> None:
        self._owners: dict[Prefix, Peer] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def get(self, prefix: Prefix) -> Peer | None:
        """The peer that has exactly this prefix."""
        return self._owners.get(prefix)

    def give(self, prefix: Prefix, peer: Peer) -> bool:
        """Returns False if the peer had it already."""
        former = self._owners.get(prefix)
        if former is not None:
            del former.allowed_ips[prefix]
        self._owners[prefix] = peer
        peer.allowed_ips[prefix] = None
        return former is not peer

    def take(self, prefix: Prefix, peer: Peer) -> bool:
        """Returns False if the peer does not have exactly this prefix."""
        if self._owners.get(prefix) is not peer:
            return False
        del self._owners[prefix], peer.allowed_ips[prefix]
        return True

    def take_all(self, peer: Peer) -> None:
        for prefix in peer.allowed_ips:
            del self._owners[prefix]
        peer.allowed_ips.clear()
