"""Events of a tunnel's peers: `async for event in tunnel.events()`."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from wyrmhole.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from wyrmhole.library.peers import Peer

CAPACITY = 1024
"""Limit of events that wait for a consumer. Beyond it the oldest are dropped, and `lost` counts them."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """A new session was established."""

    peer: Peer
    as_initiator: bool


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """The peer did not answer for 90 s (whitepaper 6.4). The next packet for it tries again."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Roamed:
    """An authenticated message of the peer came from a new address, to which packets now go."""

    peer: Peer
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class EndpointResolved:
    """This side changed the peer's endpoint: its name has another address, or the configuration was changed."""

    peer: Peer
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Expired:
    """There was no session for nine minutes, and the keys were erased (whitepaper 6.3)."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class EndpointUnresolved:
    """The name of the peer's endpoint does not resolve, and no earlier address is known. The look-up is repeated."""

    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class PeerRemoved:
    """The tunnel no longer has this peer."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """The peer has not answered packets or handshake initiations for 15 s. Reported once until `PeerBack`.

    `initiations` counts the unanswered ones; 0 means that data within a session was not answered. `refused` means that
    the peer answered but its response did not authenticate, for example because the preshared keys differ.
    """

    peer: Peer
    endpoint: Endpoint | None
    initiations: int
    refused: bool = False


@dataclass(frozen=True, slots=True)
class PeerBack:
    """A peer that was silent completed a handshake, `silent_for` seconds after `PeerSilent`."""

    peer: Peer
    silent_for: float


@dataclass(frozen=True, slots=True)
class EndpointFlapping:
    """The peer keeps moving between two endpoints: two programs or hosts seem to use one private key."""

    peer: Peer
    endpoints: tuple[Endpoint, Endpoint]


Event = (
    Handshake
    | HandshakeFailed
    | Roamed
    | EndpointResolved
    | EndpointUnresolved
    | EndpointFlapping
    | Expired
    | PeerRemoved
    | PeerSilent
    | PeerBack
)


class Events:
    """An asynchronous iterator over events since its creation. It ends with the tunnel."""

    def __init__(self) -> None:
        self.lost = 0
        self._waiting: deque[Event] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._waiting.popleft()

    def put(self, event: Event) -> None:
        if len(self._waiting) == CAPACITY:
            self._waiting.popleft()
            self.lost += 1
        self._waiting.append(event)
        self._wake.set()

    def end(self) -> None:
        """End the iterator. Events that wait are still delivered."""
        self._ended = True
        self._wake.set()
