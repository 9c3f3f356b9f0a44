"""What happens to a tunnel's peers, for whoever wants to follow it: `async for event in tunnel.events()`."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from wyrmhole.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from wyrmhole.library.peers import Peer

CAPACITY = 1024
"""Events that one follower may be behind; then the oldest go, and `lost` counts them."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """There is a new session."""

    peer: Peer
    as_initiator: bool


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """The peer did not answer for 90 s (whitepaper 6.4). The next packet for it tries again."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class Roamed:
    """The peer wrote, authenticated, from another address; what is for it now goes there."""

    peer: Peer
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class EndpointResolved:
    """This side looks for the peer elsewhere: its name has another address, or it was told so."""

    peer: Peer
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Expired:
    """No session for nine minutes; the keys are gone (whitepaper 6.3)."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class EndpointUnresolved:
    """The name of the peer's endpoint has no address now, and none is known from before. It is asked for again."""

    peer: Peer
    reason: str


@dataclass(frozen=True, slots=True)
class PeerRemoved:
    """The tunnel no longer has this peer."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerSilent:
    """For 15 s the peer answered nothing, although packets or handshake initiations wanted an answer. Once until
    `PeerBack`. `initiations`: how many are unanswered; 0: data was, within a session. `refused`: it did answer, and its
    response did not authenticate, as when the preshared keys differ."""

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
    """An asynchronous iterator that ends with the tunnel. It hears from its making on."""

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
        """What waits can still be taken."""
        self._ended = True
        self._wake.set()
