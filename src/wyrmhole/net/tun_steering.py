"""Choose the TUN queue of a packet with a small eBPF program, so that a flow never changes queues.

By default, the kernel moves a flow to the queue on which its latest answer was written (`tun_flow_update`). All answers
of a peer are written by the worker that has its socket, so each flow would move to that queue with its first answer,
and overtake its packets in the former queue. With a steering program (TUNSETSTEERINGEBPF, Linux 4.16) the queue depends
only on the packet: on addresses, protocol and, if present, ports. Fragments are steered by addresses and protocol, so
all fragments of a flow share a queue.

The program runs on the IP packet, without a link header. A load beyond the packet's end makes it return 0, the first
queue. The result is reduced modulo the number of queues, so every difference must affect its lowest bits. A
multiplication propagates differences only upwards, and the source port is in the upper half of its word. Therefore the
upper half is finally folded onto the lower, multiplied and folded again. Otherwise all flows of connect(2), which
prefers even ports, would use one queue of two.

Offsets count from the start of the data, which is the packet that a worker reads. Unlike offsets from the network
header (SKF_NET_OFF), they also reach data that a driver left in pages of a forwarded packet. See linux/bpf.h and, for
the two legacy load instructions, Linux Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from wyrmhole.net import tun_ioctl
from wyrmhole.system import libc
from wyrmhole.wire.ip import IPV6_HEADER_SIZE, PROTOCOL_TCP, PROTOCOL_UDP

_INSTRUCTION = struct.Struct("=BBhi")
_LOAD = {1: 0x30, 2: 0x28, 4: 0x20}
"""BPF_LD | BPF_ABS by size in bytes: load r0 from the packet, in host byte order. r6 must refer to the packet."""
_LOAD_WORD_AT = 0x40
_MOVE, _MOVE_NUMBER = 0xBF, 0xB7
_XOR, _MULTIPLY_NUMBER, _AND_NUMBER, _SHIFT_LEFT, _SHIFT_RIGHT = 0xAC, 0x24, 0x54, 0x64, 0x74
_IF_EQUAL, _IF_NOT_EQUAL, _GO, _EXIT = 0x15, 0x55, 0x05, 0x95
_FACTOR = 0x9E37_79B1 - (1 << 32)
"""2**32 divided by the golden ratio, which spreads neighbouring values far apart in the upper half."""

_LOADED, _CONTEXT, _SUM, _PROTOCOL, _LENGTH = 0, 6, 7, 8, 9

_SOCKET_FILTER = 1

_Step = tuple[int, int, int, int, str | None]
"""Operation, destination, source, number, and the label of a jump's target."""


def program() -> bytes:
    """Return the instructions in host byte order."""
    return _assemble(
        [
            ("", _step(_MOVE, _CONTEXT, 1)),
            ("", _step(_MOVE_NUMBER, _SUM)),
            ("", _load(1, 0)),
            ("", _step(_SHIFT_RIGHT, _LOADED, number=4)),
            ("", _step(_IF_EQUAL, _LOADED, number=6, to="version 6")),
            ("", _step(_IF_NOT_EQUAL, _LOADED, number=4, to="end")),
            *_mixed(4, (12, 16)),
            *_mixed(1, (9,)),
            ("", _step(_MOVE, _PROTOCOL, _LOADED)),
            ("", _load(2, 6)),
            ("", _step(_AND_NUMBER, _LOADED, number=0x3FFF)),
            ("", _step(_IF_NOT_EQUAL, _LOADED, number=0, to="end")),
            ("", _load(1, 0)),
            ("", _step(_AND_NUMBER, _LOADED, number=0x0F)),
            ("", _step(_SHIFT_LEFT, _LOADED, number=2)),
            ("", _step(_MOVE, _LENGTH, _LOADED)),
            ("", _step(_GO, to="ports")),
            ("version 6", _step(_MOVE_NUMBER, _LENGTH, number=IPV6_HEADER_SIZE)),
            *_mixed(4, range(8, 40, 4)),
            *_mixed(1, (6,)),
            ("", _step(_MOVE, _PROTOCOL, _LOADED)),
            ("ports", _step(_IF_EQUAL, _PROTOCOL, number=PROTOCOL_TCP, to="mix ports")),
            ("", _step(_IF_NOT_EQUAL, _PROTOCOL, number=PROTOCOL_UDP, to="end")),
            ("mix ports", (_LOAD_WORD_AT, 0, _LENGTH, 0, None)),
            *_mix(),
            ("end", _step(_MOVE, _LOADED, _SUM)),
            *_folded(),
            ("", _step(_MULTIPLY_NUMBER, _SUM, number=_FACTOR)),
            ("", _step(_MOVE, _LOADED, _SUM)),
            *_folded(),
            ("", _step(_MOVE, _LOADED, _SUM)),
            ("", _step(_EXIT)),
        ]
    )


def steer(tun: int) -> None:
    """Attach the program to the interface of a descriptor.

    Raises OSError: EPERM without the privilege to load programs, EINVAL or ENOSYS if the kernel does not support them.
    """
    loaded = libc.load_bpf(_SOCKET_FILTER, program(), b"MIT", b"wyrmhole_steer")
    try:
        tun_ioctl.set_steering(tun, loaded)
    finally:
        os.close(loaded)


def _step(operation: int, destination: int = 0, source: int = 0, *, number: int = 0, to: str | None = None) -> _Step:
    return operation, destination, source, number, to


def _load(size: int, offset: int) -> _Step:
    return _step(_LOAD[size], number=offset)


def _mix() -> list[tuple[str, _Step]]:
    """Mix the loaded value into the sum. The result depends on the order of the values."""
    return [("", _step(_XOR, _SUM, _LOADED)), ("", _step(_MULTIPLY_NUMBER, _SUM, number=_FACTOR))]


def _folded() -> list[tuple[str, _Step]]:
    """Fold the upper half of the sum, a copy of which is loaded, onto the lower half."""
    return [("", _step(_SHIFT_RIGHT, _LOADED, number=16)), ("", _step(_XOR, _SUM, _LOADED))]


def _mixed(size: int, offsets: Sequence[int]) -> list[tuple[str, _Step]]:
    return [step for offset in offsets for step in (("", _load(size, offset)), *_mix())]


def _assemble(steps: Sequence[tuple[str, _Step]]) -> bytes:
    labels = {label: at for at, (label, _) in enumerate(steps) if label}
    return b"".join(
        _INSTRUCTION.pack(operation, source << 4 | destination, labels[to] - at - 1 if to else 0, number)
        for at, (_, (operation, destination, source, number, to)) in enumerate(steps)
    )
