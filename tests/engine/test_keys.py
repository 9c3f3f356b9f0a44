"""Keypairs in the engine: which one sends, which ones receive, when they expire, and which side requests the next."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from tests.support.packets import ipv4, udp, uso
from tests.support.sides import (
    A_INNER,
    A_OUTER,
    B_INNER,
    B_OUTER,
    carry,
    connected,
    params,
    sides,
)
from wyrmhole.protocol.constants import (
    SECOND,
)
from wyrmhole.protocol.data_plane import (
    KeyConfirmed,
    KeypairsDropped,
    KeyWanted,
)
from wyrmhole.protocol.drops import DropReason


def test_the_responder_sends_nothing_before_the_initiator() -> None:
    """The initiator's first packet confirms the key; until then the responder's packets stay staged (M18, I8)."""
    a, b = sides()
    b.tunnel(ipv4(B_INNER, A_INNER, b"early"))
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    b.tunnel(ipv4(B_INNER, A_INNER, b"still early"))
    assert b.take() == []
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    carry(a, b)
    assert KeyConfirmed(1, 20) in b.reports()
    for datagram in b.take():
        a.network(datagram, B_OUTER)
    assert a.delivered == [ipv4(B_INNER, A_INNER, b"early"), ipv4(B_INNER, A_INNER, b"still early")]


def test_an_initiator_without_data_confirms_with_a_keepalive() -> None:
    """The initiator sends first, without delay (M19)."""
    a, _ = sides()
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    assert [len(data) for data in a.take()] == [32]


def test_reordering_across_a_rekey_loses_nothing() -> None:
    """The previous, the current and the next keypair all decrypt (M36, I15)."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"old"))
    old = a.take()
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    a.engine.install_keypair(1, params(11, 21, initiator=True))
    a.tunnel(ipv4(A_INNER, B_INNER, b"new"))
    new = a.take()
    for datagram in [*new, *old]:
        b.network(datagram, A_OUTER)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"new"), ipv4(A_INNER, B_INNER, b"old")]
    a.engine.install_keypair(1, params(12, 22, initiator=True))
    assert KeypairsDropped(1, (10,)) in a.reports()


def test_a_keypair_expires_for_sending_and_receiving() -> None:
    """A keypair of age Reject-After-Time neither encrypts nor decrypts (M29)."""
    a, b = connected()
    a.tunnel(ipv4(A_INNER, B_INNER, b"one"))
    a.now += 178 * SECOND
    a.tunnel(ipv4(A_INNER, B_INNER, b"two"))
    a.now += SECOND
    a.tunnel(ipv4(A_INNER, B_INNER, b"three"))
    one, two = a.take()
    b.now += 180 * SECOND - 1
    b.network(two, A_OUTER)
    b.now += 1
    b.network(one, A_OUTER)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"two")]
    assert b.drops() == {DropReason.KEY_EXPIRED: 1}


def test_the_message_limit_applies_to_sending() -> None:
    """The last counter is used once, the remaining packets are staged, and a rekey is requested (M25, M26)."""
    a, b = sides()
    limited = replace(params(10, 20, initiator=True), rekey_after_messages=3, reject_after_messages=5)
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, limited)
    packets = [ipv4(A_INNER, B_INNER, b"%d" % number) for number in range(6)]
    for packet in packets:
        a.tunnel(packet)
    datagrams = a.take()
    assert [struct.unpack_from("<Q", data, 8)[0] for data in datagrams] == [0, 1, 2, 3, 4]
    assert [report for report in a.reports() if isinstance(report, KeyWanted)] == [KeyWanted(1, 10), KeyWanted(1)]
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    a.engine.install_keypair(1, params(11, 21, initiator=True))
    for datagram in [*datagrams, *a.take()]:
        b.network(datagram, A_OUTER)
    assert b.delivered[-2:] == packets[-2:]


def test_the_message_limit_applies_to_super_packets() -> None:
    """The part of a batch beyond the limit is staged, in order (M25)."""
    a, b = sides()
    a.engine.install_keypair(1, replace(params(10, 20, initiator=True), reject_after_messages=3))
    a.take()
    a.tun.inject(uso(udp(A_INNER, B_INNER, (1, 2), b"0123"), 1))
    a.engine.turn()
    assert len(a.take()) == 2
    b.engine.install_keypair(1, params(21, 11, initiator=False))
    a.engine.install_keypair(1, params(11, 21, initiator=True))
    carry(a, b)
    assert [packet[28:] for packet in b.delivered] == [b"2", b"3"]


def test_the_message_limit_applies_to_receiving() -> None:
    """No counter at or beyond Reject-After-Messages is accepted (M25)."""
    a, b = sides()
    b.engine.install_keypair(1, replace(params(20, 10, initiator=False), reject_after_messages=2))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    for number in range(3):
        a.tunnel(ipv4(A_INNER, B_INNER, b"%d" % number))
    carry(a, b)
    assert b.delivered == [ipv4(A_INNER, B_INNER, b"0")]
    assert b.drops() == {DropReason.MESSAGE_LIMIT: 2}


def test_expired_sending_keys_still_receive() -> None:
    """A key that must not encrypt any more still decrypts packets that are in flight (M52)."""
    a, b = connected()
    b.engine.expire_sending_keys(1)
    a.tunnel(ipv4(A_INNER, B_INNER))
    carry(a, b)
    assert len(b.delivered) == 1
    b.tunnel(ipv4(B_INNER, A_INNER))
    assert b.take() == []
    assert KeyWanted(1) in b.reports()


def test_only_the_initiator_requests_a_rekey_once_per_key() -> None:
    """Both sending and receiving can trigger the request (M27, M28)."""
    a, b = connected()
    for side, inner in ((a, (A_INNER, B_INNER)), (b, (B_INNER, A_INNER))):
        side.now += 121 * SECOND
        side.tunnel(ipv4(*inner))
        side.tunnel(ipv4(*inner))
    assert a.reports().count(KeyWanted(1, renews=10)) == 1
    assert not any(isinstance(report, KeyWanted) for report in b.reports())


def test_sent_keepalives_request_a_rekey_like_data() -> None:
    """Only the initiator requests it, once per key (M27)."""
    a, b = connected()
    for side in (a, b):
        side.engine.send_keepalive(1)
        side.now += 120 * SECOND
        side.engine.send_keepalive(1)
        side.engine.send_keepalive(1)
    assert a.reports() == [KeyWanted(1, renews=10)]
    assert b.reports() == []


def test_sent_keepalives_count_as_messages() -> None:
    """The message limit counts keepalives too (M26)."""
    a, _ = sides()
    a.engine.install_keypair(1, replace(params(10, 20, initiator=True), rekey_after_messages=3))
    for _ in range(2):
        a.engine.send_keepalive(1)
    assert a.reports() == []
    a.engine.send_keepalive(1)
    assert a.reports() == [KeyWanted(1, renews=10)]


@pytest.mark.parametrize("train", [1, 2])
def test_received_keepalives_request_a_rekey_near_the_end(train: int) -> None:
    """Only the initiator requests it, once (M28)."""
    a, b = connected()
    a.now += 165 * SECOND
    for _ in range(3 * train):
        b.engine.send_keepalive(1)
    datagrams = b.take()
    for at in range(0, len(datagrams), train):
        a.network(b"".join(datagrams[at : at + train]), B_OUTER, segment=32 if train > 1 else 0)
    assert a.reports() == [KeyWanted(1, renews=10)]


@pytest.mark.parametrize("inner", [b"data", b""])
def test_a_late_message_of_the_old_session_requests_no_rekey(inner: bytes) -> None:
    """Only the age of the current session matters (M28)."""
    a, b = connected()
    if inner:
        b.tunnel(ipv4(B_INNER, A_INNER, inner))
    else:
        b.engine.send_keepalive(1)
    (late,) = b.take()
    a.now += 166 * SECOND
    a.engine.install_keypair(1, params(11, 21, initiator=True, birth=a.now))
    a.reports()
    a.network(late, B_OUTER)
    assert not any(isinstance(report, KeyWanted) for report in a.reports())
