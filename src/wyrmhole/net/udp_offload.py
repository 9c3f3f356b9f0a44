"""UDP segmentation offload for sending (UDP_SEGMENT, Linux 4.18) and receiving (UDP_GRO, Linux 5.0). See udp(7).

A train (a GSO batch) is a sequence of datagrams to one destination that crosses the kernel as one message. All have the
same size, except that the last may be shorter.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator

from wyrmhole.wire.datagram import MAX_TRAIN_SEGMENTS
from wyrmhole.wire.endpoint import SockAddr
from wyrmhole.wire.ip import IPV4_HEADER_SIZE, IPV6_HEADER_SIZE, MAX_PACKET_SIZE, UDP_HEADER_SIZE

UDP_SEGMENT = 103
UDP_GRO = 104
_TAGGED_ETHERNET = 18

MAX_TRAIN_BYTES = MAX_PACKET_SIZE - IPV6_HEADER_SIZE - UDP_HEADER_SIZE - _TAGGED_ETHERNET
"""65,469. The kernel accepts up to 65,507 (IPv4) or 65,527 (IPv6) bytes, but it splits a train whose frame exceeds
65,535 bytes before the device could carry it whole."""

MAX_SEGMENTS = 128
OLD_MAX_SEGMENTS = MAX_TRAIN_SEGMENTS
"""Linux before 6.9 accepts 64 segments per message. The bind detects this by the EINVAL for a longer train."""

_IP_MTU = 14
_IPV6_MTU = 24
_UDP_HEADERS = {
    socket.AF_INET: IPV4_HEADER_SIZE + UDP_HEADER_SIZE,
    socket.AF_INET6: IPV6_HEADER_SIZE + UDP_HEADER_SIZE,
}


def can_segment(sock: socket.socket) -> bool:
    """Whether the kernel supports UDP_SEGMENT. A device that does not support it is detected when sending (EIO)."""
    try:
        return sock.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT) >= 0
    except OSError:
        return False


def enable_gro(sock: socket.socket) -> bool:
    """Enable receiving trains whole. Return False if the option cannot be read back (before Linux 5.12)."""
    try:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        return sock.getsockopt(socket.IPPROTO_UDP, UDP_GRO) == 1
    except OSError:
        return False


def is_suspect(kernel_release: str) -> bool:
    """Whether a release (the text of `uname -r`) is in the range that sends damaged trains: 7.0 to 7.1.4.

    Distributions backport both the fault and its fix, so this is only a reason for caution. See
    `datapath.train_health`.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", kernel_release)
    if match is None:
        return False
    version = tuple(int(part or 0) for part in match.groups())
    return (7, 0, 0) <= version <= (7, 1, 4)


def split_train(view: memoryview, segment_size: int, max_segments: int, max_bytes: int) -> Iterator[memoryview]:
    """Split a train into trains within the limits, in order. Each has at least one datagram."""
    step = max(1, min(max_segments, max_bytes // segment_size)) * segment_size
    for start in range(0, len(view), step):
        yield view[start : start + step]


def set_mark(sock: socket.socket, mark: int) -> None:
    """Set SO_MARK as bytes, because the mark is unsigned and an int argument of setsockopt is signed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark.to_bytes(4, sys.byteorder))


def exceeds_path(family: socket.AddressFamily, sockaddr: SockAddr, mark: int, segment_size: int) -> bool:
    """Whether datagrams of this size exceed the route's MTU and need IP fragments. False if this is unknown."""
    level, option = (socket.IPPROTO_IP, _IP_MTU) if family == socket.AF_INET else (socket.IPPROTO_IPV6, _IPV6_MTU)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            if mark:
                set_mark(probe, mark)
            probe.connect(sockaddr)
            return segment_size + _UDP_HEADERS[family] > probe.getsockopt(level, option)
        except OSError:
            return False
