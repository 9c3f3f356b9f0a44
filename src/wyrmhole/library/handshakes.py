"""Waiting for a session with a peer, or for a new one."""

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
    """`handle` returns a peer of the device, and raises KeyError for one that is not there."""

    def __init__(
        self, device: Device, followers: Followers, reachability: Reachability, handle: Callable[[PublicKey], Peer]
    ) -> None:
        self._device = device
        self._followers = followers
        self._reachability = reachability
        self._handle = handle

    async def wait_handshake(self, key: PublicKey | None, timeout: float | None) -> Peer:
        """Return when this peer, or any, has a session; begins a handshake where there is none. The peer that has.
        Raises TimeoutError, KeyError for a peer that is not there or is removed meanwhile, TunnelError when there is no
        peer or the tunnel ends meanwhile."""
        self._check_wanted(key)
        happenings = self._followers.follow()
        for each in self._device.peer_keys() if key is None else [key]:
            if self._has_session(each):
                return self._handle(each)
            self._device.ensure_session(each)
        async with deadline(timeout, lambda: f"no handshake within {timeout:g} s: {self._why_none(key)}"):
            async for event in happenings:
                self._check_wanted(key)
                if key not in (None, event.peer.public_key):
                    continue
                if isinstance(event, events.Handshake):
                    return event.peer
                if isinstance(event, events.HandshakeFailed | events.EndpointResolved):
                    self._device.ensure_session(event.peer.public_key)
        raise TunnelError(errno.EBADF, "the tunnel was closed before a handshake")

    def _check_wanted(self, key: PublicKey | None) -> None:
        """Raises KeyError, TunnelError for nobody to wait for."""
        if key is not None:
            self._handle(key)
        elif not self._device.peer_keys():
            raise TunnelError(errno.ENOTCONN, "the tunnel has no peer to wait for: add one first")

    async def handshake(self, key: PublicKey, timeout: float | None) -> None:
        """A new session with this peer. Raises TimeoutError, KeyError, TunnelError when the tunnel ends meanwhile."""
        self._handle(key)
        happenings = self._followers.follow()
        self._device.request_handshake(key)
        async with deadline(timeout, lambda: f"no new handshake within {timeout:g} s: {self._why_none(key)}"):
            async for event in happenings:
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
