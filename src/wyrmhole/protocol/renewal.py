"""Start, repetition and end of handshakes, and the actions of the timers (whitepaper 6.1 to 6.5), for every peer.

`initiate` enforces "at most one initiation in Rekey-Timeout". `begin_session` and `complete` apply the results of a
handshake, and `ACTIONS` has the action of each timer. Deadlines and their transitions are in `timers`. Each peer has
one entry in the timer wheel, which `rearm` sets after every step.
"""

from __future__ import annotations

from collections.abc import Callable

from wyrmhole.protocol.constants import (
    REJECT_AFTER_MESSAGES,
    REKEY_AFTER_MESSAGES,
    REKEY_TIMEOUT_JITTER,
    Timings,
)
from wyrmhole.protocol.data_plane import NEVER, DataPlane, KeypairParams, KeyWanted, Marks, PeerId, SessionLimits
from wyrmhole.protocol.events import (
    Event,
    HandshakeCompleted,
    HandshakeGaveUp,
    HandshakeImpossible,
    InitiationSent,
    KeepaliveSent,
    PeerBack,
    PeerSilent,
    SessionExpired,
)
from wyrmhole.protocol.exchange import Accepted, Completed, Exchange
from wyrmhole.protocol.keys import PrivateKey
from wyrmhole.protocol.peer import LONG_AGO, Peer, Session
from wyrmhole.protocol.timer_wheel import TimerWheel
from wyrmhole.protocol.timers import Timer


class Renewal:
    """The policy of handshakes and timers. `record` accepts events; the other arguments are those of `Interface`.

    `Interface` calls `rearm` after each change of a peer.
    """

    def __init__(
        self,
        data_plane: DataPlane,
        exchange: Exchange,
        record: Callable[[Event], None],
        *,
        random: Callable[[int], bytes],
        wall_clock: Callable[[], int],
        timings: Timings,
        now: int,
    ) -> None:
        self.timings = timings
        self.is_up = False
        self.identity = 0
        """The data plane's number of the present private key."""
        self.wheel: TimerWheel[PeerId] = TimerWheel(now)
        self._data_plane = data_plane
        self._exchange = exchange
        self._record = record
        self._random = random
        self._wall_clock = wall_clock

    # Handshakes

    def want_session(self, peer: Peer, wanted: KeyWanted, now: int) -> None:
        """Initiate, unless a series is in progress or a session with time left began after the report was made."""
        session = peer.session
        is_current = session is not None and session.index == wanted.renews
        if peer.timers.is_trying:
            return
        if session is not None and not is_current and now < session.birth + self.timings.rekey_on_receive_after:
            self._data_plane.expect_key(peer.id)
        elif session is not None and is_current and session.yields:
            self._initiate_later(peer, session, now)
        else:
            self.initiate(peer, now, is_retry=False)

    def initiate(self, peer: Peer, now: int, *, is_retry: bool) -> None:
        """Send an initiation, or postpone it until Rekey-Timeout after the last handshake message (6.1)."""
        timers = peer.timers
        if peer.endpoint is None or self._exchange.private_key is None:
            missing = "the interface has no private key" if peer.endpoint else "the peer has no endpoint"
            self._stop_trying(peer, missing)
            return
        if not is_retry:
            timers.begin_series(now)
        earliest = peer.last_handshake_sent + self.timings.rekey_timeout
        if now < earliest:
            timers.postpone(earliest)
            return
        message = self._exchange.create_initiation(peer, now)
        if message is None:
            self._stop_trying(peer, "the peer's public key is invalid (a low-order point)")
            return
        timers.sent_initiation(now + self.timings.rekey_timeout + self._jitter())
        peer.last_handshake_sent = now
        if not peer.unanswered:
            peer.unanswered_since = now
        peer.unanswered += 1
        self._record(InitiationSent(peer.public_key, peer.endpoint, timers.attempts + 1))
        self._data_plane.send_to_peer(peer.id, message)

    def _initiate_later(self, peer: Peer, session: Session, now: int) -> None:
        """Renew a session that the other side should renew, unless it does so within a Rekey-Timeout.

        The other side does so if it sends anything. If packets are rare, this may be called when the session is already
        too old to wait.
        """
        latest = session.birth + self.timings.rekey_when_yielding_after
        if now >= latest:
            self.initiate(peer, now, is_retry=False)
            return
        peer.timers.begin_series(now)
        peer.timers.postpone(min(now + self.timings.rekey_timeout + self._jitter(), latest))

    def restart(self, peer: Peer, now: int) -> bool:
        """Forget the initiations sent under the former identity.

        Return whether a series was in progress; it continues under the new identity.
        """
        was_trying = peer.timers.is_trying
        peer.timers.stop_trying()
        peer.last_handshake_sent = LONG_AGO
        if was_trying:
            # Packets wait for this handshake, and no further packet may come to start another.
            self.initiate(peer, now, is_retry=True)
        return was_trying

    def begin_session(self, outcome: Accepted | Completed, now: int) -> None:
        """Install the derived keys (5.4.5), which live for at most three Reject-After-Times (6.3)."""
        peer, is_initiator = outcome.peer, isinstance(outcome, Completed)
        yields = is_initiator and self._yields(peer, now)
        peer.begin(Session(outcome.local_index, now, yields), is_initiator=is_initiator)
        peer.timers.began_session(now + self.timings.zero_keys_after)
        self._data_plane.install_keypair(peer.id, self._keypair_params(outcome, is_initiator=is_initiator, now=now))

    def note_session(self, peer: Peer, local_index: int, at: int) -> None:
        """Record a session that the data plane began by itself, as responder."""
        peer.begin(Session(local_index, at, yields=False), is_initiator=False)
        peer.timers.began_session(at + self.timings.zero_keys_after)

    def note_former_session(self, peer: Peer, local_index: int, at: int) -> None:
        """Record a session that began under the former private key: it only receives."""
        peer.keep_keypair(local_index)
        peer.timers.began_session(at + self.timings.zero_keys_after)

    def answer_initiations(self, private_key: PrivateKey | None) -> None:
        """Let a data plane that answers initiations use this identity; None stops it."""
        limits = SessionLimits(
            reject_after=self.timings.reject_after,
            send_for=self.timings.reject_after - self.timings.send_margin,
            rekey_after_messages=REKEY_AFTER_MESSAGES,
            reject_after_messages=REJECT_AFTER_MESSAGES,
        )
        self.identity = self._data_plane.answer_initiations(None if private_key is None else private_key.raw, limits)

    def _keypair_params(self, outcome: Accepted | Completed, *, is_initiator: bool, now: int) -> KeypairParams:
        return KeypairParams(
            local_index=outcome.local_index,
            remote_index=outcome.remote_index,
            send_key=outcome.keys.send,
            receive_key=outcome.keys.receive,
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
        """Return whether the other side should renew the session that begins now.

        After two crossed handshakes both sides are initiators. Simultaneous messages would make their renewals cross
        again each time, so one side gives the other time to renew: see `_initiate_later`.
        """
        crossed = now - peer.last_initiation_consumed < self.timings.rekey_timeout
        own = self._exchange.private_key
        return crossed and own is not None and own.public_key().raw < peer.public_key.raw

    def complete(self, peer: Peer, *, as_initiator: bool, now: int) -> None:
        """Apply a completed handshake: both sides have proved that they have the keys."""
        peer.timers.completed()
        peer.send_error = 0
        if not as_initiator:
            # The peer's handshake completed; a response to ours would only start one more session.
            self._exchange.abandon(peer)
        peer.last_handshake_wall = self._wall_clock()
        self._record(HandshakeCompleted(peer.public_key, as_initiator))
        peer.unanswered, peer.problem = 0, None
        if peer.is_silent_since is not None:
            self._record(PeerBack(peer.public_key, now - peer.is_silent_since))
            peer.is_silent_since = None

    def _stop_trying(self, peer: Peer, reason: str) -> None:
        """End the series and drop the staged packets, because no handshake is possible at present."""
        peer.timers.stop_trying()
        self._data_plane.expect_key(peer.id)
        self._data_plane.flush_staged(peer.id)
        self._record(HandshakeImpossible(peer.public_key, reason))

    def _jitter(self) -> int:
        """Draw a uniform jitter of 0 to 333 ms."""
        return int.from_bytes(self._random(4), "little") % (REKEY_TIMEOUT_JITTER + 1)

    # Timers

    def start_persistent(self, peer: Peer, now: int, *, send: bool) -> None:
        if peer.timers.persistent_interval:
            peer.timers.start_persistent(now)
            if send:
                self._send_keepalive(peer, persistent=True)
        self.rearm(peer, now)

    def rearm(self, peer: Peer, now: int) -> None:
        """Set the peer's entry in the wheel. If no mark is pending, let the data plane report `Active` again."""
        if not self.is_up:
            self.wheel.cancel(peer.id)
            return
        marks = self._data_plane.marks(peer.id)
        if not peer.timers.is_pending(marks):
            marks = self._data_plane.release_activity(peer.id)
        deadline = peer.timers.next_deadline(marks, self.timings)
        if peer.timers.is_pending(marks):
            deadline = min(deadline, now + self.timings.keepalive)
        if deadline < NEVER:
            self.wheel.arm(peer.id, deadline)
        else:
            self.wheel.cancel(peer.id)

    def run_due(self, peer: Peer, now: int) -> None:
        """Run the due timers one by one, each with fresh marks, because one keepalive postpones the other."""
        for _ in Timer:
            marks = self._data_plane.marks(peer.id)
            armed = peer.timers.deadlines(marks, self.timings)
            if not armed or armed[0][0] > now:
                break
            timer = armed[0][1]
            peer.timers.expired(timer, marks, now)
            ACTIONS[timer](self, peer, marks, now)
        self.rearm(peer, now)

    def _retransmit(self, peer: Peer, marks: Marks, now: int) -> None:
        if peer.timers.is_exhausted(now, self.timings):
            self._give_up(peer, now)
            return
        peer.timers.begin_attempt()
        if now - peer.unanswered_since >= self.timings.silence:
            self._report_silence(peer, now)
        self._data_plane.clear_source(peer.id)
        self.initiate(peer, now, is_retry=True)

    def _give_up(self, peer: Peer, now: int) -> None:
        """End the series: nothing more is sent until new traffic starts another (6.4)."""
        self._exchange.abandon(peer)
        self._data_plane.flush_staged(peer.id)
        self._data_plane.forget_unanswered(peer.id, self._data_plane.marks(peer.id).data_sent_since)
        self._record(HandshakeGaveUp(peer.public_key, peer.timers.attempts + 1))
        peer.timers.gave_up(now + self.timings.zero_keys_after)

    def _initiate_postponed(self, peer: Peer, marks: Marks, now: int) -> None:
        if not peer.timers.handshake_under_way:
            # The series began when it was postponed. Beginning it anew would let the peer's initiations prolong it for
            # ever.
            self.initiate(peer, now, is_retry=True)

    def _answer_by_keepalive(self, peer: Peer, marks: Marks, now: int) -> None:
        self._send_keepalive(peer, persistent=False)
        self._data_plane.forget_received(peer.id, marks.data_received_since)

    def _renew(self, peer: Peer, marks: Marks, now: int) -> None:
        """Try a new handshake from a newly chosen source address, because data went unanswered (6.5)."""
        self._data_plane.forget_unanswered(peer.id, marks.data_sent_since)
        peer.timers.renewed(self._jitter())
        self._report_silence(peer, now)
        if not peer.timers.is_trying:
            self._data_plane.clear_source(peer.id)
            self.initiate(peer, now, is_retry=False)

    def _zero_keys(self, peer: Peer, marks: Marks, now: int) -> None:
        peer.end_sessions()
        self._data_plane.forget_keypairs(peer.id)
        if not peer.timers.handshake_under_way:
            # Packets may wait for a pending handshake, which ends by its own timer.
            self._exchange.abandon(peer)
            self._data_plane.flush_staged(peer.id)
        self._record(SessionExpired(peer.public_key))

    def _keep_alive(self, peer: Peer, marks: Marks, now: int) -> None:
        self._send_keepalive(peer, persistent=True)

    def _send_keepalive(self, peer: Peer, *, persistent: bool) -> None:
        self._record(KeepaliveSent(peer.public_key, persistent))
        self._data_plane.send_keepalive(peer.id)

    def _report_silence(self, peer: Peer, now: int) -> None:
        if peer.is_silent_since is None:
            peer.is_silent_since = now
            self._record(PeerSilent(peer.public_key, peer.endpoint, peer.unanswered, peer.problem))


ACTIONS: dict[Timer, Callable[[Renewal, Peer, Marks, int], None]] = {
    Timer.RETRANSMIT_HANDSHAKE: Renewal._retransmit,
    Timer.INITIATE: Renewal._initiate_postponed,
    Timer.ZERO_KEYS: Renewal._zero_keys,
    Timer.SEND_KEEPALIVE: Renewal._answer_by_keepalive,
    Timer.NEW_HANDSHAKE: Renewal._renew,
    Timer.PERSISTENT_KEEPALIVE: Renewal._keep_alive,
}
"""The action of each timer that falls due."""
