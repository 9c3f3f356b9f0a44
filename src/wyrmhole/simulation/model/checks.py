"""The invariants by name, and how one says that it does not hold.

I1 to I33 are safety: looked at after every event, whatever the network and the attacker do. L1 to L11 are liveness:
looked at after the world has healed. Two of them name what this daemon does not have (a state file, the hand-off of
sessions to a new process); their rows say which promise stands in that place.
"""

from __future__ import annotations

CHECKS = {
    "I1": "no (sending key, counter) pair is used twice, over crashes and restarts",
    "I2": "per sending key, counters leave in rising order without a gap, from 0",
    "I3": "no inner packet is delivered twice",
    "I4": "what is delivered was sent by the peer that owns its source, byte for byte",
    "I5": "a packet goes to the longest-prefix owner of its destination at send time, and to nobody else",
    "I6": "nothing is sent or accepted on a keypair older than 180 s or beyond its message limit",
    "I7": "at most one initiation per peer in 5 s, whatever the cause",
    "I8": "a responder sends no data before its keypair is confirmed",
    "I9": "the replay window equals a set of numbers, and moves only after authentication",
    "I10": "stamps of initiations rise, those accepted and those sent",
    "I11": "the endpoint follows authenticated messages of type 1, 2 and 4 and nothing else",
    "I12": "input that does not authenticate changes no state",
    "I13": "an unproven source gets no byte, or one 64-byte cookie under load for a message with a valid mac1",
    "I14": "at most three keypairs and one handshake per peer; indices are unique and each leads to one of them",
    "I15": "keypairs move from next to current to previous only, and previous dies at the next rotation",
    "I16": "no secret of a session is in memory after 540 s without one, removal or shutdown",
    "I17": "at most 128 packets wait per peer, the oldest goes first, and every packet is accounted for",
    "I18": "the rate limiter keeps its cap, and its buckets stay between empty and full",
    "I19": "a timer has an owner; a quiet peer has none",
    "I20": "a keepalive never causes a keepalive",
    "I21": "one passive keepalive in 10 s at most; a persistent one only after a full quiet interval",
    "I22": "a cookie is used for its peer only, for 120 s at most, in another message than the one that earned it",
    "I23": "load ends one second after the queue drained",
    "I24": "what waits for one peer never holds up another peer's packets",
    "I25": "a change of allowed ips shows the old owner or the new one, never none",
    "I26": "no session has mixed secrets; a change of keys acts on the next handshake, as specified",
    "I27": "a crash leaves nothing that the next life could reuse (there is no state file)",
    "I28": "a stopped interface sends nothing more (there is no hand-off of sessions)",
    "I29": "the same seed gives the same trace",
    "I30": "no exception crosses a boundary",
    "I31": "transfer counters are the sums of authenticated messages, handshakes and padding included",
    "I32": "the time of the latest handshake is that of a handshake, and changes with one only",
    "I33": "no event carries secret bytes, and their rate is bounded",
    "L1": "with traffic on one side there is a session within 5.4 s, and data flows both ways within 15.4 s",
    "L2": "a side that lost its state recovers within 15.4 s even if only the other side talks",
    "L3": "two sides that initiate at once converge, and do not cross again at renewals",
    "L4": "without loss on the network no data is lost over renewals, at any spacing",
    "L5": "after giving up, the next packet starts again at once",
    "L6": "a peer behind a NAT with a persistent keepalive stays reachable",
    "L7": "after the wall clock stepped back, handshakes still succeed at once",
    "L8": "two seconds after a flood, honest handshakes need no cookie",
    "L9": "a staged packet is sent or dropped with a cause when the series of attempts ends",
    "L10": "nothing is left when all peers are removed",
    "L11": "while an initiator's keepalives flow, the latest handshake is at most 120 s, an interval and a try old",
}


class Violation(Exception):
    """A named check does not hold. `at` is virtual seconds since the start, set by the world."""

    def __init__(self, check: str, message: str) -> None:
        assert check in CHECKS
        super().__init__(message)
        self.check = check
        self.message = message
        self.at = 0.0

    def __str__(self) -> str:
        return f"{self.check} at {self.at:.3f} s: {self.message} ({CHECKS[self.check]})"


def require(holds: bool, check: str, message: str) -> None:
    """Raises Violation unless it holds."""
    if not holds:
        raise Violation(check, message)
