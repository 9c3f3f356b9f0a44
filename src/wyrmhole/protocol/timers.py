"""The timers of one peer (whitepaper section 6; kernel timers.c), as one table of reasons and deadlines.

    RETRANSMIT_HANDSHAKE  an initiation is out and no response came for Rekey-Timeout and some jitter
    INITIATE              an initiation was wanted sooner than Rekey-Timeout after the last handshake message
    SEND_KEEPALIVE        data came Keepalive-Timeout ago and nothing was sent since
    NEW_HANDSHAKE         data left Keepalive-Timeout + Rekey-Timeout and some jitter ago and nothing came since
    ZERO_KEYS             no new session for three Reject-After-Times
    PERSISTENT_KEEPALIVE  nothing passed in either direction for the configured interval

Three of them follow from packets. Nobody arms or cancels those: the data plane keeps the marks, and the deadline is
worked out from them when someone looks. While marks are pending, the next look is at most Keepalive-Timeout away,
because a mark set after this look cannot fall due sooner. A data plane on another thread may show a mark for a moment
after it was acted on, so the timers remember which marks those were.
"""

from __future__ import annotations

from enum import Enum

from wyrmhole.protocol.constants import SECOND, Timings
from wyrmhole.protocol.data_plane import NEVER, Marks


class Timer(Enum):
    RETRANSMIT_HANDSHAKE = "retransmit_handshake"
    INITIATE = "initiate"
    SEND_KEEPALIVE = "send_keepalive"
    NEW_HANDSHAKE = "new_handshake"
    ZERO_KEYS = "zero_keys"
    PERSISTENT_KEEPALIVE = "persistent_keepalive"


class PeerTimers:
    """Deadlines in boottime nanoseconds; NEVER when not armed. `persistent_interval` is seconds, 0 is off."""

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
        self.attempts = 0
        self.trying_since = 0
        """When the present series of attempts began."""
        self.initiate_at = NEVER
        self.retransmit_at = NEVER
        self.zero_keys_at = NEVER
        self.persistent_from = NEVER
        self.no_answer_jitter = 0
        self.answered_since = 0
        """The value of `data_received_since` that a keepalive was last sent for."""
        self.renewed_since = 0
        """The value of `data_sent_since` that the no-answer rule last acted on."""

    @property
    def handshake_under_way(self) -> bool:
        return self.retransmit_at != NEVER

    @property
    def is_trying(self) -> bool:
        """Also while an initiation waits for Rekey-Timeout to pass: it belongs to the same series."""
        return self.retransmit_at != NEVER or self.initiate_at != NEVER

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
