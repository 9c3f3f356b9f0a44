"""Cookie replies to an initiator."""

from __future__ import annotations

from fuzz.handshake import STRANGER, edited, give, pair, remember_diffie_hellman, state_of
from fuzz.reader import Reader
from tests.support.world import lose
from wyrmhole.protocol.constants import SECOND
from wyrmhole.wire import messages

remember_diffie_hellman()


def TestOneInput(data: bytes) -> None:
    """A cookie reply changes no state and gets no answer. The next attempt comes at its usual time, and carries mac2 if
    and only if the genuine reply arrived (M41, M42)."""
    reader = Reader(data)
    shape = reader.byte()
    a, b = pair()
    b.plane.queue_depth = 1 << 20
    a.world.filters.append(lose(2, 3))
    a.send(b, b"x")
    a.world.run(SECOND)
    genuine = a.world.sent(3, "b")[0].data
    assert len(genuine) == 64
    has_cookie = False
    for _ in range(1 + (shape & 3)):
        message = edited(reader, genuine, a)
        before, sent = state_of(a), len(a.world.wire)
        give(a, message, load=bool(shape & 4))
        assert state_of(a) == before and len(a.world.wire) == sent
        has_cookie = has_cookie or message == genuine
    assert STRANGER not in [peer.endpoint for peer in a.interface.peers]
    a.world.run(6 * SECOND)
    retry = a.world.sent(1, "a")[-1].data
    assert (messages.mac2_of(retry) != bytes(16)) == has_cookie
