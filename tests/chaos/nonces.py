"""Record every (key, counter) pair on a wire, including those in trains that have not been segmented yet."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections import Counter

from tests.netns.host import Host
from tests.netns.traffic import ETH_P_ALL, PACKET_OUTGOING, SO_RCVBUFFORCE

SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
ETHERNET = 14
_VNET = struct.Struct("=BBHHHH")
_HEADER = struct.Struct("<IIQ")


class NonceWatch:
    """A context manager that records nonces.

    A key is identified by its direction and by the receiver index, which the receiving end chose for this key only.
    If the capture lost packets, `missed` is not zero.
    """

    def __init__(self, host: Host, link: str) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.bind((link, ETH_P_ALL))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nonces")
        self.seen: Counter[tuple[bool, int, int]] = Counter()
        self.missed = 0

    def __enter__(self) -> NonceWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.missed = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        self._socket.close()

    @property
    def repeated(self) -> list[tuple[bool, int, int]]:
        return [pair for pair, times in self.seen.items() if times > 1]

    @property
    def sessions(self) -> int:
        return len({pair[:2] for pair in self.seen})

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while poll.poll(100) or not self._stop.is_set():
            if poll.poll(0):
                packet, address = self._socket.recvfrom(0x11000)
                self._take(packet, address[2] == PACKET_OUTGOING)

    def _take(self, packet: bytes, outgoing: bool) -> None:
        _, _, _, gso_size, _, _ = _VNET.unpack_from(packet)
        ip = packet[_VNET.size + ETHERNET :]
        if len(ip) < 28 or ip[0] >> 4 != 4 or ip[9] != socket.IPPROTO_UDP:
            return
        payload = ip[(ip[0] & 15) * 4 + 8 :]
        size = gso_size or len(payload)
        for at in range(0, len(payload), size or 1):
            if len(payload) - at >= _HEADER.size:
                kind, index, counter = _HEADER.unpack_from(payload, at)
                if kind == 4:
                    self.seen[outgoing, index, counter] += 1
