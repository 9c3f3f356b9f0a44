"""Reports to the control thread: each made once until it is answered, taken in batches, bounded."""

from __future__ import annotations

from collections import deque

from wyrmhole.datapath.gate import Queue
from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.datapath.quiet_sources import QuietSources
from wyrmhole.protocol.constants import MAX_QUEUED_HANDSHAKES, UNDER_LOAD_HOLD, UNDER_LOAD_QUEUE_DEPTH
from wyrmhole.protocol.data_plane import HandshakeDatagram, Report, Roamed, Source
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint, SockAddr

MAX_REPORTS = 1 << 16
"""The bound takes effect only if the control thread stops: every kind of report is made once per peer until it is
answered."""


class Reports:
    """The queues of reports and of handshake messages."""

    __slots__ = ("_quiet_sources", "_reports", "_selects_until", "handshakes")

    def __init__(self) -> None:
        # A peer stands for its `Roamed`, which is made when it is taken: many changes are one report.
        self._reports: deque[Report | EnginePeer] = deque()
        self.handshakes: dict[Queue, deque[tuple[bytes, SockAddr, Source | None]]] = {queue: deque() for queue in Queue}
        self._quiet_sources = QuietSources()
        self._selects_until = 0

    def push(self, report: Report | EnginePeer) -> bool:
        """Queue a report. Return false if the queue is full."""
        if len(self._reports) >= MAX_REPORTS:
            return False
        self._reports.append(report)
        return True

    def push_handshake(
        self, queue: Queue, data: bytes, sockaddr: SockAddr, source: Source | None, now: int
    ) -> DropReason | None:
        """Queue a handshake message. Return the reason if it is dropped, otherwise None.

        Under load, a message that has not proved its source is accepted only if the source was quiet: otherwise a flood
        would leave no room for an honest peer. Replies need no bound: there are at most nine for each initiation.
        """
        waiting = self.handshakes[queue]
        if queue is Queue.OTHERS and self._is_refused_under_load(sockaddr, now):
            return DropReason.RATE_LIMITED
        if queue is not Queue.REPLIES and len(waiting) >= MAX_QUEUED_HANDSHAKES:
            return DropReason.HANDSHAKE_QUEUE_FULL
        waiting.append((data, sockaddr, source))
        return None

    def _is_refused_under_load(self, sockaddr: SockAddr, now: int) -> bool:
        if len(self.handshakes[Queue.OTHERS]) >= UNDER_LOAD_QUEUE_DEPTH:
            self._selects_until = now + UNDER_LOAD_HOLD
        return now < self._selects_until and not self._quiet_sources.was_quiet(_source_key(sockaddr), now)

    @property
    def has_some(self) -> bool:
        return bool(self._reports or any(self.handshakes.values()))

    def take(self, limit: int) -> list[Report]:
        """Take up to `limit` reports, oldest first. Handshake messages come last, because a flood can make many of
        them; those that have proved more come before the others."""
        taken: list[Report] = []
        while self._reports and len(taken) < limit:
            report = self._reports.popleft()
            if isinstance(report, EnginePeer):
                # The flag is cleared first, so that a change after the endpoint was read is reported again.
                report.roamed_reported = False
                taken.append(Roamed(report.id, Endpoint.from_sockaddr(report.sockaddr)))
            else:
                taken.append(report)
        for queue in self.handshakes.values():
            while queue and len(taken) < limit:
                data, sockaddr, source = queue.popleft()
                endpoint = Endpoint.from_sockaddr(sockaddr)
                taken.append(HandshakeDatagram(data, endpoint, source, queue_depth=self._depth()))
        return taken

    def _depth(self) -> int:
        return len(self.handshakes[Queue.PROVEN]) + len(self.handshakes[Queue.OTHERS])


def _source_key(sockaddr: SockAddr) -> bytes:
    """The text of an IPv4 address, or the bytes of an IPv6 /64."""
    host = sockaddr[0]
    return host.encode() if len(sockaddr) == 2 else Endpoint.from_sockaddr(sockaddr).address_bytes[:8]
