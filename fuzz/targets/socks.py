"""Bytes of a SOCKS5 client: its greeting, password and request in pieces, and the header of a UDP packet."""

from __future__ import annotations

import ipaddress

from fuzz.reader import Reader
from wyrmhole.library.proxy import socks4
from wyrmhole.library.proxy.socks5 import Negotiation, SocksError, build_packet, parse_packet

USERS = {"user": "password"}
LONGEST_HEADER = 4 + 1 + 255 + 2
"""The size of the header of a UDP packet with the longest name."""
LONGEST_WAIT = 513
"""The most bytes that may be incomplete: a user and a password of 255 bytes each, their lengths and the version."""


def negotiate(pieces: list[bytes], users: dict[str, str] | None) -> tuple[Negotiation, bytes]:
    server, sent, given = Negotiation(users), b"", 0
    for piece in pieces:
        if server.finished:
            break
        sent += server.receive(piece)
        given += len(piece)
        assert server.finished or len(server.rest) < LONGEST_WAIT
        assert len(server.rest) <= given
    return server, sent


def TestOneInput(data: bytes) -> None:
    """The division into pieces does not change the outcome. A negotiation ends with a request or a failure of one line,
    or waits for more bytes. Without the password there is no request. A parsed packet, built again, parses the same."""
    reader = Reader(data)
    cut, users = 1 + reader.byte() % 64, USERS if reader.byte() & 1 else None
    stream = reader.rest()
    whole, answer = negotiate([stream], users)
    pieces, same = negotiate([stream[at : at + cut] for at in range(0, len(stream), cut)], users)
    assert (whole.request, whole.failure, answer) == (pieces.request, pieces.failure, same)
    check_outcome(whole, stream, users)
    check_packet(stream)
    check_socks4(stream)


def check_socks4(stream: bytes) -> None:
    """Check that SOCKS4 input is a request, is refused, or waits for at most the longest request."""
    data = bytes((socks4.VERSION,)) + stream
    try:
        request = socks4.parse(data)
    except SocksError as error:
        assert "\n" not in str(error)
        return
    if request is None:
        assert len(data) <= 8 + socks4.LONGEST_USER + 1 + socks4.LONGEST_NAME
        return
    assert request.host.isprintable() and 0 <= request.port < 1 << 16 and data.endswith(request.rest)


def check_outcome(server: Negotiation, stream: bytes, users: dict[str, str] | None) -> None:
    assert server.request is None or server.failure is None
    if server.failure is not None:
        assert server.failure and "\n" not in server.failure
    if server.request is not None:
        assert 0 <= server.request.port < 1 << 16
        assert server.request.host and server.request.host.isprintable()
        assert stream.endswith(server.rest)
        assert users is None or b"\4user\10password" in stream


def check_packet(data: bytes) -> None:
    try:
        host, port, payload = parse_packet(data)
    except SocksError:
        return
    assert data.endswith(payload) and len(data) - len(payload) <= LONGEST_HEADER
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    assert parse_packet(build_packet(host, port, payload)) == (host, port, payload)
