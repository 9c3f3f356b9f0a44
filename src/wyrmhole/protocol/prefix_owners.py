"""The owners of the allowed prefixes. No other module changes them.

A prefix has one owner: the peer that it was last given to. `Peer.allowed_ips` holds the same information by peer, in
the order in which the prefixes were given, so that look-ups in both directions take constant time.
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
        """Return the peer that has exactly this prefix, or None."""
        return self._owners.get(prefix)

    def give(self, prefix: Prefix, peer: Peer) -> bool:
        """Give the prefix to the peer. Return False if the peer already had it."""
        former = self._owners.get(prefix)
        if former is not None:
            del former.allowed_ips[prefix]
        self._owners[prefix] = peer
        peer.allowed_ips[prefix] = None
        return former is not peer

    def take(self, prefix: Prefix, peer: Peer) -> bool:
        """Take the prefix from the peer. Return False if the peer does not have exactly this prefix."""
        if self._owners.get(prefix) is not peer:
            return False
        del self._owners[prefix], peer.allowed_ips[prefix]
        return True

    def take_all(self, peer: Peer) -> None:
        for prefix in peer.allowed_ips:
            del self._owners[prefix]
        peer.allowed_ips.clear()
