"""Classification and the layouts of the four messages."""

from __future__ import annotations

from wyrmhole.wire import messages
from wyrmhole.wire.messages import CookieReply, Initiation, MessageError, Response

_SIZES = {1: 148, 2: 92, 3: 64}
_PARSERS: dict[int, type[Initiation | Response | CookieReply]] = {1: Initiation, 2: Response, 3: CookieReply}


def expected_kind(data: bytes) -> int | None:
    """Return the type by the whitepaper: a 32-bit word, exact sizes, and at least 32 bytes of transport data."""
    kind = int.from_bytes(data[:4], "little") if len(data) >= 4 else 0
    is_message = len(data) >= 32 if kind == 4 else _SIZES.get(kind) == len(data)
    return kind if is_message else None


def TestOneInput(data: bytes) -> None:
    """`classify` agrees with `expected_kind`. A message that parses emits the same bytes; others raise MessageError."""
    expected = expected_kind(data)
    try:
        kind: int | None = messages.classify(data)
    except MessageError:
        kind = None
    assert kind == expected, (kind, expected)
    for number, parser in _PARSERS.items():
        try:
            message = parser.parse(data)
        except MessageError:
            assert number != expected
        else:
            assert number == expected
            assert message.emit() == data
