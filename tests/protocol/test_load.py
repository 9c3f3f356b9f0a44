"""An interface under load: cookies, and when load ends."""

from __future__ import annotations

from tests.support.world import (
    MS,
    MakeWorld,
)
from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.messages import (
    MESSAGE_COOKIE_REPLY,
    MESSAGE_INITIATION,
    MESSAGE_RESPONSE,
)


def test_under_load_the_second_attempt_carries_the_cookie_and_is_served(make_world: MakeWorld) -> None:
    """No immediate resend; mac2 is zeros first and right afterwards (M38, M41, M43)."""
    world = make_world()
    a, b = world.pair()
    b.plane.queue_depth = 1000
    a.send(b)
    world.run(4 * SECOND)
    first = world.sent(MESSAGE_INITIATION)
    assert len(first) == 1
    assert first[0].data[-16:] == bytes(16)
    assert world.sent(MESSAGE_RESPONSE) == []
    world.run(2 * SECOND)
    second = world.sent(MESSAGE_INITIATION)[1]
    assert second.data[-16:] != bytes(16)
    assert b.received == [b"data"]


def test_a_cookie_of_one_port_is_refused_on_another(make_world: MakeWorld) -> None:
    """boringtun and gotatun bind the cookie to the address alone (M39)."""
    world = make_world()
    a, b = world.pair()
    b.plane.queue_depth = 1000
    a.send(b)
    world.run(4 * SECOND)
    a.endpoint = type(a.endpoint)(a.endpoint.host, 4444)
    world.run(3 * SECOND)
    assert len(world.sent(MESSAGE_INITIATION)) == 2
    assert world.sent(MESSAGE_RESPONSE) == []


def test_load_ends_a_second_after_the_queue_drained(make_world: MakeWorld) -> None:
    """One second after the queue drained, no cookie is asked for (I23, L8)."""
    world = make_world()
    a, b = world.pair()
    c = world.node("c")
    c.know(b)
    b.know(c)
    b.plane.queue_depth = 128
    c.send(b)
    world.run(100 * MS)
    b.plane.queue_depth = 0
    world.run(500 * MS)
    a.send(b)
    world.run(SECOND)
    assert len(world.sent(MESSAGE_COOKIE_REPLY)) == 2
    world.run(10 * SECOND)
    assert len(world.sent(MESSAGE_COOKIE_REPLY)) == 2
    assert set(b.received) == {b"data"}
