"""The loop of the portable engine: one thread, both directions, run to completion.

It polls the TUN, the UDP sockets and the mailbox together. A turn is: apply the calls of the control thread; receive,
open and write to the TUN; read the TUN, seal and send. The TUN is read after every write to it as well, because the
answer is often there already: the packet then leaves without another wake-up. Each direction has a budget per turn, so
neither starves the other, and everything gathered leaves before the thread sleeps.

The engine polls its own duplicates of all descriptors, and reads the TUN through one (`engine.polled`, `Tun.lend`),
because the program may close its side of an edge at any time.

A packet that makes a step raise must not end the tunnel: the turn is abandoned and counted, and the next one begins.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from collections.abc import Callable

from wyrmhole.datapath.answers import Answers
from wyrmhole.datapath.inbound import Inbound
from wyrmhole.datapath.outbound import Outbound
from wyrmhole.datapath.peer import NO_SOCKADDR, EnginePeer
from wyrmhole.datapath.tables import HANDSHAKE_TOS, Tables
from wyrmhole.datapath.train import count_datagrams
from wyrmhole.engine.contract import EngineFailed, EngineReport, TunChanged
from wyrmhole.engine.mailbox import Mailbox
from wyrmhole.engine.polled import Polled
from wyrmhole.net.bind import Bind, KernelBind, SendOutcome, doubts_trains
from wyrmhole.net.tun import LendableTun, Tun, TunEvent
from wyrmhole.protocol.data_plane import KeypairParams, PeerId, SendFailed, Source
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.coalesce import Coalescer, Frame
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.ip import MAX_PACKET_SIZE
from wyrmhole.wire.messages import MESSAGE_TRANSPORT
from wyrmhole.wire.virtio import PLAIN_HEADER, VIRTIO_HEADER_SIZE

TRAINS_PER_TURN = 4
"""Trains (64 KiB each) received from one socket before the other direction is served."""
DATAGRAMS_PER_TURN = 64
_DATA = bytes((MESSAGE_TRANSPORT,))
MAX_EDGE_REPORTS = 256
"""Reports about the edges that may wait; if there are more, only the newest 256 are kept."""
READS_PER_TURN = 64
BYTES_PER_TURN = 65_536
"""TUN frames read before the sealed datagrams are sent: one full train of small packets, or one super-packet."""
FRAME_SIZE = VIRTIO_HEADER_SIZE + MAX_PACKET_SIZE
SOURCES_PER_TURN = 16
"""Sticky sources that one turn checks after a route changed; a check takes about 10 us."""
MAX_FAILED_TURNS = 1000
"""Consecutive turns that raise before the engine reports that it has failed."""
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Loop:
    """Moves the packets. `clock` returns boottime nanoseconds; `notify` is an eventfd, written to when reports wait."""

    def __init__(self, clock: Callable[[], int], tables: Tables, mailbox: Mailbox, notify: int) -> None:
        self._clock = clock
        self._tables = tables
        self._mailbox = mailbox
        self._notify = notify
        self._outbound = Outbound(self._tables, self._transmit, self._answer)
        self._inbound = Inbound(self._tables, self._write, self._confirmed, Coalescer(tso=False, uso=False))
        self._answers = Answers()
        self._frame = memoryview(bytearray(FRAME_SIZE))
        self._tun: Tun | None = None
        self._tun_fd = self._events_fd = -1
        self._bind: Bind | None = None
        self._poll = select.poll()
        self._poll.register(mailbox.fileno(), select.POLLIN)
        self._tun_polled, self._bind_polled = Polled(self._poll), Polled(self._poll)
        self._edge_reports: deque[TunChanged | EngineFailed] = deque(maxlen=MAX_EDGE_REPORTS)
        self.is_announced = False
        self._now = 0
        self._wrote = False
        self._is_burst = False
        self._stale: list[EnginePeer] = []
        self.is_stopping = False

    # Reports

    def announce(self) -> None:
        """Wake the control thread if there are reports that it was not woken for."""
        if not self.is_announced and (self._edge_reports or self._tables.reports.has_some):
            self.is_announced = True
            os.eventfd_write(self._notify, 1)

    def poll_reports(self, limit: int) -> list[EngineReport]:
        """Take up to `limit` reports; called by the control thread."""
        # The flag must fall before the queue is read: a report queued later is announced again, an earlier one is taken
        # here.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._notify)
        self.is_announced = False
        taken: list[EngineReport] = []
        while self._edge_reports and len(taken) < limit:
            taken.append(self._edge_reports.popleft())
        taken += self._tables.reports.take(limit - len(taken))
        self.announce()
        return taken

    def _report_edge(self, report: TunChanged | EngineFailed) -> None:
        """Queue a report about an edge or the engine itself. A full queue discards its oldest report."""
        self._edge_reports.append(report)

    # Turns

    def run(self) -> None:
        failed = 0
        while not self.is_stopping:
            try:
                self.turn(None if not self._stale else 0)
                failed = 0
            except Exception as error:
                failed += 1
                self._give_up_batch()
                if failed >= MAX_FAILED_TURNS:
                    self._report_edge(EngineFailed(f"{failed} turns in a row failed, the last with {error!r}"))
                    self.announce()
                    return

    def _give_up_batch(self) -> None:
        """Clean up after a turn that raised: discard unfinished work, but send the sealed datagrams."""
        self._tables.drop(DropReason.INTERNAL_ERROR)
        self._inbound.reset()
        with contextlib.suppress(Exception):
            self._outbound.flush()
        self.announce()

    def turn(self, timeout_ms: int | None = 0) -> None:
        """Wait for work, at most `timeout_ms` (None: without limit), then do one turn."""
        events = self._poll.poll(timeout_ms)
        self._now = self._clock()
        self._wrote = False
        readable = False
        for own, what in events:
            if own == self._mailbox.fileno():
                self._mailbox.apply()
            elif (fd := self._tun_polled.lent(own)) is None:
                self._receive(self._bind_polled.lent(own), what)
            elif fd != self._tun_fd:
                self._handle_tun_events()
            else:
                readable = True
                if what & _BROKEN:
                    self._tun_broke()
        if self._tun is not None and (readable or self._wrote):
            self._read_tun(self._tun)
        self._outbound.flush()
        if self._stale:
            self._check_sources()
        self.announce()

    def carry_out(self, call: Callable[..., object], *arguments: object) -> None:
        """Carry out a call of the control thread when the loop has no thread."""
        self._now = self._clock()
        call(*arguments)
        self._outbound.flush()
        self.announce()

    def _receive(self, fd: int | None, what: int) -> None:
        bind = self._bind
        if bind is None or fd is None:
            # Released by a call that was applied in this turn.
            return
        now = self._now
        trains = 0
        for count in range(DATAGRAMS_PER_TURN):
            received = bind.receive(fd)
            if received is None:
                if not count or what & _BROKEN:
                    self._follow_socket(bind, fd)
                break
            is_data = received.view[:1] == _DATA
            self._inbound.handle(received, now)
            if received.segment_size:
                trains += 1
                if trains == TRAINS_PER_TURN:
                    break
            elif is_data:
                # A single data packet is rarely followed by another, and polling is cheaper than a `recvmsg` that
                # returns EAGAIN. Handshake messages come in floods; reporting several together interrupts the control
                # thread less often.
                break
        if bind.take_stale_sources():
            self._stale = [peer for peer in self._tables.peers.values() if peer.source is not None]

    def _read_tun(self, tun: Tun) -> None:
        frame, now = self._frame, self._now
        handle = self._outbound.handle_frame
        total = 0
        for count in range(READS_PER_TURN):
            try:
                length = tun.read_into(frame)
            except OSError:
                self._handle_tun_events()
                self._tun_gone()
                return
            if not length:
                self._is_burst = count > 1
                return
            handle(frame[:length], now)
            if count == 0 and not self._is_burst:
                # Probably a single frame, as in the last turn: send it without waiting for the next read.
                self._outbound.flush()
            total += length
            if total >= BYTES_PER_TURN:
                break
        self._is_burst = True

    def _check_sources(self) -> None:
        """After a change of a route or address, forget sources that the kernel would no longer use, a few per turn."""
        bind = self._bind
        for _ in range(min(SOURCES_PER_TURN, len(self._stale))):
            peer = self._stale.pop()
            if bind is not None and peer.source is not None and not bind.source_is_valid(peer.sockaddr, peer.source):
                self._tables.forget_source(peer)

    # Edges

    def attach_tun(self, tun: Tun) -> None:
        self.drop_tun()
        tun = tun.lend() if isinstance(tun, LendableTun) else tun
        self._tun, self._tun_fd, self._events_fd = tun, tun.fileno(), tun.events_fileno()
        self._tun_polled.add_all(fd for fd in (self._tun_fd, self._events_fd) if fd >= 0)
        self._follow_offloads(tun)
        self._handle_tun_events()

    def drop_tun(self) -> None:
        self._tun_polled.close()
        tun, self._tun = self._tun, None
        if isinstance(tun, LendableTun):
            tun.close()

    def attach_bind(self, bind: Bind | None, port: int) -> None:
        filenos = () if bind is None else tuple(bind.filenos())
        polled = Polled(self._poll)
        polled.add_all(filenos)
        former, self._bind_polled = self._bind_polled, polled
        former.close()
        self._bind = bind
        self._tables.listen_port = port
        self._tables.paths += 1
        if bind is not None and doubts_trains(bind):
            self._tables.doubt_trains()

    def _follow_socket(self, bind: Bind, fd: int) -> None:
        """Find out why a readable socket had no datagram: the bind may have replaced or closed it."""
        if fd in bind.filenos():
            self._bind_polled.renew(fd)
        else:
            self._bind_polled.discard(fd)

    def _handle_tun_events(self) -> None:
        if self._tun is None:
            return
        for event in self._tun.poll_events():
            self._report_edge(TunChanged(event))
            if event is TunEvent.UP:
                self._tun_polled.resume(self._tun_fd)
            elif event is TunEvent.DELETED:
                self._tun_gone(reported=True)
                return

    def _tun_broke(self) -> None:
        """The descriptor reports an error: do not poll it again before the interface comes up."""
        self._tun_polled.pause(self._tun_fd)
        self._handle_tun_events()

    def _tun_gone(self, *, reported: bool = False) -> None:
        if self._tun is None:
            return
        self.drop_tun()
        if not reported:
            self._report_edge(TunChanged(TunEvent.DELETED))

    def _write(self, frame: Frame) -> None:
        tun = self._tun
        if tun is None:
            self._tables.drop(DropReason.TUN_WRITE_FAILED, len(frame.packets))
            return
        self._wrote = True
        if tun.write(frame.parts):
            return
        if len(frame.packets) == 1:
            self._tables.drop(DropReason.TUN_WRITE_FAILED)
            return
        # The offload may have been switched off, and the packets are still good.
        self._follow_offloads(tun)
        for packet in frame.packets:
            if not tun.write([PLAIN_HEADER, packet]):
                self._tables.drop(DropReason.TUN_WRITE_FAILED)

    def _follow_offloads(self, tun: Tun) -> None:
        self._inbound.coalescer.tso, self._inbound.coalescer.uso = tun.offloads.tso, tun.offloads.uso

    def _transmit(self, peer: EnginePeer, data: bytes | memoryview, size: int, tos: int) -> bool:
        bind = self._bind
        if bind is None or peer.sockaddr is NO_SOCKADDR:
            reason = DropReason.SEND_FAILED if bind is None else DropReason.NO_ENDPOINT
            self._tables.drop(reason, count_datagrams(data, size), peer=peer)
            return False
        if size and self._tables.sends_singly(peer):
            outcome = _send_singly(bind, peer, memoryview(data), size, tos)
        else:
            outcome = bind.send(data, size, peer.sockaddr, peer.source, tos=tos)
        if outcome:
            if outcome & SendOutcome.SOURCE_REJECTED:
                self._tables.forget_source(peer)
            if outcome & SendOutcome.DROPPED:
                self._tables.drop(DropReason.SEND_FAILED, count_datagrams(data, size), peer=peer)
                return False
        peer.tx_bytes += len(data)
        return True

    def _answer(self, packet: bytes) -> None:
        """Answer a packet that has no destination."""
        error = self._answers.make(packet, self._now)
        if error is not None and self._tun is not None:
            self._tun.write([PLAIN_HEADER, error])

    def _confirmed(self, peer: EnginePeer) -> None:
        self._outbound.send_staged(peer, self._now)

    # Calls of the control thread that send

    def install_keypair(self, peer: PeerId, params: KeypairParams) -> None:
        known = self._tables.peers.get(peer)
        if known is None:
            return
        self._tables.install(known, params)
        if params.is_initiator:
            if known.staged:
                self._outbound.send_staged(known, self._now)
            else:
                self._outbound.send_keepalive(known, self._now)

    def send_keepalive(self, peer: PeerId) -> None:
        known = self._tables.peers.get(peer)
        if known is not None:
            self._outbound.send_keepalive(known, self._now)

    def send_to_peer(self, peer: PeerId, datagram: bytes) -> None:
        known = self._tables.peers.get(peer)
        if known is None:
            return
        if known.sockaddr is NO_SOCKADDR:
            self._tables.drop(DropReason.NO_ENDPOINT, peer=known)
            return
        if not self._transmit(known, datagram, 0, HANDSHAKE_TOS) and isinstance(self._bind, KernelBind):
            self._tables.report(SendFailed(peer, self._bind.last_error))
        self._tables.note_sent(known, self._now)

    def send_to(self, endpoint: Endpoint, source: Source | None, datagram: bytes) -> None:
        if self._bind is not None:
            self._bind.send(datagram, 0, endpoint.sockaddr, source)

    def close(self) -> None:
        """Release the edges, after the last turn."""
        self.drop_tun()
        self._bind = None
        self._bind_polled.close()


def _send_singly(bind: Bind, peer: EnginePeer, data: memoryview, size: int, tos: int) -> SendOutcome:
    """Send the datagrams of a train with one call each."""
    source, outcome = peer.source, SendOutcome.SENT
    for start in range(0, len(data), size):
        outcome |= bind.send(data[start : start + size], 0, peer.sockaddr, source, tos=tos)
        if outcome & SendOutcome.SOURCE_REJECTED:
            source = None
    return outcome
