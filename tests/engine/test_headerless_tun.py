"""A TUN opened without virtio headers: both engines read and write one packet per call."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.packets import ipv4
from tests.support.scripted import StubLink
from tests.support.sides import A_INNER, A_OUTER, B_INNER, Side, carry, connected
from wyrmhole.net.linux_tun import _HeaderlessTun
from wyrmhole.net.tun import TunOffloads


class QuietLink(StubLink):
    name = "stub0"

    def fileno(self) -> int:
        return -1

    def suspect_end(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, _HeaderlessTun]]:
    """Yield the kernel's end and the TUN."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    kernel.setblocking(False)
    ours.setblocking(False)
    link = QuietLink()
    tun = _HeaderlessTun(ours.detach(), TunOffloads(tso=False, uso=False), link=link)  # type: ignore[arg-type]
    yield kernel, tun
    kernel.close()
    tun.close()


def attach(side: Side, tun: _HeaderlessTun) -> None:
    side.engine.attach_tun(tun)


def test_packets_are_read_without_a_header(ends: tuple[socket.socket, _HeaderlessTun]) -> None:
    kernel, tun = ends
    a, b = connected()
    attach(a, tun)
    packets = [ipv4(A_INNER, B_INNER, bytes([number]) * 50) for number in range(5)]
    for packet in packets:
        kernel.send(packet)
    for _ in packets:
        a.engine.turn()
    carry(a, b)
    assert b.delivered == packets


def test_packets_are_written_singly_and_without_a_header(ends: tuple[socket.socket, _HeaderlessTun]) -> None:
    kernel, tun = ends
    a, b = connected()
    attach(b, tun)
    packets = [ipv4(A_INNER, B_INNER, bytes([number]) * 50, protocol=17) for number in range(5)]
    a.tunnel(*packets)
    size = len(packets[0]) + -len(packets[0]) % 16 + 32
    b.network(b"".join(a.take()), A_OUTER, segment=size)
    assert [kernel.recv(2000) for _ in packets] == packets
