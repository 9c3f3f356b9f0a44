"""A relay between two ends that reverses the order of data messages, block by block."""

from __future__ import annotations

import select
import socket
import struct
import threading
from contextlib import suppress

from tests.netns.host import Host, until
from tests.netns.traffic import SO_RCVBUFFORCE

Address = tuple[str, int]
DATA = b"\x04\0\0\0"
CHUNK = 128
"""The number of datagrams in flight to the relay: fewer than the queue of a TUN holds."""


class ReversingRelay:
    """A context manager that relays datagrams.

    After `begin`, it holds data messages of the first end until there are `block` of them, and forwards them in reverse
    order. Everything else is forwarded at once, in both directions.
    """

    def __init__(self, host: Host, port: int, target: Address, block: int) -> None:
        self._target = target
        self._block = block
        self._front, self._rear = (_open(host, number) for number in (port, 0))
        self._client: Address | None = None
        self._holds = False
        self._held: list[bytes] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")
        self.taken = 0
        """Data messages received since `begin`."""

    def __enter__(self) -> ReversingRelay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._front.close()
        self._rear.close()

    def begin(self) -> None:
        self._holds = True

    def end(self) -> None:
        """Stop holding messages; the held ones are forwarded within 50 ms."""
        self._holds = False

    def _run(self) -> None:
        poll = select.poll()
        for sock in (self._front, self._rear):
            poll.register(sock, select.POLLIN)
        while not self._stop.is_set():
            for fd, _ in poll.poll(50):
                with suppress(OSError):
                    if fd == self._front.fileno():
                        message, self._client = self._front.recvfrom(0x10000)
                        self._forward(message)
                    elif self._client is not None:
                        self._front.sendto(self._rear.recv(0x10000), self._client)
            if not self._holds:
                self._release()

    def _forward(self, message: bytes) -> None:
        if not self._holds or message[:4] != DATA:
            self._rear.sendto(message, self._target)
            return
        self._held.append(message)
        self.taken += 1
        if len(self._held) == self._block:
            self._release()

    def _release(self) -> None:
        while self._held:
            self._rear.sendto(self._held.pop(), self._target)

    def push(self, source: Host, sink: Host, address: str, total: int) -> list[int]:
        """Send numbered datagrams through the tunnel at the relay's pace; return the numbers in order of arrival."""
        with _open(sink, 0) as far, source.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
            near.connect((address, far.getsockname()[1]))
            arrived: list[int] = []
            start = self.taken
            for number in range(total):
                near.send(struct.pack("=I", number))
                if number % CHUNK == CHUNK - 1:
                    until(lambda sent=number: self.taken - start > sent, "the relay receives the datagrams")  # type: ignore[misc]
                    _drain(far, arrived)
            self.end()

            def all_there() -> bool:
                _drain(far, arrived)
                return len(arrived) >= total

            until(all_there, "all datagrams arrive")
            _drain(far, arrived)
            return arrived


def _drain(far: socket.socket, arrived: list[int]) -> None:
    with suppress(BlockingIOError):
        while True:
            arrived.append(struct.unpack("=I", far.recv(64))[0])


def _open(host: Host, port: int) -> socket.socket:
    with host.entered():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    opened.bind(("", port))
    return opened
