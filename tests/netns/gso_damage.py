"""A link that loses what leaves as a GSO batch and lets single datagrams pass: a BPF program on its egress.

The program reads `gso_segs` of the packet (struct __sk_buff in linux/bpf.h, Linux 5.1).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute

from tests.netns.host import Host
from wyrmhole.system import libc

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


@contextmanager
def loses_batches(host: Host, link: str) -> Iterator[None]:
    """Within, the host's link does so."""
    program = libc.load_bpf(_SCHED_CLS, _program(), b"GPL", b"gso_damage")
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
