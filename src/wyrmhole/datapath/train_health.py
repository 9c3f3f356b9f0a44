"""Whether GSO batches ("trains") reach a peer, judged by what a sender sees: its own inner TCP retransmissions.

Some kernels, hypervisors and drivers damage or lose trains while single datagrams arrive. Nothing reports this to the
sender, and WireGuard has no acknowledgements. But most tunnels carry TCP, whose headers are in sight before sealing: a
segment whose sequence number lies below one that was sent earlier is a retransmission. Ordinary loss strikes trains
and single datagrams alike, so the same peer's loss is measured both ways and compared:

- WATCHING: trains are sent. Once 16 segments, and an eighth of what was sent, were retransmitted, a trial begins.
  It is counted for 2 s, then anew unless an eighth was lost: a connection whose trains are lost has first sent all of
  a window, perhaps 1,000 segments, and then repeats a few of them in a second. BBR goes on so for minutes.
- ON_TRIAL_SINGLY: for 64 segments, and for 2 to 5 s (so that their retransmissions are seen), every datagram is
  sent by itself. Unless the loss is less than an eighth of that with trains, the trains were not to blame.
- ON_TRIAL: trains again. If the loss does not return and connections move on, they were not to blame either.
- RESTING: three rounds of loss with trains and none without are a verdict. Datagrams leave singly for 10 minutes. Then
  trains are tried again; this time one bad round suffices. Each verdict in a row doubles the wait, up to 160 minutes.

A retransmission counts as a loss only if the segment was sent before in the present phase. Watching is one phase,
however often it counts anew. A few flows of each peer are followed, in slots chosen by a hash; a collision forgets a
flow, which can hide a loss and never invents one. Damage to less than one datagram in eight goes unnoticed: TCP copes
with it, and nothing but a longer trial would tell it from chance.

On kernels whose release is known for damaged trains a peer begins in RESTING, and trains are tried after 10 s of TCP:
the release raises a doubt, and the evidence decides. Traffic without TCP gives no evidence and changes nothing.

A peer's new path is a second reason for single datagrams: until something authenticated came back, a firewall on the
way may hold a flow that it has not confirmed yet, and nfnetlink_queue drops trains of such flows (CVE-2026-45859). The
engine keeps that state beside the endpoint (`Tables.is_proven`).

Pure: time is an argument. The same rules, with the same numbers, are in rust/core/src/train_health.rs.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.ip import PROTOCOL_TCP

MIN_LOST = 16
LOSS_DIVISOR = 8
"""An eighth lost is a reason for a trial; and singly, less than an eighth of the trains' loss must remain."""
COUNT_SPAN = 2 * SECOND
LONGEST_WINDOW = 1 << 30
"""Bytes that a TCP may have under way (RFC 7323, 2.3)."""
TRIAL_SEGMENTS = 64
TRIAL_SPANS = (2 * SECOND, 3 * SECOND, 5 * SECOND)
"""Of each round, different because loss may be periodic."""
ROUNDS = len(TRIAL_SPANS)
REST = 600 * SECOND
MAX_REST = 16 * REST
DOUBT_SPAN = 10 * SECOND
"""How long a peer on a suspect kernel goes without trains after its first TCP segment."""
PATH_QUIET = 29 * SECOND
"""Connection tracking forgets UDP flows after 30 s by default; the next datagram then begins a new flow."""

FLOWS = 8
_FACTOR = 0x9E37_79B1
_WORD = 0xFFFF_FFFF
_HALF = 1 << 31
_SYN = 2
_V4 = struct.Struct(">6xHxBxx4I4xBB")
"""Fragment, protocol, addresses, ports, sequence number, data offset, flags."""
_V6 = struct.Struct(">6xBx12xI12xIII4xBB")
"""Next header, the last words of the addresses, ports, sequence number, data offset, flags."""


class Phase(IntEnum):
    WATCHING = 0
    ON_TRIAL = 1
    ON_TRIAL_SINGLY = 2
    RESTING = 3


class TrainHealth:
    """One peer's state. `sends_singly` is what the engine asks before it sends a train."""

    __slots__ = (
        "_bad",
        "_counted",
        "_early",
        "_flows",
        "_lost",
        "_phase",
        "_rest",
        "_rounds",
        "_sent",
        "_since",
        "_until",
        "sends_singly",
    )

    def __init__(self, *, doubted: bool = False) -> None:
        self._phase = Phase.RESTING if doubted else Phase.WATCHING
        self.sends_singly = doubted
        self._until: int | None = None
        self._rest = 0
        self._rounds = 0
        self._since = 0
        self._sent = self._lost = 0
        self._bad = (0, 0)
        # When the present count began, and what was sent and lost in the phase by then.
        self._counted = (0, 0, 0)
        # What was sent in the first second of the phase.
        self._early: int | None = None
        # Of each flow: its key, the end of what was sent, where the present phase began, and how far before that the
        # retransmissions of a trial came. None: a free slot.
        self._flows: list[tuple[int, int, int, int | None] | None] | None = None

    @property
    def phase(self) -> Phase:
        return self._phase

    def note(self, packets: list[bytes], now: int) -> bool:
        """Look at what leaves for the peer: a packet, or those of a super-packet. True: trains to this peer were just
        found to be lost, for the first time since they last worked."""
        packet = packets[0]
        if packet[0] == 0x45 and len(packet) >= 40:
            fragment, protocol, source, destination, ports, sequence, offset, flags = _V4.unpack_from(packet)
            headers = 20
            if protocol != PROTOCOL_TCP or fragment & 0x3FFF:
                return False
        elif packet[0] >> 4 == 6 and len(packet) >= 60:
            protocol, source, destination, ports, sequence, offset, flags = _V6.unpack_from(packet)
            headers = 40
            if protocol != PROTOCOL_TCP:
                return False
        else:
            return False
        segments = len(packets)
        data = sum(map(len, packets)) - segments * (headers + (offset >> 4) * 4)
        key = source ^ (destination * _FACTOR & _WORD) ^ ports
        if flags & _SYN:
            self._forget(key)
            return False
        return data > 0 and self._note_data(key, sequence, data, segments, now)

    def _forget(self, key: int) -> None:
        """A connection that begins again with the same ports has other sequence numbers."""
        if self._flows is not None:
            slot = _slot_of(key)
            flow = self._flows[slot]
            if flow is not None and flow[0] == key:
                self._flows[slot] = None

    def _note_data(self, key: int, sequence: int, data: int, segments: int, now: int) -> bool:
        if self._phase is Phase.RESTING:
            if self._until is None:
                self._until = now + DOUBT_SPAN
            if now < self._until:
                return False
            self._rounds = ROUNDS - 1
            self._begin(Phase.ON_TRIAL, now)
        # Before it is counted: what begins a phase leaves by the rule of that phase.
        is_news = self._judge(now)
        if self._is_first(key, sequence, data, segments):
            self._sent += segments
        return is_news

    def _is_first(self, key: int, sequence: int, data: int, segments: int) -> bool:
        """Whether the data was not sent before in this phase; what was counts as lost."""
        if self._flows is None:
            self._flows = [None] * FLOWS
        slot = _slot_of(key)
        flow = self._flows[slot]
        end = sequence + data & _WORD
        if flow is None or flow[0] != key:
            self._flows[slot] = (key, end, sequence, None)
            return True
        _, latest, start, again = flow
        if sequence - latest & _WORD < _HALF:
            self._flows[slot] = (key, end, start, again)
            return True
        if sequence - start & _WORD < _HALF:
            self._lost += segments
            return False
        if self._phase is Phase.WATCHING or end == start:
            # Too old; or a tail loss probe (RFC 8985, 7), which is no sign of how far the rest came.
            return False
        if again is None or sequence - again & _WORD < _HALF:
            # What was lost before is made good: how this moves on is evidence, and may be all for long.
            self._flows[slot] = (key, latest, start, end)
            return True
        self._lost += segments
        return False

    def _judge(self, now: int) -> bool:
        if self._early is None and now - self._since >= SECOND:
            self._early = self._sent
        if self._phase is Phase.ON_TRIAL_SINGLY:
            return self._is_over(now) and self._compare(now)
        if self._is_bad(now):
            self._begin(Phase.ON_TRIAL_SINGLY, now)
        elif self._phase is Phase.ON_TRIAL and self._is_over(now) and self._moves_on():
            self._acquit(now)
            self._rest = 0
        return False

    def _moves_on(self) -> bool:
        """A connection whose trains are lost stands still once its window is spent, long before all is sent again."""
        early = self._early or 0
        return self._sent - early >= max(TRIAL_SEGMENTS, early)

    def _is_bad(self, now: int) -> bool:
        """Whether enough was lost for a trial; what counts as one is noted."""
        since, sent, lost = self._counted
        if now - since < COUNT_SPAN:
            return False
        sent, lost = self._sent - sent, self._lost - lost
        if lost * LOSS_DIVISOR < sent or not lost:
            self._count_anew(now)
            return False
        # Where less was sent than sent again, all of it may be lost, and no more.
        self._bad = max(sent, lost), lost
        return lost >= MIN_LOST

    def _count_anew(self, now: int) -> None:
        self._counted = now, self._sent, self._lost
        if self._phase is Phase.WATCHING and self._flows is not None:
            self._flows = [flow and _shortened(flow) for flow in self._flows]

    def _is_over(self, now: int) -> bool:
        return self._sent >= TRIAL_SEGMENTS and now - self._since >= TRIAL_SPANS[self._rounds]

    def _compare(self, now: int) -> bool:
        sent, lost = self._bad
        if self._lost * sent * LOSS_DIVISOR >= lost * self._sent:
            self._acquit(now)
            return False
        self._rounds += 1
        if self._rounds < ROUNDS:
            self._begin(Phase.ON_TRIAL, now)
            return False
        is_news = not self._rest
        self._rest = min(2 * self._rest, MAX_REST) or REST
        self._until = now + self._rest
        self._begin(Phase.RESTING, now)
        return is_news

    def _acquit(self, now: int) -> None:
        self._rounds = 0
        self._begin(Phase.WATCHING, now)

    def _begin(self, phase: Phase, now: int) -> None:
        self._phase = phase
        self.sends_singly = phase >= Phase.ON_TRIAL_SINGLY
        self._since = now
        self._sent = self._lost = 0
        self._early = None
        self._counted = now, 0, 0
        if self._flows is not None:
            self._flows = [flow and (flow[0], flow[1], flow[1], None) for flow in self._flows]


def _shortened(flow: tuple[int, int, int, int | None]) -> tuple[int, int, int, int | None]:
    """With no more than a window before its end: sequence numbers come again."""
    key, latest, start, again = flow
    return key, latest, latest - min(latest - start & _WORD, LONGEST_WINDOW) & _WORD, again


def _slot_of(key: int) -> int:
    return (key * _FACTOR & _WORD) >> 29
