"""Handling of the handshake messages of a device.

`Exchange` combines everything that a handshake message concerns: the identity (our keys), the index table, the defences
against floods (cookies, rate limiter, load) and Noise. It changes a peer only after a message has authenticated, and
counts every other message under a drop reason. The interface handles the results of a completed handshake (keypairs,
timers, endpoints).

Checks are made in the order of their cost (whitepaper 5.3): the data plane has checked length and mac1 before; under
load, mac2 and the source's rate follow, then Diffie-Hellman.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from wyrmhole.protocol import noise, tai64n
from wyrmhole.protocol.constants import COOKIE_LIFETIME, HANDSHAKE_FLOOR, UNDER_LOAD_HOLD, UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.cookie import CookieChecker
from wyrmhole.protocol.data_plane import DataPlane, HandshakeDatagram
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.events import CookieReceived, CookieReplySent, Event, HandshakeRefused
from wyrmhole.protocol.index_table import IndexTable
from wyrmhole.protocol.keys import KEY_SIZE, PrivateKey, PublicKey
from wyrmhole.protocol.peer import LONG_AGO, Peer
from wyrmhole.protocol.peer_store import PeerStore
from wyrmhole.protocol.primitives import InvalidTag, ZeroSharedSecret, dh
from wyrmhole.protocol.ratelimiter import RateLimiter
from wyrmhole.wire import messages
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.messages import MAC_SIZE, CookieReply, Initiation, Response

_NO_MACS = bytes(MAC_SIZE)


@dataclass(frozen=True, slots=True)
class Reply:
    """A cookie reply to an unproven source."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of an authentic initiation: the response to send and the new keys."""

    peer: Peer
    response: bytes
    keys: noise.TransportKeys
    local_index: int
    remote_index: int


@dataclass(frozen=True, slots=True)
class Completed:
    """The result of an authentic response: the new keys."""

    peer: Peer
    keys: noise.TransportKeys
    local_index: int
    remote_index: int


Outcome = Reply | Accepted | Completed | None


class Exchange:
    """Handles the handshake messages of a device.

    `random` returns secret bytes, `wall_clock` nanoseconds since 1970, and `report` accepts events. The data plane, if
    given, learns the pending initiations and the cookie secret, so that it can refuse other messages by one look-up.
    """

    def __init__(
        self,
        peers: PeerStore,
        random: Callable[[int], bytes],
        wall_clock: Callable[[], int],
        data_plane: DataPlane | None = None,
        report: Callable[[Event], None] = lambda event: None,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.peers = peers
        self.indices: IndexTable[Peer] = IndexTable(random)
        self.drops: Counter[DropReason] = Counter()
        self.private_key: PrivateKey | None = None
        self.checker: CookieChecker | None = None
        self._random = random
        self._wall_clock = wall_clock
        self._data_plane = data_plane
        self._report = report
        self._limiter = RateLimiter() if limiter is None else limiter
        self._under_load_until = LONG_AGO

    def set_private_key(self, private_key: PrivateKey | None) -> None:
        """Set the identity, and forget everything derived from the former key."""
        self.private_key = private_key
        self.checker = None
        self._set_cookie_secret(None, 0)
        if private_key is not None:
            self.checker = CookieChecker(private_key.public_key(), self._random, self._set_cookie_secret)
        for peer in self.peers:
            peer.forget_static()
            self.abandon(peer)

    def _set_cookie_secret(self, secret: bytes | None, until: int) -> None:
        if self._data_plane is not None:
            self._data_plane.set_cookie_secret(secret, until)

    def static_static(self, peer: Peer) -> bytes | None:
        """Return dh of both static keys, or None if there is no private key or the result is zero."""
        if peer.static_static is None and self.private_key is not None:
            try:
                peer.static_static = dh(self.private_key.exchange_key, peer.public_key.raw)
            except ZeroSharedSecret:
                peer.static_static = b""
        return peer.static_static or None

    def create_initiation(self, peer: Peer, now: int) -> bytes | None:
        """Return an initiation for the peer, or None if none is possible. It replaces a pending initiation."""
        static_static = self.static_static(peer)
        if self.private_key is None or static_static is None:
            return None
        ephemeral = self._random(KEY_SIZE)
        self.abandon(peer)
        index = self._draw_index(peer)
        stamp = tai64n.next_stamp(self._wall_clock(), peer.last_stamp_sent)
        try:
            sent, body = noise.create_initiation(
                self.private_key,
                peer.public_key,
                static_static,
                ephemeral_private=ephemeral,
                local_index=index,
                payload=stamp,
            )
        except ZeroSharedSecret:
            self._free_index(index)
            return None
        peer.sent, peer.last_stamp_sent = sent, stamp
        message = Initiation(index, body.ephemeral, body.encrypted_static, body.encrypted_payload, _NO_MACS, _NO_MACS)
        return self._with_macs(peer, message.emit(), now)

    def _draw_index(self, peer: Peer) -> int:
        """Draw an index that neither an initiation nor a session has."""
        while True:
            index = self.indices.insert(peer)
            if self._data_plane is None or self._data_plane.begin_initiation(index):
                return index
            self.indices.remove(index)

    def _free_index(self, index: int) -> None:
        self.indices.remove(index)
        if self._data_plane is not None:
            self._data_plane.end_initiation(index)

    def abandon(self, peer: Peer) -> None:
        """Forget the initiation that waits for a response."""
        if peer.sent is not None:
            self.indices.remove(peer.sent.local_index)
            self._forget_sent(peer, peer.sent)

    def _forget_sent(self, peer: Peer, sent: noise.InitiationSent) -> None:
        peer.sent = None
        if self._data_plane is not None:
            self._data_plane.end_initiation(sent.local_index)

    def consume(self, datagram: HandshakeDatagram, now: int) -> Outcome:
        """Handle one message of type 1, 2 or 3. Return None if it was dropped and counted, or was a cookie reply."""
        kind = datagram.data[0]
        if self.checker is None:
            self._refuse(DropReason.NO_PRIVATE_KEY, datagram.endpoint)
            return None
        if kind == messages.MESSAGE_COOKIE_REPLY:
            self._consume_cookie_reply(datagram, now)
            return None
        if self._is_under_load(datagram.queue_depth, now):
            refused, reply = self._shield(datagram, self.checker, now)
            if refused:
                return reply
        if kind == messages.MESSAGE_INITIATION:
            return self._consume_initiation(datagram, now)
        return self._consume_response(datagram)

    def _refuse(self, reason: DropReason, endpoint: Endpoint, peer: PublicKey | None = None) -> None:
        self.drops[reason] += 1
        known = None if peer is None else self.peers.get(peer)
        if known is not None:
            known.count_drop(reason)
        self._report(HandshakeRefused(reason, endpoint, peer))

    def _with_macs(self, peer: Peer, message: bytes, now: int) -> bytes:
        return peer.cookies.add_macs(messages.before_mac1(message), now)

    def _is_under_load(self, queue_depth: int, now: int) -> bool:
        if queue_depth >= UNDER_LOAD_QUEUE_DEPTH:
            self._under_load_until = now + UNDER_LOAD_HOLD
        return now < self._under_load_until

    def _shield(self, datagram: HandshakeDatagram, checker: CookieChecker, now: int) -> tuple[bool, Reply | None]:
        """Check a message under load. Return whether it is refused, and the reply to the source."""
        # A data plane that answers initiations also makes the cookies. Only responses to our initiations remain here,
        # and they are limited by their source alone.
        makes_cookies = self._data_plane is None or not self._data_plane.answers_initiations
        if makes_cookies and not checker.mac2_is_valid(datagram.data, datagram.endpoint, now):
            self.drops[DropReason.UNDER_LOAD] += 1
            self._report(CookieReplySent(datagram.endpoint))
            sender = int.from_bytes(datagram.data[4:8], "little")
            return True, Reply(checker.create_reply(datagram.data, sender, datagram.endpoint, now))
        if not self._limiter.allow(datagram.endpoint.address_bytes, now):
            self.drops[DropReason.RATE_LIMITED] += 1
            return True, None
        return False, None

    def _consume_cookie_reply(self, datagram: HandshakeDatagram, now: int) -> None:
        reply = CookieReply.parse(datagram.data)
        peer = self.indices.get(reply.receiver)
        cookie = None if peer is None else peer.cookies.consume_reply(reply, now)
        if peer is None or cookie is None:
            self._refuse(DropReason.BAD_COOKIE, datagram.endpoint)
            return
        self._report(CookieReceived(peer.public_key))
        if self._data_plane is not None:
            self._data_plane.set_peer_cookie(peer.id, cookie, now + COOKIE_LIFETIME)

    def _consume_initiation(self, datagram: HandshakeDatagram, now: int) -> Accepted | None:
        assert self.private_key is not None
        message = Initiation.parse(datagram.data)
        body = noise.InitiationBody(message.ephemeral, message.encrypted_static, message.encrypted_timestamp)
        try:
            received = noise.consume_initiation(
                self.private_key, self.private_key.public_key(), body, message.sender, self._static_static_of
            )
            peer = self.peers.get(received.remote_static)
            if peer is None or not self._is_fresh(peer, received.payload, datagram.endpoint, now):
                return None
            ephemeral = self._random(KEY_SIZE)
            keys, response, _ = noise.create_response(received, peer.preshared_key, ephemeral_private=ephemeral)
        except noise.UnknownPeer as unknown:
            self._refuse(DropReason.UNKNOWN_PEER, datagram.endpoint, unknown.public_key)
            return None
        except (InvalidTag, ZeroSharedSecret):
            self._refuse(DropReason.BAD_HANDSHAKE, datagram.endpoint)
            return None
        peer.last_stamp_received, peer.last_initiation_consumed = received.payload, now
        index = self.indices.insert(peer)
        emitted = Response(
            index, message.sender, response.ephemeral, response.encrypted_payload, _NO_MACS, _NO_MACS
        ).emit()
        return Accepted(peer, self._with_macs(peer, emitted, now), keys, index, message.sender)

    def _static_static_of(self, public_key: PublicKey) -> bytes | None:
        peer = self.peers.get(public_key)
        if peer is None:
            return None
        shared = self.static_static(peer)
        if shared is None:
            raise ZeroSharedSecret("the peer's static key is of low order")
        return shared

    def _is_fresh(self, peer: Peer, stamp: bytes, source: Endpoint, now: int) -> bool:
        if stamp <= peer.last_stamp_received:
            self._refuse(DropReason.REPLAYED_HANDSHAKE, source, peer.public_key)
            return False
        if now - peer.last_initiation_consumed < HANDSHAKE_FLOOR:
            self._refuse(DropReason.HANDSHAKE_FLOOD, source, peer.public_key)
            return False
        return True

    def _consume_response(self, datagram: HandshakeDatagram) -> Completed | None:
        assert self.private_key is not None
        message = Response.parse(datagram.data)
        peer = self.indices.get(message.receiver)
        if peer is None or peer.sent is None or peer.sent.local_index != message.receiver:
            self._refuse(DropReason.UNEXPECTED_RESPONSE, datagram.endpoint)
            return None
        body = noise.ResponseBody(message.ephemeral, message.encrypted_nothing)
        try:
            keys, _, _ = noise.consume_response(peer.sent, self.private_key, peer.preshared_key, body)
        except (InvalidTag, ZeroSharedSecret):
            peer.problem = DropReason.BAD_HANDSHAKE
            self._refuse(DropReason.BAD_HANDSHAKE, datagram.endpoint, peer.public_key)
            return None
        # The index now belongs to the keypair, so it stays in the table.
        self._forget_sent(peer, peer.sent)
        return Completed(peer, keys, message.receiver, message.sender)
