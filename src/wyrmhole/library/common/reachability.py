"""Find the peer that owns an address inside the tunnel, and explain in a sentence why the address does not answer."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence

from wyrmhole.device.device import Device
from wyrmhole.device.status import PeerStatus
from wyrmhole.library.common import explain
from wyrmhole.net.link_setup import Interface
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.prefix import Prefix
from wyrmhole.wire.probes import IpAddress


class Reachability:
    """Explains a device's state. `addresses` returns the tunnel's addresses, `name_of` a peer's configured name."""

    def __init__(
        self, device: Device, addresses: Callable[[], Sequence[Interface]], name_of: Callable[[PublicKey], str | None]
    ) -> None:
        self._device = device
        self._addresses = addresses
        self._name_of = name_of

    def leads_to(self, address: IpAddress) -> bool:
        """Whether the address is the tunnel's own or belongs to a peer."""
        return is_own(self._addresses(), address) or self._owner_of(address) is not None

    def explain(self, host: str) -> str:
        """Explain why an address inside may not answer, from the state of the peer that owns it."""
        address = ipaddress.ip_address(host.partition("%")[0])
        if is_own(self._addresses(), address):
            return ""
        if address.version not in {own.version for own in self._addresses()}:
            own = ", ".join(map(str, self._addresses()))
            return f"the tunnel has no IPv{address.version} address (Address = {own})"
        return self.explain_peer_of(address)

    def explain_peer_of(self, address: IpAddress) -> str:
        owner = self._status_of_owner(address)
        if owner is not None:
            foreign = self._device.drops().get(DropReason.BAD_SOURCE, 0)
            return explain.state_of(owner, self._called(owner), foreign)
        keys = self._device.peer_keys()
        if not keys:
            return "the tunnel has no peers: add a [Peer] to its configuration"
        peers = filter(None, map(self._device.peer, keys))
        return explain.outside(address, (prefix for peer in peers for prefix in peer.allowed_ips))

    def no_session(self, address: IpAddress) -> str | None:
        """Explain why packets do not reach the peer that owns an address. None if they do, or if no peer owns it."""
        owner = self._status_of_owner(address)
        return None if owner is None else explain.no_session(owner, self._called(owner))

    def why_no_handshake(self, keys: Iterable[PublicKey]) -> str:
        """Explain why there is no new session with these peers."""
        peers = [peer for key in keys if (peer := self._device.peer(key)) is not None]
        found = [explain.no_new_session(peer, self._called(peer)) for peer in peers]
        more = [f"and {len(found) - explain.MAX_REASONS} more peers"] if len(found) > explain.MAX_REASONS else []
        return "; ".join(found[: explain.MAX_REASONS] + more) or "the peer was removed"

    def _called(self, peer: PeerStatus) -> str:
        return self._name_of(peer.public_key) or peer.public_key.base64()

    def _owner_of(self, address: IpAddress) -> PublicKey | None:
        """Return the owner of the longest prefix that contains the address."""
        return next(filter(None, map(self._device.owner, prefixes_around(address))), None)

    def _status_of_owner(self, address: IpAddress) -> PeerStatus | None:
        owner = self._owner_of(address)
        return None if owner is None else self._device.peer(owner)


def prefixes_around(address: IpAddress) -> Iterator[Prefix]:
    """Return every prefix that contains the address, longest first.

    These are at most 129; a tunnel may have many more prefixes to search.
    """
    number, bits = int(address), address.max_prefixlen
    return (Prefix(address.version, number >> free << free, bits - free) for free in range(bits + 1))


def is_own(addresses: Sequence[Interface], address: IpAddress) -> bool:
    """Whether packets to an address stay inside: the tunnel's own, or loopback."""
    return address.is_loopback or any(own.ip == address for own in addresses)
