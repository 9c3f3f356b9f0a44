"""An interface under load: cookies, and the end of load."""

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


def test_under_load_an_initiation_with_the_cookie_is_answered(make_world: MakeWorld) -> None:
    """The second attempt is not sent early. mac2 is zero in the first and valid in the second (M38, M41, M43)."""
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


def test_a_cookie_is_refused_from_another_port(make_world: MakeWorld) -> None:
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


def test_load_ends_one_second_after_the_queue_drained(make_world: MakeWorld) -> None:
    """Afterwards, no cookie is required (I23, L8)."""
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
