"""A link that drops GSO batches and forwards single datagrams, by a BPF program on its egress.

The program reads the packet's `gso_segs` (struct __sk_buff in linux/bpf.h, Linux 5.1).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

from tests.netns.host import Host
from wyrmhole.net import netlink
from wyrmhole.system import libc

_SCHED_CLS = 3
_GSO_SEGS = 164
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_NEWTFILTER, _NEW = 36, 37, 44, 0x600
_TC_MESSAGE = struct.Struct("=BxxxiIII")
_CLSACT_HANDLE, _CLSACT, _EGRESS = 0xFFFF_0000, 0xFFFF_FFF1, 0xFFFF_FFF3
_ALL_PROTOCOLS = 1 << 16 | socket.htons(3)
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_FD, _TCA_BPF_FLAGS, _DIRECT_ACTION = 1, 2, 6, 8, 1
_TC_OK, _TC_SHOT = 0, 2


def _program() -> bytes:
    """Return a program that drops packets with more than one segment."""
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
    """Let the host's link drop GSO batches."""
    program = libc.load_bpf(_SCHED_CLS, _program(), b"GPL", b"gso_damage")
    try:
        with host.entered():
            entered = netlink.Client()
        with closing(entered) as client:
            index = client.link(link, None).interface
            qdisc = _TC_MESSAGE.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + _kind(b"clsact")
            options = netlink.emit_attribute(_TCA_BPF_FD, struct.pack("=I", program))
            options += netlink.emit_attribute(_TCA_BPF_FLAGS, struct.pack("=I", _DIRECT_ACTION))
            every_packet = _TC_MESSAGE.pack(0, index, 0, _EGRESS, _ALL_PROTOCOLS) + _kind(b"bpf")
            client.change(_RTM_NEWQDISC, _NEW, qdisc)
            client.change(_RTM_NEWTFILTER, _NEW, every_packet + netlink.emit_attribute(_TCA_OPTIONS, options))
            yield
            client.change(_RTM_DELQDISC, 0, qdisc)
    finally:
        os.close(program)


def _kind(name: bytes) -> bytes:
    return netlink.emit_attribute(_TCA_KIND, name + b"\0")
