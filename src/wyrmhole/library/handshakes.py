"""Wait for a session with a peer, or for a new session."""

from __future__ import annotations

import errno
from collections.abc import Callable

from wyrmhole.device.device import Device
from wyrmhole.errors import TunnelError
from wyrmhole.library import events
from wyrmhole.library.common.reachability import Reachability
from wyrmhole.library.common.time_limit import deadline
from wyrmhole.library.followers import Followers
from wyrmhole.library.peers import Peer
from wyrmhole.protocol.keys import PublicKey


class Handshakes:
    """Starts handshakes and waits for them. `handle` returns a peer of the device, or raises KeyError."""

    def __init__(
        self, device: Device, followers: Followers, reachability: Reachability, handle: Callable[[PublicKey], Peer]
    ) -> None:
        self._device = device
        self._followers = followers
        self._reachability = reachability
        self._handle = handle

    async def wait_handshake(self, key: PublicKey | None, timeout: float | None) -> Peer:
        """Return the given peer, or the first of all peers, as soon as it has a session. Start missing handshakes.

        Raises TimeoutError, KeyError if the peer does not exist or is removed meanwhile, TunnelError if there are no
        peers or the tunnel ends meanwhile.
        """
        self._check_wanted(key)
        following = self._followers.follow()
        for each in self._device.peer_keys() if key is None else [key]:
            if self._has_session(each):
                return self._handle(each)
            self._device.ensure_session(each)
        async with deadline(timeout, lambda: f"no handshake within {timeout:g} s: {self._why_none(key)}"):
            async for event in following:
                self._check_wanted(key)
                if key not in (None, event.peer.public_key):
                    continue
                if isinstance(event, events.Handshake):
                    return event.peer
                if isinstance(event, events.HandshakeFailed | events.EndpointResolved):
                    self._device.ensure_session(event.peer.public_key)
        raise TunnelError(errno.EBADF, "the tunnel was closed before a handshake")

    def _check_wanted(self, key: PublicKey | None) -> None:
        """Raises KeyError if the peer does not exist, TunnelError if there are no peers at all."""
        if key is not None:
            self._handle(key)
        elif not self._device.peer_keys():
            raise TunnelError(errno.ENOTCONN, "the tunnel has no peer to wait for: add one first")

    async def handshake(self, key: PublicKey, timeout: float | None) -> None:
        """Establish a new session with a peer. Raises TimeoutError, KeyError, TunnelError if the tunnel ends."""
        self._handle(key)
        following = self._followers.follow()
        self._device.request_handshake(key)
        async with deadline(timeout, lambda: f"no new handshake within {timeout:g} s: {self._why_none(key)}"):
            async for event in following:
                if isinstance(event, events.Handshake) and event.peer.public_key == key:
                    return
                if isinstance(event, events.HandshakeFailed) and event.peer.public_key == key:
                    self._device.request_handshake(key)
        raise TunnelError(errno.EBADF, "the tunnel was closed before a handshake")

    def _has_session(self, key: PublicKey) -> bool:
        peer = self._device.peer(key)
        return peer is not None and peer.session_age is not None

    def _why_none(self, key: PublicKey | None) -> str:
        return self._reachability.why_no_handshake(self._device.peer_keys() if key is None else [key])
