"""A stream of numbered datagrams through a tunnel and back, to measure the losses of a fault and the recovery time."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from contextlib import suppress
from itertools import pairwise

from tests.netns.host import PATIENCE, Host, until

_NUMBER = struct.Struct("=Q")


class Stream:
    """A context manager that sends a numbered datagram every `interval` seconds, which the other host echoes.

    On exit, it waits until no more datagrams arrive.
    """

    def __init__(self, a: Host, b: Host, address: str, *, interval: float, size: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._near, self._far = (_open(host, family) for host in (a, b))
        self._target = (address, self._far.getsockname()[1])
        self._interval = interval
        self._padding = bytes(max(0, size - _NUMBER.size))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream")
        self.sent: list[float] = []
        """The time at which each datagram was sent, indexed by its number."""
        self.refused = 0
        """The number of datagrams that the sender's kernel refused."""
        self.far: list[int] = []
        """Numbers in the order of arrival at the other host."""
        self.back: list[tuple[float, int]] = []
        """The time and number of each datagram that returned."""

    def __enter__(self) -> Stream:
        self._thread.start()
        until(lambda: self.back, "the stream flows")
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Idempotent."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        poll = select.poll()
        for sock in (self._near, self._far):
            poll.register(sock, select.POLLIN)
        due = time.monotonic()
        try:
            while not self._stop.is_set():
                now = time.monotonic()
                if now >= due:
                    self._send(now)
                    due = max(due + self._interval, now - 0.1)
                self._move(poll, max(0.0, due - time.monotonic()))
            while self._move(poll, 0.5):
                pass
        finally:
            self._near.close()
            self._far.close()

    def _send(self, now: float) -> None:
        number = len(self.sent)
        self.sent.append(now)
        try:
            self._near.sendto(_NUMBER.pack(number) + self._padding, self._target)
        except OSError:
            self.refused += 1

    def _move(self, poll: select.poll, wait: float) -> bool:
        """Echo at the far end, record at the near end; return False if nothing arrived within `wait` seconds."""
        ready = poll.poll(wait * 1000)
        for fd, _ in ready:
            with suppress(OSError):
                if fd == self._far.fileno():
                    data, sender = self._far.recvfrom(2048)
                    self.far.append(_NUMBER.unpack_from(data)[0])
                    self._far.sendto(data, sender)
                else:
                    self.back.append((time.monotonic(), _NUMBER.unpack_from(self._near.recv(2048))[0]))
        return bool(ready)

    def flow(self, datagrams: int = 20) -> None:
        """Wait until `datagrams` more have returned: earlier faults are over."""
        wanted = len(self.back) + datagrams
        until(lambda: len(self.back) >= wanted, "datagrams come back")

    def flow_out(self, datagrams: int = 20) -> None:
        """Wait until `datagrams` more were sent, whether they arrive or not."""
        wanted = len(self.sent) + datagrams
        until(lambda: len(self.sent) >= wanted, "datagrams are sent")

    # Results

    def recovery(self, since: float, patience: float = PATIENCE) -> float:
        """Wait until a datagram sent after `since` returns; return the seconds from `since` (monotonic) to then."""
        seen = len(self.back)

        def first() -> float:
            nonlocal seen
            # Entries before `seen` were checked already, and their send times do not change.
            for at in range(seen, len(self.back)):
                when, number = self.back[at]
                if self.sent[number] >= since:
                    return when
            seen = len(self.back)
            return 0.0

        seen = next((at for at, (when, _) in enumerate(self.back) if when >= since), seen)
        return until(first, "datagrams come back", patience) - since

    @property
    def lost(self) -> int:
        """The number of datagrams that were sent and never returned; final after `end`."""
        return len(self.sent) - self.refused - len({number for _, number in self.back})

    @property
    def lost_text(self) -> str:
        refused = f", {self.refused} refused by the sender's kernel" if self.refused else ""
        return f"{self.lost} of {len(self.sent)}{refused}"

    @property
    def duplicates(self) -> int:
        return len(self.far) - len(set(self.far))

    @property
    def reordered(self) -> int:
        """The number of datagrams that arrived at the other host after a later one."""
        return sum(later < earlier for earlier, later in pairwise(self.far))


def _open(host: Host, family: socket.AddressFamily) -> socket.socket:
    with host.entered():
        opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    opened.bind(("", 0))
    return opened
