"""A TUN and a bind that are kept in lists and can be made to fail at each call.

Unlike the edges in memory of `net`, they have no locks, they show everything that passes, and the next `failing` sends
or writes fail. `EdgeCalls` numbers all edge calls of a world, so that a run can be repeated with each call failing in
turn.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence

from wyrmhole.net.bind import Payload, SendOutcome, datagrams_of
from wyrmhole.net.tun import TunEvent, TunOffloads
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import SockAddr
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.virtio import VIRTIO_HEADER_SIZE

NO_OFFLOADS = TunOffloads(tso=False, uso=False)

FAILURES = {
    "tun.read": ("nothing", "gone"),
    "tun.write": ("lost",),
    "bind.open": ("taken",),
    "bind.receive": ("error",),
    "bind.send": ("dropped", "rejected"),
    "bind.stale": ("stale",),
    "bind.source": ("invalid",),
}
"""The failure modes of each call that `net.tun.Tun` and `net.bind.Bind` allow. Clocks and randomness do not fail."""


class EdgeCalls:
    """Numbers the edge calls of all hosts of a world, from 0. Call `fails[0]` fails in its failure mode `fails[1]`."""

    def __init__(self, fails: tuple[int, int] | None = None) -> None:
        self.names: list[str] | None = None
        """The names of all calls so far, recorded if this is set to a list."""
        self._fails = fails
        self._number = 0

    def fails(self, name: str) -> str:
        """Return the failure mode of this call, or an empty text if the call succeeds."""
        number, self._number = self._number, self._number + 1
        if self.names is not None:
            self.names.append(name)
        if self._fails is None or number != self._fails[0]:
            return ""
        return FAILURES[name][self._fails[1] % len(FAILURES[name])]

    def heal(self) -> None:
        self._fails = None


class ListTun:
    """A TUN. The next `failing` writes fail; `on_write` also sees their packets."""

    def __init__(
        self, on_write: Callable[[bytes], None], mtu: int = DEFAULT_MTU, calls: EdgeCalls | None = None
    ) -> None:
        self.name = "sim0"
        self.mtu = mtu
        self.offloads = NO_OFFLOADS
        self.failing = 0
        self.gone = False
        self.events: deque[TunEvent] = deque([TunEvent.UP])
        self._calls = calls or EdgeCalls()
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

    @property
    def waiting(self) -> bool:
        return bool(self._waiting) and not self.gone

    def read_into(self, buffer: bytearray | memoryview) -> int:
        failure = self._calls.fails("tun.read")
        if failure == "gone":
            self.gone = True
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        if failure:
            return 0
        if not self._waiting:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return 0
        frame = self._waiting.popleft()
        buffer[: len(frame)] = frame
        return len(frame)

    def write(self, parts: Sequence[Buffer]) -> bool:
        self._on_write(b"".join(parts)[VIRTIO_HEADER_SIZE:])
        fails = bool(self._calls.fails("tun.write"))
        if self.failing:
            self.failing -= 1
            return False
        return not fails

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ListBind:
    """A bind at `address`.

    `on_send(sockaddr, datagram, sent)` sees each datagram; a train is split first. The next `failing` sends are
    dropped. `stale` makes the engine verify its source addresses.
    """

    def __init__(
        self, on_send: Callable[[SockAddr, bytes, bool], None], address: bytes, calls: EdgeCalls | None = None
    ) -> None:
        self.address = address
        self.failing = 0
        self.stale = False
        self._calls = calls or EdgeCalls()
        self._on_send = on_send
        self._incoming: deque[Received] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def open(self, port: int) -> int:
        if self._calls.fails("bind.open"):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
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
        if self._calls.fails("bind.receive"):
            return None
        if not self._incoming:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
            return None
        return self._incoming.popleft()

    def send(
        self, data: Payload, segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int = 0
    ) -> SendOutcome:
        failure = self._calls.fails("bind.send")
        sent = not self.failing and failure != "dropped"
        self.failing -= bool(self.failing)
        for datagram in datagrams_of(data, segment_size):
            self._on_send(sockaddr, datagram, sent)
        is_wrong = source is not None and (source != self.address or failure == "rejected")
        rejected = SendOutcome.SOURCE_REJECTED if is_wrong else SendOutcome.SENT
        return rejected if sent else rejected | SendOutcome.DROPPED

    def take_stale_sources(self) -> bool:
        stale, self.stale = self.stale or bool(self._calls.fails("bind.stale")), False
        return stale

    def source_is_valid(self, sockaddr: SockAddr, source: bytes) -> bool:
        return source == self.address and not self._calls.fails("bind.source")
