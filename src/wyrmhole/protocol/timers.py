"""The timers of one peer (whitepaper section 6; kernel timers.c): what arms each, what ends it, and when it is due.

`PeerTimers` owns its fields. Other modules read them and call its transitions; `renewal` does so at each step of a
handshake or session. The first three timers are set by these calls. The last three depend on packets and are never
armed or cancelled: the data plane keeps the marks, and the deadlines are computed from them at each check. While marks
are pending, the next check is at most Keepalive-Timeout away, because a mark set after a check cannot fall due sooner.
A data plane on another thread may briefly show a mark after it was acted on, so the timers remember these marks.
"""

from __future__ import annotations

from enum import Enum
from typing import assert_never

from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.protocol.data_plane import NEVER, Marks


class Timer(Enum):
    """The reasons to act for a peer. `renewal` defines the actions."""

    RETRANSMIT_HANDSHAKE = "retransmit_handshake"
    """An initiation was sent and no response came for Rekey-Timeout and a jitter (6.4)."""
    INITIATE = "initiate"
    """An initiation was wanted sooner than Rekey-Timeout after the last handshake message (6.1)."""
    ZERO_KEYS = "zero_keys"
    """There was no new session for three Reject-After-Times (6.3)."""
    SEND_KEEPALIVE = "send_keepalive"
    """Data was received Keepalive-Timeout ago and nothing was sent since (6.5)."""
    NEW_HANDSHAKE = "new_handshake"
    """Data was sent Keepalive-Timeout + Rekey-Timeout and a jitter ago and nothing was received since (6.5)."""
    PERSISTENT_KEEPALIVE = "persistent_keepalive"
    """Nothing passed in either direction for the configured interval."""


class PeerTimers:
    """Deadlines in boottime nanoseconds, NEVER if not armed. `persistent_interval` is in seconds; 0 turns it off.

    A series is the sequence of attempts at one handshake: the first initiation and its retransmissions, until a
    handshake completes or the series gives up.
    """

    __slots__ = (
        "answered_since",
        "attempts",
        "initiate_at",
        "no_answer_jitter",
        "persistent_from",
        "persistent_interval",
        "renewed_since",
        "retransmit_at",
        "trying_since",
        "zero_keys_at",
    )

    def __init__(self) -> None:
        self.persistent_interval = 0
        self.reset()

    def reset(self) -> None:
        """Disarm everything. The configured interval stays."""
        self.attempts = 0
        """Retransmissions in the present series."""
        self.trying_since = 0
        """When the present series began."""
        self.initiate_at = NEVER
        self.retransmit_at = NEVER
        self.zero_keys_at = NEVER
        self.persistent_from = NEVER
        self.no_answer_jitter = 0
        self.answered_since = 0
        """The value of `data_received_since` for which a keepalive was last sent."""
        self.renewed_since = 0
        """The value of `data_sent_since` that the no-answer rule last acted on."""

    # Transitions

    def begin_series(self, now: int) -> None:
        """Begin a new series. Its first initiation is sent now or postponed."""
        self.attempts, self.trying_since = 0, now

    def postpone(self, until: int) -> None:
        """Postpone the next initiation until this time."""
        self.initiate_at = until

    def sent_initiation(self, respond_by: int) -> None:
        self.initiate_at, self.retransmit_at = NEVER, respond_by

    def begin_attempt(self) -> None:
        """Count a retransmission in the same series, because no response came."""
        self.attempts += 1

    def stop_trying(self) -> None:
        """Send no initiation and no retransmission any more."""
        self.retransmit_at = self.initiate_at = NEVER

    def completed(self) -> None:
        """End the series, because a handshake of either side completed."""
        self.attempts = 0
        self.stop_trying()

    def gave_up(self, zero_keys_at: int) -> None:
        """End the series without success, and make sure that the keys are erased even without another session."""
        self.attempts = 0
        self.zero_keys_at = min(self.zero_keys_at, zero_keys_at)

    def began_session(self, zero_keys_at: int) -> None:
        self.zero_keys_at = zero_keys_at

    def renewed(self, jitter: int) -> None:
        """Set the jitter of the no-answer rule, which has acted, for the next time."""
        self.no_answer_jitter = jitter

    def set_persistent_interval(self, seconds: int) -> bool:
        """Set the interval. Return whether this turned persistent keepalives on."""
        turned_on = seconds > 0 and self.persistent_interval == 0
        self.persistent_interval = seconds
        return turned_on

    def start_persistent(self, now: int) -> None:
        """Count the interval from now, or from a later packet."""
        self.persistent_from = now

    def expired(self, timer: Timer, marks: Marks, now: int) -> None:
        """Record that this timer is acted on: it is not due again at `now`, nor for the same marks."""
        if timer is Timer.RETRANSMIT_HANDSHAKE:
            self.retransmit_at = NEVER
        elif timer is Timer.INITIATE:
            self.initiate_at = NEVER
        elif timer is Timer.ZERO_KEYS:
            self.zero_keys_at = NEVER
        elif timer is Timer.SEND_KEEPALIVE:
            self.answered_since = marks.data_received_since
        elif timer is Timer.NEW_HANDSHAKE:
            self.renewed_since = marks.data_sent_since
        elif timer is Timer.PERSISTENT_KEEPALIVE:
            self.persistent_from = now
        else:
            assert_never(timer)

    # State

    @property
    def handshake_under_way(self) -> bool:
        return self.retransmit_at != NEVER

    @property
    def is_trying(self) -> bool:
        """Whether a series is in progress, including an initiation that is postponed by Rekey-Timeout."""
        return self.retransmit_at != NEVER or self.initiate_at != NEVER

    def is_exhausted(self, now: int, timings: Timings) -> bool:
        """Return whether the series has used all its attempts or all its time (Rekey-Attempt-Time, 6.4)."""
        return self.attempts > timings.max_retries or now - self.trying_since >= timings.give_up_after

    def deadlines(self, marks: Marks, timings: Timings) -> list[tuple[int, Timer]]:
        """Return every armed timer, soonest first."""
        armed = [
            (self.retransmit_at, Timer.RETRANSMIT_HANDSHAKE),
            (self.initiate_at, Timer.INITIATE),
            (self.zero_keys_at, Timer.ZERO_KEYS),
            (self._keepalive_at(marks, timings), Timer.SEND_KEEPALIVE),
            (self._new_handshake_at(marks, timings), Timer.NEW_HANDSHAKE),
            (self._persistent_at(marks), Timer.PERSISTENT_KEEPALIVE),
        ]
        return sorted((entry for entry in armed if entry[0] < NEVER), key=lambda entry: entry[0])

    def next_deadline(self, marks: Marks, timings: Timings) -> int:
        """Return the soonest deadline, or NEVER. Every handshake calls this, so it avoids a list."""
        return min(
            self.retransmit_at,
            self.initiate_at,
            self.zero_keys_at,
            self._keepalive_at(marks, timings),
            self._new_handshake_at(marks, timings),
            self._persistent_at(marks),
        )

    def is_pending(self, marks: Marks) -> bool:
        """Return whether the marks imply a deadline."""
        return marks.data_sent_since not in (0, self.renewed_since) or marks.data_received_since not in (
            0,
            self.answered_since,
        )

    def _keepalive_at(self, marks: Marks, timings: Timings) -> int:
        since = marks.data_received_since
        return NEVER if since in (0, self.answered_since) else since + timings.keepalive

    def _new_handshake_at(self, marks: Marks, timings: Timings) -> int:
        since = marks.data_sent_since
        if since in (0, self.renewed_since):
            return NEVER
        return since + timings.keepalive + timings.rekey_timeout + self.no_answer_jitter

    def _persistent_at(self, marks: Marks) -> int:
        if not self.persistent_interval or self.persistent_from == NEVER:
            return NEVER
        return max(marks.last_traversal, self.persistent_from) + self.persistent_interval * SECOND
