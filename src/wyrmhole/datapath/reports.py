"""What goes up to the control thread: reported once until answered, drained in batches, bounded."""

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
"""A few for each of the 65,536 peers is all there can be, because each is reported once until answered. The bound is
against a control thread that stopped."""


class Reports:
    __slots__ = ("_quiet_sources", "_reports", "_selects_until", "handshakes")

    def __init__(self) -> None:
        # A peer stands for its own `Roamed`, which is made when it is taken: many changes are one report.
        self._reports: deque[Report | EnginePeer] = deque()
        self.handshakes: dict[Queue, deque[tuple[bytes, SockAddr, Source | None]]] = {queue: deque() for queue in Queue}
        self._quiet_sources = QuietSources()
        self._selects_until = 0

    def push(self, report: Report | EnginePeer) -> bool:
        """False: the queue is full, and the report is not in it."""
        if len(self._reports) >= MAX_REPORTS:
            return False
        self._reports.append(report)
        return True

    def push_handshake(
        self, queue: Queue, data: bytes, sockaddr: SockAddr, source: Source | None, now: int
    ) -> DropReason | None:
        """Why the message is dropped; None: it waits.

        Under load, a message that has proved nothing about its source is accepted only if the source was quiet:
        otherwise a flood would leave no place for an honest peer. Replies need no bound: there are at most nine for
        each initiation.
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
        """Oldest first, handshakes last: they are the work that a flood can make much of. Those that proved more come
        before the others."""
        taken: list[Report] = []
        while self._reports and len(taken) < limit:
            report = self._reports.popleft()
            if isinstance(report, EnginePeer):
                # The flag is lowered first: a change after the endpoint was read is then reported again.
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
    """An IPv4 address as it is written, the bytes of an IPv6 /64."""
    host = sockaddr[0]
    return host.encode() if len(sockaddr) == 2 else Endpoint.from_sockaddr(sockaddr).address_bytes[:8]
