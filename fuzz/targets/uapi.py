"""Complete conversations on the control socket, divided into pieces as by a client."""

from __future__ import annotations

from fuzz.reader import Reader
from wyrmhole.control.uapi.format import GetOperation, Operation, Refusal, SetOperation, UapiParser, emit_set
from wyrmhole.device.config import DeviceChange


def resolve_scope(name: str) -> int:
    if name != "lo":
        raise OSError(19, "no such device")
    return 1


def parse(pieces: list[bytes]) -> list[Operation]:
    parser = UapiParser(resolve_scope)
    operations = [operation for piece in pieces for operation in parser.feed(piece)]
    cut_off = parser.finish()
    return operations if cut_off is None else [*operations, cut_off]


def picture(operations: list[Operation]) -> list[object]:
    """Return the operations in a form that can be compared, because errors cannot."""
    return [
        (operation.error.errno_value, str(operation.error), operation.final)
        if isinstance(operation, Refusal)
        else operation.change
        if isinstance(operation, SetOperation)
        else "get"
        for operation in operations
    ]


def check_change(change: DeviceChange) -> None:
    assert change.listen_port is None or 0 <= change.listen_port < 1 << 16
    assert change.fwmark is None or 0 <= change.fwmark < 1 << 32
    for peer in change.peers:
        assert peer.persistent_keepalive is None or 0 <= peer.persistent_keepalive < 1 << 16
        for allowed in peer.allowed_ips:
            assert 0 <= allowed.prefix.length <= allowed.prefix.bits
            assert not allowed.prefix.network & ((1 << (allowed.prefix.bits - allowed.prefix.length)) - 1)


def TestOneInput(data: bytes) -> None:
    """The division into pieces does not change the outcome. An operation is a get, a set whose values are in range, or
    a refusal with one of three errnos; only the last refusal can be final. A set, written again, is the same set."""
    reader = Reader(data)
    cut = 1 + reader.byte()
    text = reader.rest()
    whole = parse([text])
    pieces = parse([text[at : at + cut] for at in range(0, len(text), cut)])
    assert picture(whole) == picture(pieces)
    for number, operation in enumerate(whole):
        if isinstance(operation, Refusal):
            assert operation.error.errno_name in ("EINVAL", "EPROTO", "EMSGSIZE")
            assert "\n" not in str(operation.error)
            assert not operation.final or number == len(whole) - 1
        elif isinstance(operation, SetOperation):
            check_change(operation.change)
            (again,) = parse([emit_set(operation.change)])
            assert isinstance(again, SetOperation) and again.change == operation.change
        else:
            assert isinstance(operation, GetOperation)
