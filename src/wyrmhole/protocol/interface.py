"""One WireGuard interface as one pure object: configuration and reports in, data-plane calls and events out.

The methods come in four kinds. Getters (`peers`, `peer`, `poll_timeout`) change nothing. Commands (`set_...`,
`add_peer`, `up`, `down`) are what a user wants. `handle_report` and `handle_timeout` are what happened. `poll_event`
gives what a user may want to know. Whoever drives it calls, after any command or handle_..., `poll_event` until None,
and `handle_timeout` no later than `poll_timeout` says.

What to send and which keys to use goes to the data plane by direct calls (see data_plane); packets themselves never
come here. `now` is nanoseconds on a boottime clock and does not go backwards.

The rules of whitepaper section 6, in one place each: `_initiate` holds "at most one initiation in Rekey-Timeout",
`_run` what each timer does, `_begin_session` what follows from a handshake.

Longer than 500 lines because these rules act on one state, and each is short beside the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable

from wyrmhole.protocol.constants import (
    REJECT_AFTER_MESSAGES,
    REKEY_AFTER_MESSAGES,
    REKEY_TIMEOUT_JITTER,
    Timings,
)
from wyrmhole.protocol.data_plane import (
    NEVER,
    Active,
    DataPlane,
    HandshakeDatagram,
    KeyConfirmed,
    KeypairParams,
    KeypairsDropped,
    KeyWanted,
    Marks,
    PeerId,
    Refused,
    Report,
    SendFailed,
    TrainsLost,
)
from wyrmhole.protocol.data_plane import Roamed as RoamedReport
from wyrmhole.protocol.events import (
    BatchesLost,
    EndpointFlapping,
    Event,
    HandshakeCompleted,
    HandshakeGaveUp,
    HandshakeImpossible,
    HandshakeRefused,
    InitiationSent,
    KeepaliveSent,
    PacketRefused,
    PeerBack,
    PeerSilent,
    ResponseSent,
    Roamed,
    SendRefused,
    SessionExpired,
)
from wyrmhole.protocol.exchange import Accepted, Completed, Exchange, Reply
from wyrmhole.protocol.inspection import InterfaceState, peer_state
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.protocol.noise import TransportKeys
from wyrmhole.protocol.peer import LONG_AGO, Peer, Session
from wyrmhole.protocol.peer_store import PeerStore
from wyrmhole.protocol.ratelimiter import RateLimiter
from wyrmhole.protocol.roaming import Roaming
from wyrmhole.protocol.timer_wheel import TimerWheel
from wyrmhole.protocol.timers import Timer
from wyrmhole.wire import ip
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

MAX_EVENTS = 1024
"""Events that nobody polls: the oldest go."""


class Interface:
    """`random(n)` gives n secret bytes, `wall_clock()` nanoseconds since 1970; `now` is when it is made."""

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
        self.is_up = False
        self._data_plane = data_plane
        self._random = random
        self._wall_clock = wall_clock
        self._wheel: TimerWheel[int] = TimerWheel(now)
        self._owners: dict[Prefix, Peer] = {}
        self._wanted_while_down: set[PeerId] = set()

    # Getters

    @property
    def private_key(self) -> PrivateKey | None:
        return self.exchange.private_key

    def peer(self, public_key: PublicKey) -> Peer | None:
        return self.peers.get(public_key)

    def owner(self, prefix: Prefix) -> Peer | None:
        """The peer that has exactly this prefix."""
        return self._owners.get(prefix)

    def poll_timeout(self) -> int | None:
        """When `handle_timeout` is due; None: nothing is."""
        return self._wheel.next_deadline()

    def next_timer(self, peer: Peer) -> tuple[int, Timer] | None:
        """The peer's next deadline and its reason, for logs and tests."""
        armed = peer.timers.deadlines(self._data_plane.marks(peer.id), self.timings)
        return armed[0] if armed else None

    def inspect(self) -> InterfaceState:
        """A snapshot, for tests and the simulator."""
        peers = tuple([peer_state(peer) for peer in self.peers])
        return InterfaceState(peers, frozenset(self.exchange.indices), frozenset(self._wheel), len(self._owners))

    # Commands

    def set_private_key(self, private_key: PrivateKey | None, now: int) -> None:
        """Use another identity. Sessions may finish receiving, nothing more is sent under them (rule M52). The first
        identity of an interface that is up starts its persistent keepalives at once (rule M53)."""
        if private_key is not None and private_key.is_zero:
            private_key = None
        if private_key == self.private_key:
            return
        if private_key is not None:
            self._remove_own_key(private_key.public_key())
        is_first = self.private_key is None
        self.exchange.set_private_key(private_key)
        checker = self.exchange.checker
        self._data_plane.set_mac1_key(None if checker is None else checker.mac1_key)
        for peer in self.peers:
            self._data_plane.expire_sending_keys(peer.id)
            self._data_plane.expect_key(peer.id)
            peer.end_sessions()
            was_trying = peer.timers.is_trying
            peer.timers.retransmit_at = peer.timers.initiate_at = NEVER
            peer.last_handshake_sent = LONG_AGO
            if was_trying:
                # Packets wait for this handshake, and no other one may come to ask for the next.
                self._initiate(peer, now, is_retry=True)
            elif self.is_up and is_first:
                self._start_persistent(peer, now, send=True)
            self._rearm(peer, now)

    def add_peer(self, public_key: PublicKey) -> Peer | None:
        """The peer of this key, made if need be; None for our own key, which is no peer (rule M51).
        Raises TooManyPeers."""
        if self.private_key is not None and self.private_key.public_key() == public_key:
            return None
        peer = self.peers.get(public_key)
        if peer is None:
            peer = self.peers.create(public_key)
            # Worked out here, it costs each handshake one Diffie-Hellman less; a configuration has the time.
            self.exchange.static_static(peer)
            self._data_plane.add_peer(peer.id)
        return peer

    def remove_peer(self, peer: Peer) -> None:
        self._wheel.cancel(peer.id)
        self.exchange.abandon(peer)
        for index in peer.keypair_indices:
            self.exchange.indices.remove(index)
        for prefix in peer.allowed_ips:
            del self._owners[prefix]
        self.peers.remove(peer)
        self._data_plane.remove_peer(peer.id)

    def set_preshared_key(self, peer: Peer, preshared_key: PresharedKey | None) -> None:
        """Used from the next handshake on."""
        peer.preshared_key = None if preshared_key is None or preshared_key.is_zero else preshared_key

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, now: int) -> None:
        """The first endpoint of a peer while up sends a persistent keepalive at once (rule M53)."""
        is_first = peer.endpoint is None
        peer.endpoint, peer.send_error = endpoint, 0
        self._data_plane.set_endpoint(peer.id, endpoint)
        if is_first and self.is_up:
            self._start_persistent(peer, now, send=True)

    def forget_sources(self) -> None:
        """Packets may leave by another route now: no peer keeps the address that it was last answered from."""
        for peer in self.peers:
            self._data_plane.clear_source(peer.id)

    def set_persistent_keepalive(self, peer: Peer, seconds: int, now: int) -> None:
        """0 turns it off; turning it on while up sends one at once (rule M53)."""
        turned_on = seconds > 0 and peer.timers.persistent_interval == 0
        peer.timers.persistent_interval = seconds
        if self.is_up:
            self._start_persistent(peer, now, send=turned_on)

    def request_handshake(self, peer: Peer, now: int) -> None:
        """Begin a handshake as soon as Rekey-Timeout allows, session or not; one that is under way goes on."""
        if self.is_up and not peer.timers.is_trying:
            self._initiate(peer, now, is_retry=False)
            self._rearm(peer, now)

    def insert_allowed_ip(self, peer: Peer, prefix: Prefix) -> None:
        """Give the prefix to the peer, whoever had it."""
        former = self._owners.get(prefix)
        if former is not None:
            del former.allowed_ips[prefix]
        self._owners[prefix] = peer
        peer.allowed_ips[prefix] = None
        if former is not peer:
            self._data_plane.insert_allowed_ip(peer.id, prefix)

    def remove_allowed_ip(self, peer: Peer, prefix: Prefix) -> None:
        """Take exactly this prefix from the peer, if it has it."""
        if self._owners.get(prefix) is peer:
            del self._owners[prefix], peer.allowed_ips[prefix]
            self._data_plane.remove_allowed_ip(peer.id, prefix)

    def replace_allowed_ips(self, peer: Peer, prefixes: Iterable[Prefix]) -> None:
        """The peer has exactly these afterwards. What it keeps never leaves the table on the way."""
        wanted = dict.fromkeys(prefixes)
        for prefix in [old for old in peer.allowed_ips if old not in wanted]:
            self.remove_allowed_ip(peer, prefix)
        for prefix in wanted:
            self.insert_allowed_ip(peer, prefix)

    def up(self, now: int) -> None:
        """Packets can be sent: persistent keepalives start with one at once (rule M53), and packets that came from the
        TUN before this call get their handshake."""
        if self.is_up:
            return
        self.is_up = True
        for peer in self.peers:
            self._start_persistent(peer, now, send=True)
        wanted, self._wanted_while_down = self._wanted_while_down, set()
        for peer_id in wanted:
            self.handle_report(KeyWanted(peer_id), now)

    def down(self) -> None:
        """No packet leaves from here on; all sessions and handshakes are forgotten."""
        self.is_up = False
        self._wanted_while_down.clear()
        for peer in self.peers:
            self._wheel.cancel(peer.id)
            peer.timers.reset()
            peer.last_handshake_sent = LONG_AGO
            peer.unanswered, peer.is_silent_since, peer.problem = 0, None, None
            self.exchange.abandon(peer)
            peer.end_sessions()
            self._data_plane.forget_keypairs(peer.id)
            self._data_plane.flush_staged(peer.id)
            self._data_plane.release_activity(peer.id)

    # What happened

    def handle_report(self, report: Report, now: int) -> None:
        """Take one report of the data plane. Reports about peers or sessions that are gone are ignored."""
        if isinstance(report, HandshakeDatagram):
            if self.is_up:
                self._handle_handshake(report, now)
            return
        if isinstance(report, Refused):
            self._handle_refusal(report)
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
        elif isinstance(report, TrainsLost):
            self._events.append(BatchesLost(peer.public_key))
        elif self.is_up:
            self._handle_session_report(peer, report, now)
        elif isinstance(report, KeyWanted):
            # The TUN comes up before its sockets are open, or these could not be had yet; it is said only once.
            self._wanted_while_down.add(peer.id)

    def _handle_refusal(self, report: Refused) -> None:
        if report.peer is None:
            self._events.append(HandshakeRefused(report.reason, report.endpoint))
        elif (peer := self.peers.by_id(report.peer)) is not None and report.inner_source is not None:
            inner = ip.text_of(report.inner_source)
            self._events.append(PacketRefused(peer.public_key, report.endpoint, inner))

    def handle_timeout(self, now: int) -> None:
        """Do what is due at `now`."""
        for peer_id in self._wheel.expire(now):
            peer = self.peers.by_id(peer_id)
            if peer is not None:
                self._run_due(peer, now)
                self._rearm(peer, now)

    def poll_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    # Handshakes

    def _handle_session_report(self, peer: Peer, report: KeyWanted | KeyConfirmed | Active, now: int) -> None:
        if isinstance(report, KeyWanted):
            if not peer.timers.is_trying:
                self._want_session(peer, report, now)
        elif isinstance(report, KeyConfirmed) and peer.confirm(report.local_index):
            self._handshake_completed(peer, as_initiator=False, now=now)
        self._rearm(peer, now)

    def _want_session(self, peer: Peer, wanted: KeyWanted, now: int) -> None:
        """Initiate, unless a session with time left came since the report was made, or is there against its words."""
        session = peer.session
        is_current = session is not None and session.index == wanted.renews
        if session is not None and not is_current and now < session.birth + self.timings.rekey_on_receive_after:
            self._data_plane.expect_key(peer.id)
        elif session is not None and is_current and session.yields:
            self._initiate_later(peer, session, now)
        else:
            self._initiate(peer, now, is_retry=False)

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
                self._complete(outcome, now)
            self._rearm(outcome.peer, now)

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

    def _answer(self, accepted: Accepted, now: int) -> None:
        peer = accepted.peer
        assert peer.endpoint is not None
        self._events.append(ResponseSent(peer.public_key, peer.endpoint))
        peer.last_handshake_sent = now
        self._begin_session(peer, accepted, is_initiator=False, now=now)
        self._data_plane.send_to_peer(peer.id, accepted.response)

    def _complete(self, completed: Completed, now: int) -> None:
        self._begin_session(completed.peer, completed, is_initiator=True, now=now)
        self._handshake_completed(completed.peer, as_initiator=True, now=now)

    def _begin_session(self, peer: Peer, outcome: Accepted | Completed, *, is_initiator: bool, now: int) -> None:
        """Derived keys go to the data plane (5.4.5) and live for three Reject-After-Times at most (6.3)."""
        yields = is_initiator and self._yields(peer, now)
        peer.begin(Session(outcome.local_index, now, yields), is_initiator=is_initiator)
        peer.timers.zero_keys_at = now + self.timings.zero_keys_after
        params = self._keypair_params(outcome.keys, outcome, is_initiator=is_initiator, now=now)
        self._data_plane.install_keypair(peer.id, params)

    def _keypair_params(
        self, keys: TransportKeys, outcome: Accepted | Completed, *, is_initiator: bool, now: int
    ) -> KeypairParams:
        return KeypairParams(
            local_index=outcome.local_index,
            remote_index=outcome.remote_index,
            send_key=keys.send,
            receive_key=keys.receive,
            is_initiator=is_initiator,
            birth=now,
            rekey_send_at=now + self.timings.rekey_after if is_initiator else NEVER,
            rekey_receive_at=now + self.timings.rekey_on_receive_after if is_initiator else NEVER,
            reject_at=now + self.timings.reject_after,
            send_until=now + self.timings.reject_after - self.timings.send_margin,
            rekey_after_messages=REKEY_AFTER_MESSAGES,
            reject_after_messages=REJECT_AFTER_MESSAGES,
        )

    def _yields(self, peer: Peer, now: int) -> bool:
        """Whether the other side is to renew the session that begins now.

        After two crossed handshakes both sides are initiators, and messages that leave both at once would make them
        cross again at each renewal. So one side gives the other the time to do it: see `_initiate_later`."""
        crossed = now - peer.last_initiation_consumed < self.timings.rekey_timeout
        own = self.private_key
        return crossed and own is not None and own.public_key().raw < peer.public_key.raw

    def _initiate_later(self, peer: Peer, session: Session, now: int) -> None:
        """Renew a session that the other side is to renew, unless that one does so within a Rekey-Timeout, which it
        does if it sends anything. What is sent seldom may ask when the session has no such time left."""
        latest = session.birth + self.timings.rekey_when_yielding_after
        if now >= latest:
            self._initiate(peer, now, is_retry=False)
            return
        peer.timers.attempts, peer.timers.trying_since = 0, now
        peer.timers.initiate_at = min(now + self.timings.rekey_timeout + self._jitter(), latest)

    def _handshake_completed(self, peer: Peer, *, as_initiator: bool, now: int) -> None:
        timers = peer.timers
        timers.attempts = peer.send_error = 0
        timers.retransmit_at = timers.initiate_at = NEVER
        if not as_initiator:
            # Their handshake won; a response to ours would only start one more session.
            self.exchange.abandon(peer)
        peer.last_handshake_wall = self._wall_clock()
        self._events.append(HandshakeCompleted(peer.public_key, as_initiator))
        peer.unanswered, peer.problem = 0, None
        if peer.is_silent_since is not None:
            self._events.append(PeerBack(peer.public_key, now - peer.is_silent_since))
            peer.is_silent_since = None

    def _initiate(self, peer: Peer, now: int, *, is_retry: bool) -> None:
        """Send an initiation, unless one left less than Rekey-Timeout ago (6.1): then as soon as that is over."""
        timers = peer.timers
        if peer.endpoint is None or self.private_key is None:
            missing = "the interface has no private key" if peer.endpoint else "the peer has no endpoint"
            self._stop_trying(peer, missing)
            return
        if not is_retry:
            timers.attempts, timers.trying_since = 0, now
        earliest = peer.last_handshake_sent + self.timings.rekey_timeout
        if now < earliest:
            timers.initiate_at = earliest
            return
        message = self.exchange.create_initiation(peer, now)
        if message is None:
            self._stop_trying(peer, "the peer's public key is invalid (a low-order point)")
            return
        timers.initiate_at = NEVER
        timers.retransmit_at = now + self.timings.rekey_timeout + self._jitter()
        peer.last_handshake_sent = now
        if not peer.unanswered:
            peer.unanswered_since = now
        peer.unanswered += 1
        self._events.append(InitiationSent(peer.public_key, peer.endpoint, timers.attempts + 1))
        self._data_plane.send_to_peer(peer.id, message)

    def _stop_trying(self, peer: Peer, reason: str) -> None:
        """There can be no handshake as things are, so what waits for one would wait for ever."""
        peer.timers.retransmit_at = peer.timers.initiate_at = NEVER
        self._data_plane.expect_key(peer.id)
        self._data_plane.flush_staged(peer.id)
        self._events.append(HandshakeImpossible(peer.public_key, reason))

    def _jitter(self) -> int:
        """0 to 333 ms, uniform."""
        return int.from_bytes(self._random(4), "little") % (REKEY_TIMEOUT_JITTER + 1)

    # Timers

    def _run_due(self, peer: Peer, now: int) -> None:
        """One after the other, each with fresh marks: a keepalive that left puts the other keepalive off."""
        for _ in Timer:
            marks = self._data_plane.marks(peer.id)
            armed = peer.timers.deadlines(marks, self.timings)
            if not armed or armed[0][0] > now:
                return
            self._run(peer, armed[0][1], marks, now)

    def _run(self, peer: Peer, timer: Timer, marks: Marks, now: int) -> None:
        """Act, in a way that this timer is not due at `now` any more."""
        timers = peer.timers
        if timer is Timer.RETRANSMIT_HANDSHAKE:
            self._retransmit(peer, now)
        elif timer is Timer.INITIATE:
            timers.initiate_at = NEVER
            if not timers.handshake_under_way:
                # The series began when it was put off, or a peer whose initiations reach us would keep it alive.
                self._initiate(peer, now, is_retry=True)
        elif timer is Timer.SEND_KEEPALIVE:
            timers.answered_since = marks.data_received_since
            self._send_keepalive(peer, persistent=False)
            self._data_plane.forget_received(peer.id, marks.data_received_since)
        elif timer is Timer.NEW_HANDSHAKE:
            self._renew(peer, marks, now)
        elif timer is Timer.ZERO_KEYS:
            self._zero_keys(peer)
        elif timer is Timer.PERSISTENT_KEEPALIVE:
            timers.persistent_from = now
            self._send_keepalive(peer, persistent=True)

    def _send_keepalive(self, peer: Peer, *, persistent: bool) -> None:
        self._events.append(KeepaliveSent(peer.public_key, persistent))
        self._data_plane.send_keepalive(peer.id)

    def _report_silence(self, peer: Peer, now: int) -> None:
        if peer.is_silent_since is None:
            peer.is_silent_since = now
            self._events.append(PeerSilent(peer.public_key, peer.endpoint, peer.unanswered, peer.problem))

    def _retransmit(self, peer: Peer, now: int) -> None:
        timers = peer.timers
        timers.retransmit_at = NEVER
        if timers.attempts > self.timings.max_retries or now - timers.trying_since >= self.timings.give_up_after:
            self._give_up(peer, now)
            return
        timers.attempts += 1
        if now - peer.unanswered_since >= self.timings.silence:
            self._report_silence(peer, now)
        self._data_plane.clear_source(peer.id)
        self._initiate(peer, now, is_retry=True)

    def _give_up(self, peer: Peer, now: int) -> None:
        """6.4: nothing more until new traffic wants it, and the keys go in time even without another session."""
        self.exchange.abandon(peer)
        self._data_plane.flush_staged(peer.id)
        self._data_plane.forget_unanswered(peer.id, self._data_plane.marks(peer.id).data_sent_since)
        self._events.append(HandshakeGaveUp(peer.public_key, peer.timers.attempts + 1))
        peer.timers.attempts = 0
        if peer.timers.zero_keys_at == NEVER:
            peer.timers.zero_keys_at = now + self.timings.zero_keys_after

    def _renew(self, peer: Peer, marks: Marks, now: int) -> None:
        """6.5: data went unanswered; whatever was wrong, a new handshake over another source finds out."""
        peer.timers.renewed_since = marks.data_sent_since
        self._data_plane.forget_unanswered(peer.id, marks.data_sent_since)
        peer.timers.no_answer_jitter = self._jitter()
        self._report_silence(peer, now)
        if not peer.timers.is_trying:
            self._data_plane.clear_source(peer.id)
            self._initiate(peer, now, is_retry=False)

    def _zero_keys(self, peer: Peer) -> None:
        timers = peer.timers
        timers.zero_keys_at = NEVER
        peer.end_sessions()
        self._data_plane.forget_keypairs(peer.id)
        if not timers.handshake_under_way:
            # A handshake under way has packets that wait for it, and an end of its own.
            self.exchange.abandon(peer)
            self._data_plane.flush_staged(peer.id)
        self._events.append(SessionExpired(peer.public_key))

    def _start_persistent(self, peer: Peer, now: int, *, send: bool) -> None:
        if peer.timers.persistent_interval:
            peer.timers.persistent_from = now
            if send:
                self._send_keepalive(peer, persistent=True)
        self._rearm(peer, now)

    def _rearm(self, peer: Peer, now: int) -> None:
        """Set the peer's one entry in the wheel; let the data plane say `Active` again when no mark is pending."""
        if not self.is_up:
            self._wheel.cancel(peer.id)
            return
        marks = self._data_plane.marks(peer.id)
        if not peer.timers.is_pending(marks):
            marks = self._data_plane.release_activity(peer.id)
        deadline = peer.timers.next_deadline(marks, self.timings)
        if peer.timers.is_pending(marks):
            deadline = min(deadline, now + self.timings.keepalive)
        if deadline < NEVER:
            self._wheel.arm(peer.id, deadline)
        else:
            self._wheel.cancel(peer.id)

    # Bookkeeping

    def _free_indices(self, peer: Peer, indices: Collection[int]) -> None:
        for index in peer.drop_keypairs(indices):
            self.exchange.indices.remove(index)

    def _remove_own_key(self, public_key: PublicKey) -> None:
        peer = self.peers.get(public_key)
        if peer is not None:
            self.remove_peer(peer)
