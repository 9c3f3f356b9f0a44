"""A link that loses what leaves as a GSO batch and lets single datagrams pass: a BPF program on its egress.

The program reads `gso_segs` of the packet (struct __sk_buff in linux/bpf.h, Linux 5.1).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from tests.netns.host import Host
from wyrmhole.net import tun_steering

_SCHED_CLS = 3
_GSO_SEGS = 164
_EGRESS = "ffff:fff3"
_TC_OK, _TC_SHOT = 0, 2


def _program() -> bytes:
    """Drop what has more than one segment."""
    step = struct.Struct("=BBhi").pack
    return (
        step(0x61, 1 << 4 | 2, _GSO_SEGS, 0)  # r2 = gso_segs
        + step(0xB7, 0, 0, _TC_OK)  # r0 = pass
        + step(0xB5, 2, 1, 1)  # if r2 <= 1: skip one
        + step(0xB7, 0, 0, _TC_SHOT)  # r0 = drop
        + step(0x95, 0, 0, 0)
    )


def _load() -> int:
    code, licence = ctypes.create_string_buffer(_program()), ctypes.create_string_buffer(b"GPL")
    places = ctypes.addressof(code), ctypes.addressof(licence)
    attributes = ctypes.create_string_buffer(
        tun_steering._ATTRIBUTES.pack(_SCHED_CLS, len(_program()) // 8, *places, 0, 0, 0, 0, 0, b"gso_damage")
    )
    number = tun_steering._SYSCALL_BPF[os.uname().machine]
    loaded: int = ctypes.CDLL(None, use_errno=True).syscall(number, 5, attributes, tun_steering._ATTRIBUTES.size)
    if loaded < 0:
        raise OSError(ctypes.get_errno(), "the program was refused")
    return loaded


@contextmanager
def loses_batches(host: Host, link: str) -> Iterator[None]:
    """Within, the host's link does so."""
    program = _load()
    try:
        with host.entered(), IPRoute() as route:
            index = route.link_lookup(ifname=link)[0]
            route.tc("add", "clsact", index)
            route.tc(
                "add-filter", "bpf", index, ":1", fd=program, name="gso_damage", parent=_EGRESS, classid=1,
                direct_action=True,
            )  # fmt: skip
        yield
        with host.entered(), IPRoute() as route:
            route.tc("del", "clsact", index)
    finally:
        os.close(program)
