"""An engine in the place of the protocol tests' model data plane, so that one suite runs on the model and both engines.

Payloads travel as IPv4 packets from 10.0.<sender>.1 to 10.0.<receiver>.1, through the engine's real steps, between a
TUN and a bind that are lists.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.engine.kinds import index_count, make_engine
from wyrmhole.engine.contract import TunChanged
from wyrmhole.net.bind import SendOutcome, datagrams_of
from wyrmhole.net.tun import TunEvent, TunOffloads
from wyrmhole.protocol.data_plane import HandshakeDatagram, PeerId, Report
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.prefix import Prefix

PLAIN = bytes(10)


def inner_address(number: int) -> bytes:
    return bytes((10, number >> 8 & 255, number & 255, 1))


def packet(source: int, destination: int, payload: bytes) -> bytes:
    """An IPv4 packet of an experimental protocol (253, RFC 3692)."""
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, 253, 0, inner_address(source), inner_address(destination)
    )
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload


class ListTun:
    """A TUN whose frames are lists; always up."""

    name = "list0"
    mtu = DEFAULT_MTU

    def __init__(self, offloads: TunOffloads | None = None) -> None:
        self.offloads = offloads or TunOffloads(tso=False, uso=False)
        self.to_read: deque[bytes] = deque()
        self.written: list[bytes] = []
        self.refuse: Callable[[Sequence[Buffer]], bool] = lambda parts: False
        self.events: deque[TunEvent] = deque([TunEvent.UP])
        self.gone = False
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def events_fileno(self) -> int:
        return -1

    def poll_events(self) -> list[TunEvent]:
        events, self.events = list(self.events), deque()
        return events

    def inject(self, frame: bytes) -> None:
        self.to_read.append(frame)
        os.eventfd_write(self._fd, 1)

    def read_into(self, buffer: bytearray | memoryview) -> int:
        if self.gone:
            raise OSError(77, "File descriptor in bad state")
        if not self.to_read:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return 0
        frame = self.to_read.popleft()
        buffer[: len(frame)] = frame
        return len(frame)

    def write(self, parts: Sequence[Buffer]) -> bool:
        if self.refuse(parts):
            return False
        self.written.append(b"".join(parts))
        return True

    def close(self) -> None: ...


class ListBind:
    """A bind whose datagrams are lists. `transmit` takes each datagram that is sent, trains cut up."""

    def __init__(self, transmit: Callable[[SockAddr, bytes, bytes | None, int], None]) -> None:
        self._transmit = transmit
        self.trains: list[tuple[int, int]] = []
        """(bytes, segment size) of each send."""
        self.incoming: deque[Received] = deque()
        self.outcome = SendOutcome.SENT
        self.stale = False
        self.valid_sources: set[bytes] = set()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)

    def __del__(self) -> None:
        os.close(self._fd)

    def open(self, port: int) -> int:
        return port

    def close(self) -> None: ...

    def set_mark(self, mark: int) -> None: ...

    def filenos(self) -> Sequence[int]:
        return [self._fd]

    def arrive(self, data: bytes, sockaddr: SockAddr, *, segment: int = 0, source: bytes | None = None) -> None:
        self.incoming.append(Received(memoryview(data), segment, sockaddr, source))
        os.eventfd_write(self._fd, 1)

    def receive(self, fileno: int) -> Received | None:
        if not self.incoming:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return None
        return self.incoming.popleft()

    def send(
        self,
        data: Buffer | Sequence[Buffer],
        segment_size: int,
        sockaddr: SockAddr,
        source: bytes | None,
        tos: int = 0,
    ) -> SendOutcome:
        datagrams = datagrams_of(data, segment_size)
        self.trains.append((sum(map(len, datagrams)), segment_size))
        for datagram in datagrams:
            self._transmit(sockaddr, datagram, source, tos)
        return self.outcome

    def take_stale_sources(self) -> bool:
        stale, self.stale = self.stale, False
        return stale

    def source_is_valid(self, sockaddr: SockAddr, source: bytes) -> bool:
        return source in self.valid_sources


_NAMES = {
    DropReason.STAGING_FULL: "staging_full",
    DropReason.HANDSHAKE_GAVE_UP: "gave_up",
    DropReason.NO_ENDPOINT: "no_endpoint",
    DropReason.UNKNOWN_INDEX: "no_key",
    DropReason.KEY_EXPIRED: "no_key",
    DropReason.BAD_TAG: "bad_tag",
    DropReason.REPLAYED: "replayed",
    DropReason.BAD_MAC1: "bad_mac1",
    DropReason.NO_PRIVATE_KEY: "bad_mac1",
}


class EnginePlane:
    """What tests.protocol.world.ModelPlane offers, on the engine. Node n has the inner address 10.x.n.1."""

    def __init__(self, clock: Callable[[], int], transmit: Callable[[Endpoint, bytes], None]) -> None:
        self.engine = make_engine(clock)
        self.tun = ListTun()
        self.bind = ListBind(lambda sockaddr, data, source, tos: transmit(Endpoint.from_sockaddr(sockaddr), data))
        self.engine.attach_tun(self.tun)
        self.engine.attach_bind(self.bind, 51820)
        self.queue_depth = 0
        self.number = 0
        """Set by the world: the node's own inner address."""
        self._numbers: dict[PeerId, int] = {}
        self._reports: deque[Report] = deque()

    def __del__(self) -> None:
        self.engine.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        self._numbers[peer] = prefix.network >> 8 & 0xFFFF
        self.engine.insert_allowed_ip(peer, prefix)

    @property
    def reports(self) -> deque[Report]:
        for report in self.engine.poll_reports(1 << 20):
            if isinstance(report, HandshakeDatagram):
                self._reports.append(replace(report, queue_depth=max(report.queue_depth, self.queue_depth)))
            elif not isinstance(report, TunChanged):
                self._reports.append(report)
        return self._reports

    @property
    def delivered(self) -> list[tuple[PeerId, bytes]]:
        found = [(int.from_bytes(frame[23:25], "big"), frame[30:]) for frame in self.tun.written if frame[19] == 253]
        return [(peer, payload) for peer, payload in found]

    @property
    def dropped(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for reason, count in self.engine.drops().items():
            counted[_NAMES.get(reason, reason.value)] += count
        return counted

    @property
    def indices(self) -> dict[int, object]:
        return dict.fromkeys(range(index_count(self.engine)))

    def send_packet(self, peer: PeerId, payload: bytes) -> None:
        self.tun.inject(PLAIN + packet(self.number, self._numbers[peer], payload))
        self.engine.turn()

    def receive(self, datagram: bytes, endpoint: Endpoint) -> None:
        self.bind.arrive(datagram, endpoint.sockaddr, source=b"source")
        self.engine.turn()
