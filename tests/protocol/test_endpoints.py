"""Messages that move a peer's endpoint, and messages that must not."""

from __future__ import annotations

from tests.support.world import (
    Flight,
    MakeWorld,
    connected,
)
from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire.messages import (
    MESSAGE_COOKIE_REPLY,
)


def test_the_endpoint_follows_authenticated_data(make_world: MakeWorld) -> None:
    """The endpoint is the last address that sent authenticated data (M44, L6)."""
    world = make_world()
    a, b = connected(world)
    a.endpoint = type(a.endpoint)("198.51.100.9", 7)
    a.send(b, b"moved")
    world.run(SECOND)
    b.send(a, b"follows")
    world.run(SECOND)
    assert a.received == [b"follows"]
    assert b.peer_of(a).endpoint == a.endpoint


def test_a_cookie_reply_does_not_move_the_endpoint(make_world: MakeWorld) -> None:
    """This holds even for a genuine cookie reply from another address (M42, I11)."""
    world = make_world()
    a, b = world.pair()
    b.plane.queue_depth = 1000
    moved = type(a.endpoint)("203.0.113.1", 1)

    def spoof(flight: Flight) -> list[Flight]:
        if flight.kind == MESSAGE_COOKIE_REPLY:
            return [Flight(flight.at, "eve", moved, flight.destination, flight.data)]
        return [flight]

    world.filters.append(spoof)
    a.send(b)
    world.run(SECOND)
    assert len(world.sent(MESSAGE_COOKIE_REPLY)) == 1
    assert a.peer_of(b).endpoint == b.endpoint
