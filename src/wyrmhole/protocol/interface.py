"""One WireGuard interface as one pure object: configuration and reports in, data-plane calls and events out.

There are four kinds of methods. Getters (`peers`, `peer`, `poll_timeout`) change nothing. Commands (`set_...`,
`add_peer`, `up`, `down`) carry out the user's wishes. `handle_report` and `handle_timeout` handle what happened.
`poll_event` returns events for the user. After any command or `handle_...`, the driver must call `poll_event` until it
returns None, and call `handle_timeout` no later than the time that `poll_timeout` returns.

The interface directs the data plane by direct calls (see data_plane); packets themselves never pass through it. `now`
is in nanoseconds of a boottime clock and does not go backwards.

This module has configuration, reports and events. `renewal` decides when handshakes begin and end and what timers do;
`exchange` handles handshake messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable

from wyrmhole.protocol.constants import Timings
from wyrmhole.protocol.data_plane import (
    Active,
    Answered,
    DataPlane,
    HandshakeDatagram,
    KeyConfirmed,
    KeypairsDropped,
    KeyWanted,
    PeerId,
    Refused,
    Report,
    SendFailed,
    Stranger,
    TrainsLost,
)
from wyrmhole.protocol.data_plane import Roamed as RoamedReport
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.events import (
    BatchesLost,
    CookieReplySent,
    EndpointFlapping,
    Event,
    HandshakeRefused,
    PacketRefused,
    ResponseSent,
    Roamed,
    SendRefused,
)
from wyrmhole.protocol.exchange import Accepted, Exchange, Reply
from wyrmhole.protocol.inspection import InterfaceState, peer_state
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.protocol.peer import LONG_AGO, Peer
from wyrmhole.protocol.peer_store import PeerStore
from wyrmhole.protocol.prefix_owners import PrefixOwners
from wyrmhole.protocol.ratelimiter import RateLimiter
from wyrmhole.protocol.renewal import Renewal
from wyrmhole.protocol.roaming import Roaming
from wyrmhole.wire import ip
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

MAX_EVENTS = 1024
"""The number of events that are kept until polled; beyond it, the oldest are discarded."""


class Interface:
    """A WireGuard interface. `random(n)` returns n secret bytes, `wall_clock()` nanoseconds since 1970."""

    def __init__(
        self,
        data_plane: DataPlane,
        *,
        random: Callable[[int], bytes],
        wall_clock: Callable[[], int],
        now: int,
        timings: Timings | None = None,
        peers: PeerStore | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.timings = timings or Timings()
        self.peers = PeerStore() if peers is None else peers
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.exchange = Exchange(self.peers, random, wall_clock, data_plane, self._events.append, limiter)
        self.renewal = Renewal(
            data_plane,
            self.exchange,
            self._events.append,
            random=random,
            wall_clock=wall_clock,
            timings=self.timings,
            now=now,
        )
        self._data_plane = data_plane
        self._owners = PrefixOwners()
        self._wanted_while_down: set[PeerId] = set()

    # Getters

    @property
    def private_key(self) -> PrivateKey | None:
        return self.exchange.private_key

    @property
    def is_up(self) -> bool:
        return self.renewal.is_up

    def peer(self, public_key: PublicKey) -> Peer | None:
        return self.peers.get(public_key)

    def owner(self, prefix: Prefix) -> Peer | None:
        """Return the peer that has exactly this prefix, or None."""
        return self._owners.get(prefix)

    def poll_timeout(self) -> int | None:
        """Return when `handle_timeout` is due, or None if no timer is armed."""
        return self.renewal.wheel.next_deadline()

    def inspect(self) -> InterfaceState:
        """Return a snapshot of the state, for tests and the simulator."""
        peers = tuple([peer_state(peer) for peer in self.peers])
        return InterfaceState(peers, frozenset(self.exchange.indices), frozenset(self.renewal.wheel), len(self._owners))

    # Commands

    def set_private_key(self, private_key: PrivateKey | None, now: int) -> None:
        """Use another identity.

        Nothing more is sent in existing sessions, which may only finish receiving (rule M52). The first identity of an
        interface that is up starts persistent keepalives at once (rule M53).
        """
        if private_key is not None and private_key.is_zero:
            private_key = None
        if private_key == self.private_key:
            return
        if private_key is not None:
            self._remove_own_key(private_key.public_key())
        is_first = self.private_key is None
        self.exchange.set_private_key(private_key)
        self.renewal.answer_initiations(private_key)
        checker = self.exchange.checker
        self._data_plane.set_mac1_key(None if checker is None else checker.mac1_key)
        for peer in self.peers:
            self._data_plane.expire_sending_keys(peer.id)
            self._data_plane.expect_key(peer.id)
            peer.end_sessions()
            if not self.renewal.restart(peer, now) and self.is_up and is_first:
                self.renewal.start_persistent(peer, now, send=True)
            self.renewal.rearm(peer, now)

    def add_peer(self, public_key: PublicKey) -> Peer | None:
        """Return the peer with this key, creating it if it is new, or None for our own key (rule M51).

        Raises TooManyPeers.
        """
        if self.private_key is not None and self.private_key.public_key() == public_key:
            return None
        peer = self.peers.get(public_key)
        if peer is None:
            peer = self.peers.create(public_key)
            self._data_plane.add_peer(peer.id)
            self._data_plane.set_identity(peer.id, public_key.raw, None)
            if not self._data_plane.answers_initiations:
                # Computed during configuration, this saves one Diffie-Hellman in each handshake.
                self.exchange.static_static(peer)
        return peer

    def remove_peer(self, peer: Peer) -> None:
        self.renewal.wheel.cancel(peer.id)
        self.exchange.abandon(peer)
        for index in peer.keypair_indices:
            self.exchange.indices.remove(index)
        self._owners.take_all(peer)
        self.peers.remove(peer)
        self._data_plane.remove_peer(peer.id)

    def set_preshared_key(self, peer: Peer, preshared_key: PresharedKey | None) -> None:
        """Set the preshared key, which the next handshake uses."""
        key = None if preshared_key is None or preshared_key.is_zero else preshared_key
        peer.preshared_key = key
        self._data_plane.set_identity(peer.id, peer.public_key.raw, None if key is None else key.raw)

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: int) -> None:
        """Set the endpoint. The first endpoint of a peer starts persistent keepalives at once while up (rule M53)."""
        is_first = peer.endpoint is None
        peer.endpoint, peer.send_error = endpoint, 0
        self._data_plane.set_endpoint(peer.id, endpoint)
        if is_first and self.is_up:
            self.renewal.start_persistent(peer, now, send=True)

    def forget_sources(self) -> None:
        """Forget all sticky source addresses, because packets may now leave by another route."""
        for peer in self.peers:
            self._data_plane.clear_source(peer.id)

    def set_persistent_keepalive(self, peer: Peer, seconds: int, now: int) -> None:
        """Set the interval; 0 turns keepalives off. Turning them on while up sends one at once (rule M53)."""
        turned_on = peer.timers.set_persistent_interval(seconds)
        if self.is_up:
            self.renewal.start_persistent(peer, now, send=turned_on)

    def request_handshake(self, peer: Peer, now: int) -> None:
        """Begin a handshake as soon as Rekey-Timeout allows, even within a session. A pending handshake continues."""
        if self.is_up and not peer.timers.is_trying:
            self.renewal.initiate(peer, now, is_retry=False)
            self.renewal.rearm(peer, now)

    def insert_allowed_ip(self, peer: Peer, prefix: Prefix) -> None:
        """Give the prefix to the peer, and take it from its former owner."""
        if self._owners.give(prefix, peer):
            self._data_plane.insert_allowed_ip(peer.id, prefix)

    def remove_allowed_ip(self, peer: Peer, prefix: Prefix) -> None:
        """Take exactly this prefix from the peer, if the peer has it."""
        if self._owners.take(prefix, peer):
            self._data_plane.remove_allowed_ip(peer.id, prefix)

    def replace_allowed_ips(self, peer: Peer, prefixes: Iterable[Prefix]) -> None:
        """Make these the peer's only prefixes. A prefix that it keeps is never absent from the table."""
        wanted = dict.fromkeys(prefixes)
        for prefix in [old for old in peer.allowed_ips if old not in wanted]:
            self.remove_allowed_ip(peer, prefix)
        for prefix in wanted:
            self.insert_allowed_ip(peer, prefix)

    def up(self, now: int) -> None:
        """Bring the interface up.

        Persistent keepalives start at once (rule M53), and so do handshakes for packets that the TUN delivered before.
        """
        if self.is_up:
            return
        self.renewal.is_up = True
        for peer in self.peers:
            self.renewal.start_persistent(peer, now, send=True)
        wanted, self._wanted_while_down = self._wanted_while_down, set()
        for peer_id in wanted:
            self.handle_report(KeyWanted(peer_id), now)

    def down(self) -> None:
        """Take the interface down: forget all sessions and handshakes, and send nothing more."""
        self.renewal.is_up = False
        self._wanted_while_down.clear()
        for peer in self.peers:
            self.renewal.wheel.cancel(peer.id)
            peer.timers.reset()
            peer.last_handshake_sent = LONG_AGO
            peer.unanswered, peer.is_silent_since, peer.problem = 0, None, None
            self.exchange.abandon(peer)
            peer.end_sessions()
            self._data_plane.forget_keypairs(peer.id)
            self._data_plane.flush_staged(peer.id)
            self._data_plane.release_activity(peer.id)

    # Reports and timers

    def handle_report(self, report: Report, now: int) -> None:
        """Handle one report of the data plane. Reports about removed peers or ended sessions are ignored."""
        if isinstance(report, HandshakeDatagram):
            if self.is_up:
                self._handle_handshake(report, now)
            return
        if isinstance(report, Refused):
            self._handle_refusal(report)
            return
        if isinstance(report, Stranger):
            stranger = PublicKey(report.public_key)
            self._events.append(HandshakeRefused(DropReason.UNKNOWN_PEER, report.endpoint, stranger))
            return
        peer = self.peers.by_id(report.peer)
        if peer is None:
            return
        if isinstance(report, KeypairsDropped):
            self._free_indices(peer, report.local_indices)
        elif isinstance(report, RoamedReport):
            self._move(peer, report.endpoint, now)
        elif isinstance(report, SendFailed):
            if peer.send_error != report.errno:
                peer.send_error = report.errno
                self._events.append(SendRefused(peer.public_key, report.errno))
        elif isinstance(report, Answered):
            self._handle_answered(peer, report, now)
        elif isinstance(report, TrainsLost):
            self._events.append(BatchesLost(peer.public_key))
        elif self.is_up:
            self._handle_session_report(peer, report, now)
        elif isinstance(report, KeyWanted):
            # Reported only once, maybe before the sockets are open or while their port is taken.
            self._wanted_while_down.add(peer.id)

    def _handle_refusal(self, report: Refused) -> None:
        if report.reason is DropReason.UNDER_LOAD:
            self._events.append(CookieReplySent(report.endpoint))
        elif report.peer is None:
            self._events.append(HandshakeRefused(report.reason, report.endpoint))
        elif (peer := self.peers.by_id(report.peer)) is not None:
            if report.inner_source is None:
                self._events.append(HandshakeRefused(report.reason, report.endpoint, peer.public_key))
            else:
                inner = ip.text_of(report.inner_source)
                self._events.append(PacketRefused(peer.public_key, report.endpoint, inner))

    def handle_timeout(self, now: int) -> None:
        """Run the timers that are due at `now`."""
        for peer_id in self.renewal.wheel.expire(now):
            peer = self.peers.by_id(peer_id)
            if peer is not None:
                self.renewal.run_due(peer, now)

    def poll_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # Handshakes

    def _handle_session_report(self, peer: Peer, report: KeyWanted | KeyConfirmed | Active, now: int) -> None:
        if isinstance(report, KeyWanted):
            self.renewal.want_session(peer, report, now)
        elif isinstance(report, KeyConfirmed) and peer.confirm(report.local_index):
            self.renewal.complete(peer, as_initiator=False, now=now)
        self.renewal.rearm(peer, now)

    def _handle_handshake(self, datagram: HandshakeDatagram, now: int) -> None:
        outcome = self.exchange.consume(datagram, now)
        if isinstance(outcome, Reply):
            self._data_plane.send_to(datagram.endpoint, datagram.source, outcome.datagram)
        elif outcome is not None:
            self._learn_endpoint(outcome.peer, datagram, now)
            self._data_plane.note_handshake(outcome.peer.id, len(datagram.data), now)
            if isinstance(outcome, Accepted):
                self._answer(outcome, now)
            else:
                self.renewal.begin_session(outcome, now)
                self.renewal.complete(outcome.peer, as_initiator=True, now=now)
            self.renewal.rearm(outcome.peer, now)

    def _learn_endpoint(self, peer: Peer, datagram: HandshakeDatagram, now: int) -> None:
        if peer.endpoint != datagram.endpoint:
            self._move(peer, datagram.endpoint, now)
        self._data_plane.set_endpoint(peer.id, datagram.endpoint, datagram.source)

    def _move(self, peer: Peer, endpoint: Endpoint, now: int) -> None:
        old, peer.endpoint = peer.endpoint, endpoint
        self._events.append(Roamed(peer.public_key, endpoint))
        if old is None or old == endpoint:
            return
        if peer.roaming is None:
            peer.roaming = Roaming()
        if peer.roaming.move(old, endpoint, now):
            self._events.append(EndpointFlapping(peer.public_key, (old, endpoint)))

    def _handle_answered(self, peer: Peer, report: Answered, now: int) -> None:
        """Do the work of `_handle_handshake` and `_answer` after the data plane has answered by itself."""
        if not self.is_up:
            # The data plane answered while the interface went down.
            self._data_plane.forget_keypairs(peer.id)
            return
        self.exchange.indices.replace(report.local_index, peer)
        if report.identity != self.renewal.identity:
            self.renewal.note_former_session(peer, report.local_index, report.at)
            self.renewal.rearm(peer, now)
            return
        peer.last_initiation_consumed = peer.last_handshake_sent = report.at
        if peer.endpoint != report.endpoint:
            self._move(peer, report.endpoint, now)
        self._events.append(ResponseSent(peer.public_key, report.endpoint))
        self.renewal.note_session(peer, report.local_index, report.at)
        self.renewal.rearm(peer, now)

    def _answer(self, accepted: Accepted, now: int) -> None:
        peer = accepted.peer
        assert peer.endpoint is not None
        self._events.append(ResponseSent(peer.public_key, peer.endpoint))
        peer.last_handshake_sent = now
        self.renewal.begin_session(accepted, now)
        self._data_plane.send_to_peer(peer.id, accepted.response)

    # Bookkeeping

    def _free_indices(self, peer: Peer, indices: Collection[int]) -> None:
        for index in peer.drop_keypairs(indices):
            self.exchange.indices.remove(index)

    def _remove_own_key(self, public_key: PublicKey) -> None:
        peer = self.peers.get(public_key)
        if peer is not None:
            self.remove_peer(peer)
