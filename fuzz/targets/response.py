"""Responses to an initiator."""

from __future__ import annotations

from fuzz.handshake import STRANGER, edited, give, pair, remember_diffie_hellman, state_of
from fuzz.reader import Reader
from tests.support.world import lose
from wyrmhole.protocol.constants import SECOND

remember_diffie_hellman()


def TestOneInput(data: bytes) -> None:
    """Only the genuine message begins a session, and only once. Any other message changes nothing and gets no answer
    or, under load, a cookie reply of 64 bytes."""
    reader = Reader(data)
    shape = reader.byte()
    a, b = pair()
    a.world.filters.append(lose(2, 3))
    a.send(b, b"x")
    a.world.run(SECOND)
    genuine = a.world.sent(2, "b")[0].data
    completed = False
    for _ in range(1 + (shape & 3)):
        message = edited(reader, genuine, a)
        before, sent = state_of(a), len(a.world.wire)
        give(a, message, load=bool(shape & 4))
        replies = [flight for flight in a.world.wire[sent:] if flight.sender == "a"]
        if replies and replies[0].data[0] == 4:
            assert not completed, "a response was accepted twice"
            # Only mac1 covers the sender's index.
            assert message[:4] == genuine[:4] and message[8:60] == genuine[8:60] and not shape & 4
            completed = True
            continue
        assert state_of(a) == before
        assert [len(flight.data) for flight in replies] in ([], [64] if shape & 4 else [])
        assert all(flight.destination == STRANGER for flight in replies)
