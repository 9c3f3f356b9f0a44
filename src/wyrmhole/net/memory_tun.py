"""MemoryTun: the twin of LinuxTun without a kernel, for tests and simulations.

A test acts as the operating system: it injects the packets that applications send, and takes the delivered ones. Frames
have the format of a kernel TUN. Two eventfds make it pollable. All methods are thread-safe.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Sequence

from wyrmhole.net.tun import TunEvent, TunOffloads
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.virtio import GSO_ECN, GSO_UDP_L4, PLAIN_HEADER, VIRTIO_HEADER_SIZE

_NO_OFFLOADS = TunOffloads(tso=False, uso=False)


class MemoryTun:
    """See `net.tun.Tun`. `limit` bounds both queues, in frames. Frames that do not fit are counted in `lost`."""

    def __init__(
        self,
        name: str = "mem0",
        mtu: int = DEFAULT_MTU,
        *,
        up: bool = True,
        offloads: TunOffloads = _NO_OFFLOADS,
        limit: int = 1024,
    ) -> None:
        self.lost = 0
        self._name = name
        self._mtu = mtu
        self._up = up
        self._gone = False
        self._offloads = offloads
        self._limit = limit
        self._lock = threading.Lock()
        self._injected: deque[bytes] = deque()
        self._delivered: deque[bytes] = deque()
        self._events = deque([TunEvent.UP if up else TunEvent.DOWN])
        self._readable = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._eventful = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    # The engine's side

    @property
    def name(self) -> str:
        return self._name

    @property
    def mtu(self) -> int:
        return self._mtu

    @property
    def offloads(self) -> TunOffloads:
        return self._offloads

    def fileno(self) -> int:
        return self._readable

    def read_into(self, buffer: bytearray | memoryview) -> int:
        with self._lock:
            if self._gone:
                raise OSError(errno.EBADFD, "the TUN interface is gone")
            frame = self._injected.popleft() if self._injected else b""
            if not self._injected:
                _clear(self._readable)
        buffer[: len(frame)] = frame
        return len(frame)

    def write(self, parts: Sequence[Buffer]) -> bool:
        frame = b"".join(parts)
        with self._lock:
            accepted = self._up and not self._gone and len(self._delivered) < self._limit and self._takes(frame[1])
            if accepted:
                self._delivered.append(frame)
            else:
                self.lost += 1
        return accepted

    def _takes(self, gso_type: int) -> bool:
        if not gso_type:
            return True
        return self._offloads.uso if gso_type & ~GSO_ECN == GSO_UDP_L4 else self._offloads.tso

    def events_fileno(self) -> int:
        return self._eventful

    def poll_events(self) -> list[TunEvent]:
        with self._lock:
            events = list(self._events)
            self._events.clear()
            _clear(self._eventful)
        return events

    def close(self) -> None:
        with self._lock:
            self._gone = True
            for fileno in (self._readable, self._eventful):
                if fileno >= 0:
                    os.close(fileno)
            self._readable = self._eventful = -1

    # The operating system's side

    def inject(self, packet: Buffer) -> bool:
        """Send an IP packet into the tunnel, like an application. Return False if the interface is down or full."""
        return self.inject_frame(PLAIN_HEADER + packet)

    def inject_frame(self, frame: bytes) -> bool:
        """Send a frame with the caller's virtio header, for example a super-packet."""
        with self._lock:
            accepted = self._up and not self._gone and len(self._injected) < self._limit
            if accepted:
                self._injected.append(frame)
                os.eventfd_write(self._readable, 1)
            else:
                self.lost += 1
        return accepted

    @property
    def delivered(self) -> list[bytes]:
        """The IP packets (or super-packets) that left the tunnel and were not popped, oldest first."""
        with self._lock:
            return [frame[VIRTIO_HEADER_SIZE:] for frame in self._delivered]

    def pop(self) -> bytes:
        """Take the oldest delivered packet, without its virtio header. Raises IndexError if there is none."""
        return self.pop_frame()[VIRTIO_HEADER_SIZE:]

    def pop_frame(self) -> bytes:
        with self._lock:
            return self._delivered.popleft()

    def set_up(self, up: bool) -> None:
        """Set the interface up or down. Down discards the frames that wait to be read."""
        with self._lock:
            if up != self._up and not self._gone:
                self._up = up
                self._report(TunEvent.UP if up else TunEvent.DOWN)
                if not up:
                    self._injected.clear()
                    _clear(self._readable)

    def set_mtu(self, mtu: int) -> None:
        with self._lock:
            if mtu != self._mtu and not self._gone:
                self._mtu = mtu
                self._report(TunEvent.MTU)

    def set_offloads(self, offloads: TunOffloads) -> None:
        """Set which coalesced frames `write` accepts."""
        self._offloads = offloads

    def rename(self, name: str) -> None:
        self._name = name

    def delete(self) -> None:
        """Remove the interface. The descriptor becomes readable, and reading raises EBADFD."""
        with self._lock:
            if not self._gone:
                self._gone, self._up = True, False
                self._report(TunEvent.DELETED)
                os.eventfd_write(self._readable, 1)

    def _report(self, event: TunEvent) -> None:
        """Queue an event. Beyond the limit the oldest are dropped, because the newest has the state."""
        if len(self._events) >= self._limit:
            self._events.popleft()
        self._events.append(event)
        os.eventfd_write(self._eventful, 1)


def _clear(fileno: int) -> None:
    if fileno >= 0:
        try:
            os.eventfd_read(fileno)
        except BlockingIOError:
            return
