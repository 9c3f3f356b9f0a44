"""A TUN and a bind made of lists: tests insert frames and datagrams, and read the output."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence

from wyrmhole.net.bind import Payload, SendOutcome, datagrams_of
from wyrmhole.net.tun import TunEvent, TunOffloads
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import SockAddr
from wyrmhole.wire.messages import DEFAULT_MTU

PLAIN = bytes(10)


class ListTun:
    """A TUN whose frames are kept in lists. It is always up."""

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
            if not self.to_read:
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
    """A bind whose datagrams are kept in lists. `transmit` receives each sent datagram; trains are split."""

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
            # A datagram that arrived before the event was read would otherwise wait for the next one.
            if not self.incoming:
                return None
        return self.incoming.popleft()

    def send(
        self, data: Payload, segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int = 0
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
