"""Promises of `engine/contract.py` that no other file in this folder tests on both engines."""

from __future__ import annotations

import os
import select

from tests.support.edges import ListBind
from tests.support.packets import ipv4
from tests.support.sides import A_INNER, A_OUTER, B_INNER, Side, connected, handshake_message, sides
from wyrmhole.net.bind import SendOutcome
from wyrmhole.protocol.data_plane import HandshakeDatagram, KeyWanted
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import SockAddr

PACKET = ipv4(A_INNER, B_INNER)


class OtherBind(ListBind):
    """A second bind that records the datagrams it sends."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        super().__init__(self._keep)

    def _keep(self, sockaddr: SockAddr, data: bytes, source: bytes | None, tos: int) -> None:
        self.sent.append(data)


def is_readable(side: Side) -> bool:
    poll = select.poll()
    poll.register(side.engine.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_sessions_survive_a_new_bind() -> None:
    a, b = connected()
    other = OtherBind()
    a.engine.attach_bind(other, 2)
    a.tunnel(PACKET)
    assert a.take() == []
    assert len(other.sent) == 1
    b.network(other.sent[0], A_OUTER)
    assert b.delivered == [PACKET]


def test_a_detached_bind_is_not_used() -> None:
    a, _ = connected()
    a.take()
    a.engine.detach_bind()
    a.bind.arrive(bytes(40), A_OUTER.sockaddr)
    a.tunnel(PACKET)
    a.engine.send_keepalive(1)
    a.engine.send_to_peer(1, b"handshake")
    a.engine.send_to(A_OUTER, None, b"cookie reply")
    a.engine.turn()
    assert a.take() == []
    assert len(a.bind.incoming) == 1
    assert set(a.drops()) == {DropReason.SEND_FAILED}


def test_the_descriptor_is_readable_while_reports_are_queued() -> None:
    a, _ = sides()
    a.engine.poll_reports()
    assert not is_readable(a)
    a.network(handshake_message(), A_OUTER)
    a.tunnel(PACKET)
    assert is_readable(a)
    assert a.engine.poll_reports(1) == [KeyWanted(1)]
    assert is_readable(a), "one report is still queued"
    (left,) = a.engine.poll_reports(1)
    assert isinstance(left, HandshakeDatagram)
    a.engine.poll_reports()
    assert not is_readable(a)


def test_close_leaves_the_tun_and_the_bind_open() -> None:
    a, _ = connected()
    a.engine.close()
    for fileno in (a.tun.fileno(), *a.bind.filenos()):
        os.fstat(fileno)
    assert a.bind.send(b"x", 0, A_OUTER.sockaddr, None) == SendOutcome.SENT


def test_a_new_mtu_applies_to_the_next_packet() -> None:
    a, _ = connected()
    a.take()
    a.engine.set_mtu(len(PACKET) + 1)
    a.tunnel(PACKET)
    assert len(a.take()[0]) == 32 + len(PACKET) + 1
