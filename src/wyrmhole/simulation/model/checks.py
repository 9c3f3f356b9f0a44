"""The invariants by name, and the exception that is raised when one does not hold.

I1 to I33 are safety invariants, checked after every event, whatever the network and the attacker do. L1 to L11 are
liveness invariants, checked after the world has healed. I27 and I28 concern features that this daemon does not have (a
state file, the hand-over of sessions to a new process) and state what it guarantees instead.
"""

from __future__ import annotations

from enum import Enum


class Check(Enum):
    """An invariant. The value is the sentence that must hold; `code` is its number in docs/reliability.md."""

    code: str

    def __new__(cls, code: str, sentence: str) -> Check:
        member = object.__new__(cls)
        member._value_ = sentence
        member.code = code
        return member

    NONCES_ARE_UNIQUE = "I1", "no (sending key, counter) pair is used twice, over crashes and restarts"
    COUNTERS_HAVE_NO_GAP = "I2", "per sending key, counters leave in rising order without a gap, from 0"
    PACKETS_ARRIVE_ONCE = "I3", "no inner packet is delivered twice"
    PACKETS_ARRIVE_INTACT = "I4", "every packet delivered was sent, byte for byte, by the peer that owns its source"
    PACKETS_GO_TO_THEIR_OWNER = (
        "I5",
        "a packet goes to the longest-prefix owner of its destination at send time, and to nobody else",
    )
    KEYPAIRS_EXPIRE = "I6", "nothing is sent or accepted on a keypair older than 180 s or beyond its message limit"
    INITIATIONS_ARE_SPACED = "I7", "at most one initiation per peer in 5 s, whatever the cause"
    RESPONDERS_WAIT_FOR_CONFIRMATION = "I8", "a responder sends no data before its keypair is confirmed"
    REPLAY_WINDOW_IS_A_SET = "I9", "the replay window equals a set of numbers, and moves only after authentication"
    TIMESTAMPS_RISE = "I10", "timestamps of initiations rise, both of those accepted and of those sent"
    ENDPOINTS_FOLLOW_PROOF = "I11", "the endpoint follows authenticated messages of types 1, 2 and 4, and nothing else"
    UNPROVEN_INPUT_CHANGES_NOTHING = "I12", "input that does not authenticate changes no state"
    UNPROVEN_SOURCES_GET_NOTHING = (
        "I13",
        "an unproven source receives nothing or, under load, one 64-byte cookie reply for a message with a valid mac1",
    )
    INDICES_ARE_UNIQUE = (
        "I14",
        "at most three keypairs and one handshake per peer; indices are unique and each leads to one of them",
    )
    KEYPAIRS_ROTATE_IN_ORDER = (
        "I15",
        "keypairs move from next to current to previous only, and previous dies at the next rotation",
    )
    SECRETS_ARE_FORGOTTEN = "I16", "no secret of a session is in memory after 540 s without one, removal or shutdown"
    STAGED_PACKETS_ARE_ACCOUNTED_FOR = (
        "I17",
        "at most 128 packets wait per peer, the oldest goes first, and every packet is accounted for",
    )
    RATE_LIMITER_IS_BOUNDED = "I18", "the rate limiter keeps its cap, and its buckets stay between empty and full"
    TIMERS_HAVE_OWNERS = "I19", "every timer has an owner; a quiet peer has no timer"
    KEEPALIVES_CAUSE_NO_KEEPALIVE = "I20", "a keepalive never causes a keepalive"
    KEEPALIVES_ARE_SPACED = (
        "I21",
        "one passive keepalive in 10 s at most; a persistent one only after a full quiet interval",
    )
    COOKIES_ARE_FRESH = (
        "I22",
        "a cookie is used for its peer only, for 120 s at most, in another message than the one that earned it",
    )
    LOAD_ENDS = "I23", "load ends one second after the queue drained"
    PEERS_DO_NOT_BLOCK_EACH_OTHER = "I24", "packets staged for one peer never delay another peer's packets"
    ROUTES_CHANGE_WITHOUT_A_GAP = (
        "I25",
        "during a change of allowed IPs, a prefix has the old owner or the new one, never none",
    )
    SECRETS_ARE_NOT_MIXED = (
        "I26",
        "no session has mixed secrets; a change of keys acts on the next handshake, as specified",
    )
    LIVES_SHARE_NOTHING = "I27", "a crash leaves nothing that the next life could reuse (there is no state file)"
    STOPPED_MEANS_SILENT = "I28", "a stopped interface sends nothing (there is no hand-over of sessions)"
    SEEDS_REPEAT = "I29", "the same seed gives the same trace"
    NO_EXCEPTION_ESCAPES = "I30", "no exception crosses a boundary"
    COUNTERS_ARE_SUMS = (
        "I31",
        "transfer counters are the sums of authenticated messages, handshakes and padding included",
    )
    HANDSHAKE_TIMES_ARE_TRUE = (
        "I32",
        "the time of the latest handshake is that of a completed handshake, and changes only with one",
    )
    EVENTS_ARE_HARMLESS = "I33", "no event carries secret bytes, and their rate is bounded"
    CONNECTS_WITH_TRAFFIC = (
        "L1",
        "with traffic on one side there is a session within 5.4 s, and data flows both ways within 15.4 s",
    )
    RECOVERS_AFTER_STATE_LOSS = (
        "L2",
        "a side that lost its state recovers within 15.4 s even if only the other side talks",
    )
    CONVERGES_AFTER_CROSSED_HANDSHAKES = (
        "L3",
        "two sides that initiate at once converge, and do not cross again at renewals",
    )
    RENEWALS_LOSE_NOTHING = "L4", "without loss on the network no data is lost over renewals, at any spacing"
    STARTS_AGAIN_AFTER_GIVING_UP = "L5", "after giving up, the next packet starts again at once"
    STAYS_REACHABLE_BEHIND_A_NAT = "L6", "a peer behind a NAT with a persistent keepalive stays reachable"
    CONNECTS_AFTER_THE_CLOCK_STEPPED_BACK = "L7", "after the wall clock stepped back, handshakes still succeed at once"
    NEEDS_NO_COOKIE_AFTER_A_FLOOD = "L8", "two seconds after a flood, honest handshakes need no cookie"
    STAGED_PACKETS_HAVE_AN_END = (
        "L9",
        "a staged packet is sent or dropped with a cause when the series of attempts ends",
    )
    REMOVAL_LEAVES_NOTHING = "L10", "nothing is left when all peers are removed"
    KEEPALIVES_RENEW_SESSIONS = (
        "L11",
        "while an initiator sends keepalives, the latest handshake is at most 120 s, one interval and one attempt old",
    )


class Violation(Exception):
    """A check that does not hold. `at` is the virtual time in seconds since the start; the world sets it."""

    def __init__(self, check: Check, message: str) -> None:
        # Exception needs both arguments so that a violation from a worker process can be unpickled.
        super().__init__(check, message)
        self.check = check
        self.message = message
        self.at = 0.0

    def __str__(self) -> str:
        return f"{self.check.name} ({self.check.code}) at {self.at:.3f} s: {self.message} ({self.check.value})"


def require(holds: bool, check: Check, message: str) -> None:
    """Raise Violation unless the check holds."""
    if not holds:
        raise Violation(check, message)
