"""The timers of one peer (whitepaper section 6; kernel timers.c): what arms each, what ends it, and when it is due.

`PeerTimers` owns its fields: other modules read them and call its transitions, which `renewal` does at each step of a
handshake or session. The first three timers follow from these calls. The last three follow from packets. Nobody arms or
cancels those: the data plane keeps the marks, and the deadline is worked out from them when someone looks. While marks
are pending, the next look is at most Keepalive-Timeout away, because a mark set after this look cannot fall due sooner.
A data plane on another thread may show a mark for a moment after it was acted on, so the timers remember which marks
those were.
"""

from __future__ import annotations

from enum import Enum

from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.protocol.data_plane import NEVER, Marks


class Timer(Enum):
    """The reasons to act for a peer. What is done is in `renewal`."""

    RETRANSMIT_HANDSHAKE = "retransmit_handshake"
    """An initiation is out and no response came for Rekey-Timeout and some jitter (6.4)."""
    INITIATE = "initiate"
    """An initiation was wanted sooner than Rekey-Timeout after the last handshake message (6.1)."""
    ZERO_KEYS = "zero_keys"
    """There was no new session for three Reject-After-Times (6.3)."""
    SEND_KEEPALIVE = "send_keepalive"
    """Data came Keepalive-Timeout ago and nothing was sent since (6.5)."""
    NEW_HANDSHAKE = "new_handshake"
    """Data left Keepalive-Timeout + Rekey-Timeout and some jitter ago and nothing came since (6.5)."""
    PERSISTENT_KEEPALIVE = "persistent_keepalive"
    """Nothing passed in either direction for the configured interval."""


class PeerTimers:
    """Deadlines in boottime nanoseconds; NEVER when not armed. `persistent_interval` is seconds, 0 is off.

    A series is the attempts at one handshake: the first initiation and its retransmissions, until one completes or the
    series has run too long.
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
        """The value of `data_received_since` that a keepalive was last sent for."""
        self.renewed_since = 0
        """The value of `data_sent_since` that the no-answer rule last acted on."""

    # Transitions

    def begin_series(self, now: int) -> None:
        """A new handshake is wanted; its first initiation leaves now or is postponed."""
        self.attempts, self.trying_since = 0, now

    def postpone(self, until: int) -> None:
        """The next initiation may not leave before."""
        self.initiate_at = until

    def sent_initiation(self, respond_by: int) -> None:
        self.initiate_at, self.retransmit_at = NEVER, respond_by

    def begin_attempt(self) -> None:
        """No response came: the same series goes on."""
        self.attempts += 1

    def stop_trying(self) -> None:
        """No initiation is sent or repeated any more."""
        self.retransmit_at = self.initiate_at = NEVER

    def completed(self) -> None:
        """A handshake did, ours or theirs: the series is over."""
        self.attempts = 0
        self.stop_trying()

    def gave_up(self, zero_keys_at: int) -> None:
        """The series ran too long. The keys go in time even without another session."""
        self.attempts = 0
        self.zero_keys_at = min(self.zero_keys_at, zero_keys_at)

    def began_session(self, zero_keys_at: int) -> None:
        self.zero_keys_at = zero_keys_at

    def renewed(self, jitter: int) -> None:
        """The no-answer rule acted; it waits a little longer or shorter the next time."""
        self.no_answer_jitter = jitter

    def set_persistent_interval(self, seconds: int) -> bool:
        """Returns whether this turned persistent keepalives on."""
        turned_on = seconds > 0 and self.persistent_interval == 0
        self.persistent_interval = seconds
        return turned_on

    def start_persistent(self, now: int) -> None:
        """The interval counts from now, or from a later packet."""
        self.persistent_from = now

    def expired(self, timer: Timer, marks: Marks, now: int) -> None:
        """This timer fell due and is acted on: it is not due again at `now`, nor for the same marks."""
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
        else:
            self.persistent_from = now

    # State

    @property
    def handshake_under_way(self) -> bool:
        return self.retransmit_at != NEVER

    @property
    def is_trying(self) -> bool:
        """Also while an initiation waits for Rekey-Timeout to pass: it belongs to the same series."""
        return self.retransmit_at != NEVER or self.initiate_at != NEVER

    def is_exhausted(self, now: int, timings: Timings) -> bool:
        """Whether the series has had all its attempts, or all its time (Rekey-Attempt-Time, 6.4)."""
        return self.attempts > timings.max_retries or now - self.trying_since >= timings.give_up_after

    def deadlines(self, marks: Marks, timings: Timings) -> list[tuple[int, Timer]]:
        """Every armed timer, soonest first."""
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
        """The soonest of `deadlines`; NEVER if none is armed. Every handshake asks, so it makes no list."""
        return min(
            self.retransmit_at,
            self.initiate_at,
            self.zero_keys_at,
            self._keepalive_at(marks, timings),
            self._new_handshake_at(marks, timings),
            self._persistent_at(marks),
        )

    def is_pending(self, marks: Marks) -> bool:
        """Whether a timer follows from the marks."""
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
