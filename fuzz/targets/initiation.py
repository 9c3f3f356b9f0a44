"""Initiations to a responder."""

from __future__ import annotations

from fuzz.handshake import STRANGER, edited, give, pair, remember_diffie_hellman, state_of
from fuzz.reader import Reader
from wyrmhole.wire import messages

remember_diffie_hellman()


def TestOneInput(data: bytes) -> None:
    """Only the genuine message is answered by a response and moves the endpoint, and only once. A message that differs
    in an authenticated byte changes nothing (I11, I12) and gets no answer or, under load, a cookie reply of 64 bytes
    (I13)."""
    reader = Reader(data)
    shape = reader.byte()
    a, b = pair()
    a.send(b, b"x")
    (genuine,) = (flight.data for flight in a.world.sent(1, "a"))
    for _ in range(1 + (shape & 1)):
        message = edited(reader, genuine, b)
        before, sent = state_of(b), len(b.world.wire)
        give(b, message, load=bool(shape & 2))
        replies = [flight for flight in b.world.wire[sent:] if flight.sender == "b"]
        assert all(flight.destination == STRANGER for flight in replies)
        check(before, state_of(b), message, genuine, [flight.data for flight in replies], load=bool(shape & 2))


def check(before: object, after: object, message: bytes, genuine: bytes, replies: list[bytes], *, load: bool) -> None:
    if load:
        assert before == after
        assert [len(reply) for reply in replies] in ([], [64])
        return
    # The initiation does not authenticate the sender's index, which becomes the receiver index of the response.
    same = message[8:116] == genuine[8:116] and message[:4] == genuine[:4]
    if replies:
        assert same and [messages.classify(reply) for reply in replies] == [2]
        assert replies[0][8:12] == message[4:8]
    else:
        assert before == after
