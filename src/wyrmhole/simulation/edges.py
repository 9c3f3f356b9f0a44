"""A TUN and a bind of lists, each call of which can be made to fail.

They differ from the memory twins in `net` in what a simulation needs: no locks, everything that passes is seen, and
`faults` says which of the next calls fail and how.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence

from wyrmhole.net.bind import Buffer, Received, SendOutcome
from wyrmhole.net.tun import TunEvent, TunOffloads
from wyrmhole.wire.endpoint import SockAddr
from wyrmhole.wire.tun_offload import VIRTIO_HEADER_SIZE

NO_OFFLOADS = TunOffloads(tso=False, uso=False)


class ListTun:
    """`on_write` sees each packet that comes out, also one whose write is then made to fail (`failing` of the next)."""

    def __init__(self, on_write: Callable[[bytes], None], mtu: int = 1420) -> None:
        self.name = "sim0"
        self.mtu = mtu
        self.offloads = NO_OFFLOADS
        self.failing = 0
        self.events: deque[TunEvent] = deque([TunEvent.UP])
        self._on_write = on_write
        self._waiting: deque[bytes] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def events_fileno(self) -> int:
        return -1

    def poll_events(self) -> list[TunEvent]:
        events = list(self.events)
        self.events.clear()
        return events

    def inject(self, frame: bytes) -> None:
        self._waiting.append(frame)
        os.eventfd_write(self._fd, 1)

    def read_into(self, buffer: bytearray | memoryview) -> int:
        if not self._waiting:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return 0
        frame = self._waiting.popleft()
        buffer[: len(frame)] = frame
        return len(frame)

    def write(self, parts: Sequence[Buffer]) -> bool:
        self._on_write(b"".join(parts)[VIRTIO_HEADER_SIZE:])
        if self.failing:
            self.failing -= 1
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ListBind:
    """`on_send(sockaddr, datagram, sent)` sees each datagram, trains cut up. `address` is where it is; `failing` of
    the next sends are dropped; `stale` makes the engine ask about its sources."""

    def __init__(self, on_send: Callable[[SockAddr, bytes, bool], None], address: bytes) -> None:
        self.address = address
        self.failing = 0
        self.stale = False
        self._on_send = on_send
        self._incoming: deque[Received] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def open(self, port: int) -> int:
        return port

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def set_mark(self, mark: int) -> None: ...

    def filenos(self) -> Sequence[int]:
        return (self._fd,)

    def arrive(self, data: bytes, sockaddr: SockAddr, segment: int = 0) -> None:
        self._incoming.append(Received(memoryview(data), segment, sockaddr, self.address))
        os.eventfd_write(self._fd, 1)

    @property
    def waiting(self) -> bool:
        return bool(self._incoming)

    def receive(self, fileno: int) -> Received | None:
        if not self._incoming:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return None
        return self._incoming.popleft()

    def send(
        self,
        data: Buffer | Sequence[Buffer],
        segment_size: int,
        sockaddr: SockAddr,
        source: bytes | None,
        tos: int = 0,
    ) -> SendOutcome:
        whole = bytes(data) if isinstance(data, (bytes, bytearray, memoryview)) else b"".join(data)
        sent = not self.failing
        self.failing -= not sent
        step = segment_size or max(len(whole), 1)
        for start in range(0, len(whole), step):
            self._on_send(sockaddr, whole[start : start + step], sent)
        rejected = SendOutcome.SOURCE_REJECTED if source is not None and source != self.address else SendOutcome.SENT
        return rejected if sent else rejected | SendOutcome.DROPPED

    def take_stale_sources(self) -> bool:
        stale, self.stale = self.stale, False
        return stale

    def source_is_valid(self, sockaddr: SockAddr, source: bytes) -> bool:
        return source == self.address
