"""Changes of keys, peers and the interface's state during live sessions."""

from __future__ import annotations

import pytest

from tests.support.world import (
    MS,
    Flight,
    MakeWorld,
    connected,
    lose,
)
from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.messages import (
    MESSAGE_INITIATION,
    MESSAGE_RESPONSE,
    MESSAGE_TRANSPORT,
)


def test_a_packet_right_before_up_starts_a_handshake(make_world: MakeWorld) -> None:
    """Found by fuzzing: the only request for a key was ignored, and the tunnel never came up. The report of the first
    packet can precede the report that the TUN is up, and the interface cannot go up while its port is in use."""
    world = make_world()
    a, b = world.pair()
    a.interface.down()
    a.send(b, b"early")
    a.interface.up(world.now)
    a.settle()
    world.run(SECOND)
    assert b.received == [b"early"]


def test_a_new_private_key_ends_old_sessions(make_world: MakeWorld) -> None:
    """Nothing is sent under the old sessions any more; the next packet starts a handshake (M52)."""
    world = make_world()
    a, b = connected(world)
    world.run(10 * SECOND)
    fresh = type(a.key)(b"\x11" * 32)
    b.interface.remove_peer(b.peer_of(a))
    a.interface.set_private_key(fresh, world.now)
    a.key = fresh
    b.know(a)
    before = len(world.wire)
    a.send(b, b"as another")
    assert world.wire[before].kind == MESSAGE_INITIATION
    world.run(SECOND)
    assert b.received[-1] == b"as another"


def test_our_own_public_key_is_never_a_peer(make_world: MakeWorld) -> None:
    """It cannot be added, and a peer with the public key of a new private key is removed (M51)."""
    world = make_world()
    a, b = world.pair()
    assert a.interface.add_peer(a.key.public_key()) is None
    a.interface.set_private_key(b.key, world.now)
    assert a.interface.peer(b.key.public_key()) is None


def test_without_a_private_key_nothing_is_sent(make_world: MakeWorld) -> None:
    """wireguard-go sends handshakes without a private key."""
    world = make_world()
    a, b = world.pair()
    a.interface.set_private_key(None, world.now)
    a.interface.set_persistent_keepalive(a.peer_of(b), 1, world.now)
    a.send(b)
    b.send(a)
    world.run(20 * SECOND)
    assert world.sent(MESSAGE_INITIATION, "a") == []
    assert a.plane.dropped["bad_mac1"] > 0


LOW_ORDER = [
    bytes(32),
    bytes((1,)) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("public", LOW_ORDER, ids=lambda raw: raw.hex()[:6])
def test_a_low_order_peer_key_gets_no_packet(make_world: MakeWorld, public: bytes) -> None:
    """The static-static secret is all zeros, so nothing is sent; boringtun and gotatun answer such keys (M16)."""
    from wyrmhole.protocol.keys import PublicKey

    world = make_world()
    a = world.node("a")
    peer = a.interface.add_peer(PublicKey(public))
    assert peer is not None
    a.interface.set_endpoint(peer, type(a.endpoint)("192.0.2.200", 1), world.now)
    a.interface.set_persistent_keepalive(peer, 1, world.now)
    a.settle()
    world.run(2 * SECOND)
    assert world.wire == []


@pytest.mark.parametrize("public", LOW_ORDER, ids=lambda raw: raw.hex()[:6])
def test_a_low_order_ephemeral_key_is_refused_in_both_roles(make_world: MakeWorld, public: bytes) -> None:
    """An all-zero shared secret aborts the handshake (M16)."""
    from wyrmhole.protocol.cookie import mac1_key
    from wyrmhole.protocol.primitives import mac

    world = make_world()
    a, b = world.pair()

    def weaken(flight: Flight) -> list[Flight]:
        if flight.kind not in (MESSAGE_INITIATION, MESSAGE_RESPONSE):
            return [flight]
        at = 8 if flight.kind == MESSAGE_INITIATION else 12
        receiver = b if flight.sender == "a" else a
        weak = bytearray(flight.data)
        weak[at : at + 32] = public
        weak[-32:-16] = mac(mac1_key(receiver.key.public_key()), bytes(weak[:-32]))
        return [Flight(flight.at, flight.sender, flight.source, flight.destination, bytes(weak))]

    world.filters.append(weaken)
    a.send(b)
    world.run(30 * SECOND)
    assert world.sent(MESSAGE_RESPONSE) == []
    world.filters.clear()
    world.filters.append(lambda flight: weaken(flight) if flight.kind == MESSAGE_RESPONSE else [flight])
    world.run(30 * SECOND)
    assert len(world.sent(MESSAGE_RESPONSE)) > 0
    assert world.sent(MESSAGE_TRANSPORT) == []


def test_a_removed_peer_leaves_nothing_behind(make_world: MakeWorld) -> None:
    """No index, timer or key is left, and a late message has no effect (L10, I14, I19)."""
    world = make_world()
    a, b = connected(world)
    late = world.sent(MESSAGE_TRANSPORT)[0]
    for node, other in ((a, b), (b, a)):
        node.interface.remove_peer(node.peer_of(other))
        node.settle()
        assert len(node.interface.exchange.indices) == 0
        assert node.interface.poll_timeout() is None
        assert node.plane.indices == {}
    world.carry(late, MS)
    world.run(SECOND)


def test_a_peer_has_at_most_three_keypairs_and_one_handshake(make_world: MakeWorld) -> None:
    """Keypairs move from next to current to previous (I14, I15)."""
    world = make_world()
    a, b = connected(world)
    world.filters.append(lose(MESSAGE_TRANSPORT))
    for _ in range(40):
        a.send(b)
        b.send(a)
        world.run(17 * SECOND)
        for node in (a, b):
            assert len(node.interface.exchange.indices) <= 4
            assert len(node.plane.indices) <= 3


def test_down_forgets_sessions_and_up_makes_new_ones(make_world: MakeWorld) -> None:
    world = make_world()
    a, b = connected(world)
    a.interface.down()
    a.settle()
    assert len(a.interface.exchange.indices) == 0
    assert a.interface.poll_timeout() is None
    a.interface.up(world.now)
    a.send(b, b"back")
    world.run(SECOND)
    assert b.received[-1] == b"back"


def test_a_packet_sent_while_down_is_delivered_after_up(make_world: MakeWorld) -> None:
    """The TUN can be up long before the sockets are open, and the engine requests the key only once."""
    world = make_world()
    a, b = connected(world)
    a.interface.down()
    a.settle()
    a.send(b, b"early")
    world.run(SECOND)
    assert b.received[-1:] != [b"early"]
    a.interface.up(world.now)
    world.run(SECOND)
    assert b.received[-1] == b"early"


def test_transfer_counters_include_handshakes_and_headers(make_world: MakeWorld) -> None:
    """The counters add up whole messages (I31)."""
    world = make_world()
    a, b = connected(world)
    a_sent = sum(len(flight.data) for flight in world.wire if flight.sender == "a")
    b_sent = sum(len(flight.data) for flight in world.wire if flight.sender == "b")
    counters = a.plane.counters(a.peer_of(b).id)
    assert (counters.tx_bytes, counters.rx_bytes) == (a_sent, b_sent)
    counters = b.plane.counters(b.peer_of(a).id)
    assert (counters.tx_bytes, counters.rx_bytes) == (b_sent, a_sent)
