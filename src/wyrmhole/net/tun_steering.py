"""Which queue of a TUN a packet goes to: a small eBPF program, so that a flow never changes queues.

Left alone, the kernel moves a flow to the queue on which its latest answer was written (`tun_flow_update`). All answers
of a peer come to the worker that has its socket, so each flow would move there with its first answer, and what still
waits in the former queue would be overtaken. With a steering program (TUNSETSTEERINGEBPF, Linux 4.16) the queue depends
on the packet alone: on addresses, protocol and, where they are in sight, ports. Fragments have no ports in sight, so
those of a flow go together, by its addresses.

The program runs on the IP packet, without a header of the link before it. A load beyond the packet's end makes it
return 0, which is the first queue. What it returns is taken modulo the number of queues, so every difference has to
show in its lowest bits. A multiplication carries one upwards only, and a source port is the upper half of its word: so
at the end the upper half is folded onto the lower, multiplied and folded again. Else flows of connect(2), which takes
even ports first, would all have one queue of two.

Offsets are from the start of the data, which is the packet that a worker reads; unlike those from the network header
(SKF_NET_OFF) they also find what a driver left in pages of a forwarded packet. See linux/bpf.h and, for the two old
load instructions, Linux Documentation/bpf/standardization/instruction-set.rst.
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
"""BPF_LD | BPF_ABS by bytes: r0 = what is in the packet, in the host's order. r6 has to be the packet."""
_LOAD_WORD_AT = 0x40
_MOVE, _MOVE_NUMBER = 0xBF, 0xB7
_XOR, _MULTIPLY_NUMBER, _AND_NUMBER, _SHIFT_LEFT, _SHIFT_RIGHT = 0xAC, 0x24, 0x54, 0x64, 0x74
_IF_EQUAL, _IF_NOT_EQUAL, _GO, _EXIT = 0x15, 0x55, 0x05, 0x95
_FACTOR = 0x9E37_79B1 - (1 << 32)
"""2**32 over the golden ratio: neighbours come to lie far apart in the upper half."""

_LOADED, _CONTEXT, _SUM, _PROTOCOL, _LENGTH = 0, 6, 7, 8, 9

_SOCKET_FILTER = 1

_Step = tuple[int, int, int, int, str | None]
"""Operation, destination, source, number; the label of a jump's target."""


def program() -> bytes:
    """The instructions, in the host's byte order."""
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
    """Attach the program to the interface behind a descriptor. Raises OSError: EPERM without rights to load programs,
    EINVAL or ENOSYS where the kernel or the architecture has none."""
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
    """What was loaded goes into the sum; the order of the parts matters to the result."""
    return [("", _step(_XOR, _SUM, _LOADED)), ("", _step(_MULTIPLY_NUMBER, _SUM, number=_FACTOR))]


def _folded() -> list[tuple[str, _Step]]:
    """The upper half of the sum, of which a copy was loaded, shows in the lower one too."""
    return [("", _step(_SHIFT_RIGHT, _LOADED, number=16)), ("", _step(_XOR, _SUM, _LOADED))]


def _mixed(size: int, offsets: Sequence[int]) -> list[tuple[str, _Step]]:
    return [step for offset in offsets for step in (("", _load(size, offset)), *_mix())]


def _assemble(steps: Sequence[tuple[str, _Step]]) -> bytes:
    labels = {label: at for at, (label, _) in enumerate(steps) if label}
    return b"".join(
        _INSTRUCTION.pack(operation, source << 4 | destination, labels[to] - at - 1 if to else 0, number)
        for at, (_, (operation, destination, source, number, to)) in enumerate(steps)
    )
