"""The iterators over a tunnel's events, and the translation of the protocol's events into the library's."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from wyrmhole.library import events
from wyrmhole.library.peers import Peer
from wyrmhole.protocol import events as protocol_events
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.keys import PublicKey


class Followers:
    """Publishes events. `handle_of` returns a handle of an event's peer, even if the tunnel no longer has the peer."""

    def __init__(self, handle_of: Callable[[PublicKey], Peer]) -> None:
        self._handle_of = handle_of
        self._followers: weakref.WeakSet[events.Events] = weakref.WeakSet()

    def follow(self) -> events.Events:
        """Return an iterator over future events. It is held weakly, so a dropped iterator collects nothing."""
        follower = events.Events()
        self._followers.add(follower)
        return follower

    def handle(self, event: protocol_events.Event) -> None:
        """Publish the events that a program may act on. The single steps of a handshake are only logged."""
        refusals = protocol_events.HandshakeRefused | protocol_events.PacketRefused | protocol_events.CookieReplySent
        if isinstance(event, refusals):
            return
        peer = self._handle_of(event.peer)
        match event:
            case protocol_events.HandshakeCompleted():
                self.publish(events.Handshake(peer, event.as_initiator))
            case protocol_events.HandshakeGaveUp():
                self.publish(events.HandshakeFailed(peer))
            case protocol_events.Roamed():
                self.publish(events.Roamed(peer, event.endpoint))
            case protocol_events.SessionExpired():
                self.publish(events.Expired(peer))
            case protocol_events.PeerSilent():
                self.publish(events.PeerSilent(peer, event.endpoint, event.initiations, event.problem is not None))
            case protocol_events.PeerBack():
                self.publish(events.PeerBack(peer, event.silent_for / SECOND))
            case protocol_events.EndpointFlapping():
                self.publish(events.EndpointFlapping(peer, event.endpoints))

    def publish(self, event: events.Event) -> None:
        for follower in list(self._followers):
            follower.put(event)

    def end(self) -> None:
        for follower in list(self._followers):
            follower.end()
