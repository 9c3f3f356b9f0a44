"""Whether GSO batches ("trains") reach a peer, judged by the TCP retransmissions inside the tunnel.

Some kernels, hypervisors and drivers damage or lose trains, while single datagrams arrive. Nothing reports this to the
sender, and WireGuard has no acknowledgements. But most tunnels carry TCP, whose headers are visible before sealing: a
segment whose sequence number is lower than one sent earlier is a retransmission. Ordinary loss affects trains and
single datagrams alike, so the loss is measured with both and compared:

- WATCHING: trains are sent. When 16 segments, and at least an eighth of those sent, were retransmitted, a trial begins.
  The loss is counted over 2 s, and the count restarts unless an eighth was lost: a connection whose trains are lost
  first sends a whole window, perhaps 1,000 segments, and then retransmits a few per second. BBR continues like this for
  minutes.
- ON_TRIAL_SINGLY: for 64 segments, and for 2 to 5 s (so that their retransmissions are seen), datagrams are sent
  singly. Unless the loss falls below an eighth of the loss with trains, trains are not the cause.
- ON_TRIAL: trains are sent again. If the loss does not return and connections make progress, trains are not the cause.
- RESTING: after three rounds with loss in trains and none without, trains are judged to be lost. Datagrams are sent
  singly for 10 minutes. Then trains are tried again, and one bad round is enough. Each further verdict in a row doubles
  the wait, up to 160 minutes.

A retransmission counts as a loss only if the segment was sent before in the same phase. Watching is one phase, however
often its count restarts. A few flows of each peer are followed, in slots chosen by a hash; a collision forgets a flow,
which can hide a loss but never invents one. Damage to less than one datagram in eight goes unnoticed: TCP copes with
it, and only a longer trial could distinguish it from chance.

On kernel releases known to damage trains, a peer begins in RESTING, and trains are tried after 10 s of TCP: the release
only raises the suspicion, and the evidence decides. Traffic other than TCP gives no evidence and changes nothing.

A new path to a peer is another reason for single datagrams. Until an authenticated message comes back, a firewall on
the path may not have confirmed the flow yet, and nfnetlink_queue drops trains of such flows (CVE-2026-45859). The
engine keeps this state beside the endpoint (`Tables.sends_singly`).

Pure: time is an argument. The same rules, with the same numbers, are in rust/core/src/train_health.rs.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.ip import PROTOCOL_TCP

MIN_LOST = 16
LOSS_DIVISOR = 8
"""Losing an eighth begins a trial. In single datagrams, less than an eighth of the trains' loss must remain."""
COUNT_SPAN = 2 * SECOND
LONGEST_WINDOW = 1 << 30
"""The most bytes that a TCP may have in flight (RFC 7323, 2.3)."""
TRIAL_SEGMENTS = 64
TRIAL_SPANS = (2 * SECOND, 3 * SECOND, 5 * SECOND)
"""The length of each round; they differ because loss may be periodic."""
ROUNDS = len(TRIAL_SPANS)
REST = 600 * SECOND
MAX_REST = 16 * REST
DOUBT_SPAN = 10 * SECOND
"""How long a peer gets no trains after its first TCP segment, on a suspect kernel."""
PATH_QUIET = 29 * SECOND
"""Connection tracking forgets UDP flows after 30 s by default; the next datagram then begins a new flow."""

FLOWS = 8
_FACTOR = 0x9E37_79B1
_WORD = 0xFFFF_FFFF
_HALF = 1 << 31
_SYN = 2
_V4 = struct.Struct(">6xHxBxx4I4xBB")
"""Fragment word, protocol, addresses, ports, sequence number, data offset, flags."""
_V6 = struct.Struct(">6xBx12xI12xIII4xBB")
"""Next header, the last words of the addresses, ports, sequence number, data offset, flags."""


class Phase(IntEnum):
    WATCHING = 0
    ON_TRIAL = 1
    ON_TRIAL_SINGLY = 2
    RESTING = 3


class TrainHealth:
    """The state of one peer. The engine reads `sends_singly` before it sends a train."""

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
        # When the current count began, and the segments sent and lost in the phase before that.
        self._counted = (0, 0, 0)
        # The segments sent in the first second of the phase.
        self._early: int | None = None
        # For each flow: its key, the end of the data sent, where that was when the phase began, and how far the
        # retransmissions of older data have come. None: a free slot.
        self._flows: list[tuple[int, int, int, int | None] | None] | None = None

    @property
    def phase(self) -> Phase:
        return self._phase

    def note(self, packets: list[bytes], now: int) -> bool:
        """Inspect packets that are sent to the peer: one, or those of a super-packet. Return true if trains were just
        judged to be lost, for the first time since they last worked."""
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
        """Forget a flow, because a new connection with the same ports has other sequence numbers."""
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
        # Judge before counting: the packet that begins a phase is sent by the rule of that phase.
        is_news = self._judge(now)
        if self._is_first(key, sequence, data, segments):
            self._sent += segments
        return is_news

    def _is_first(self, key: int, sequence: int, data: int, segments: int) -> bool:
        """Whether the data is sent for the first time in this phase. Otherwise it is counted as lost."""
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
            # Too old; or a tail loss probe (RFC 8985, 7), which does not show which data has arrived.
            return False
        if again is None or sequence - again & _WORD < _HALF:
            # Data lost in an earlier phase is retransmitted. Its progress is evidence, and may be the only one for
            # long.
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
        """Whether connections make progress. One whose trains are lost stalls when its window is used up, long before
        all of it is retransmitted."""
        early = self._early or 0
        return self._sent - early >= max(TRIAL_SEGMENTS, early)

    def _is_bad(self, now: int) -> bool:
        """Whether enough was lost for a trial. The loss is kept for the comparison."""
        since, sent, lost = self._counted
        if now - since < COUNT_SPAN:
            return False
        sent, lost = self._sent - sent, self._lost - lost
        if lost * LOSS_DIVISOR < sent or not lost:
            self._count_anew(now)
            return False
        # If less was sent than retransmitted, at most all of it was lost.
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
    """Limit the flow's data to one window before its end, because sequence numbers wrap."""
    key, latest, start, again = flow
    return key, latest, latest - min(latest - start & _WORD, LONGEST_WINDOW) & _WORD, again


def _slot_of(key: int) -> int:
    return (key * _FACTOR & _WORD) >> 29
