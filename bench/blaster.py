"""Send prebuilt Ethernet frames at a given rate, from any source address, bypassing the kernel's IP stack.

usage: blaster.py INTERFACE FRAMES RATE SECONDS     (root, inside the network namespace of the interface)

FRAMES is a file of frames, each preceded by its length (16 bits, little-endian), which are sent cyclically. RATE is in
frames per second, or 0 for the maximum; a packet socket and sendmmsg take about 1.5 us per frame. The program prints
"ready" when it begins. When SECONDS have passed, or at SIGTERM, it prints the number of frames sent and the seconds
that this took.
"""

from __future__ import annotations

import ctypes
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

BATCH = 64
_SOL_PACKET = 263
_PACKET_QDISC_BYPASS = 20
_MMSGHDR = struct.Struct("@QI4xQQQQi4xI4x")
"""struct mmsghdr on 64-bit Linux: name, its length, iovec, its count, control, its length, flags; bytes sent."""
_IOVEC = struct.Struct("@QQ")


def write_frames(path: Path, frames: Iterable[bytes]) -> None:
    path.write_bytes(b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames))


def read_frames(path: Path) -> list[bytes]:
    data, at, frames = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        frames.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return frames


def udp_frame(
    macs: tuple[bytes, bytes], source: tuple[str, int], destination: tuple[str, int], payload: bytes
) -> bytes:
    """Return an Ethernet frame with a UDP datagram over IPv4 or IPv6. `macs` are those of receiver and sender."""
    udp = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    addresses = socket.inet_pton(family, source[0]) + socket.inet_pton(family, destination[0])
    if family == socket.AF_INET:
        # A UDP checksum of zero means that there is none.
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
        header = header[:10] + _checksum(header) + header[12:]
        return b"".join((*macs, b"\x08\x00", header, udp))
    pseudo = addresses + struct.pack("!IBBBB", len(udp), 0, 0, 0, 17)
    udp = udp[:6] + _checksum(pseudo + udp) + udp[8:]
    return b"".join((*macs, b"\x86\xdd", struct.pack("!IHBB", 6 << 28, len(udp), 17, 64), addresses, udp))


def _checksum(data: bytes) -> bytes:
    total = int.from_bytes(data + bytes(len(data) % 2)) % 0xFFFF
    return (0xFFFF - total or 0xFFFF).to_bytes(2)


class Blaster:
    """A sender that keeps all frames in one buffer, and their mmsghdr structures in another."""

    def __init__(self, interface: str, frames: Sequence[bytes]) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        self._socket.bind((interface, 0))
        self._count = len(frames)
        self._data = ctypes.create_string_buffer(b"".join(frames))
        self._iovecs = ctypes.create_string_buffer(_IOVEC.size * len(frames))
        self._headers = ctypes.create_string_buffer(_MMSGHDR.size * len(frames))
        at = ctypes.addressof(self._data)
        for number, frame in enumerate(frames):
            _IOVEC.pack_into(self._iovecs, number * _IOVEC.size, at, len(frame))
            iovec = ctypes.addressof(self._iovecs) + number * _IOVEC.size
            _MMSGHDR.pack_into(self._headers, number * _MMSGHDR.size, 0, 0, iovec, 1, 0, 0, 0, 0)
            at += len(frame)
        self._sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
        self._next = 0
        self.is_stopped = False

    def send(self, count: int) -> int:
        """Send at most `count` frames with one system call. Return the number sent."""
        count = min(count, self._count - self._next)
        headers = ctypes.c_void_p(ctypes.addressof(self._headers) + self._next * _MMSGHDR.size)
        sent = max(0, int(self._sendmmsg(self._socket.fileno(), headers, count, 0)))
        self._next = (self._next + sent) % self._count
        return sent

    def run(self, rate: float, seconds: float) -> tuple[int, float]:
        """Send until the time is over. Return the number of frames and the seconds."""
        total, forgiven, start = 0, 0, time.perf_counter()
        while (now := time.perf_counter() - start) < seconds and not self.is_stopped:
            due = int(now * rate) - total - forgiven if rate else BATCH
            if due > 4 * BATCH:
                # The rate is a ceiling: frames that were late are skipped, not sent in a burst.
                forgiven += due - 4 * BATCH
            if due >= min(BATCH, rate / 1000 or BATCH):
                total += self.send(min(due, BATCH))
            else:
                time.sleep(0.0002)
        return total, time.perf_counter() - start


def main() -> None:
    interface, file, rate, seconds = sys.argv[1:]
    blaster = Blaster(interface, read_frames(Path(file)))

    def stop(*_: object) -> None:
        blaster.is_stopped = True

    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    print(*blaster.run(float(rate), float(seconds)), flush=True)


if __name__ == "__main__":
    main()
