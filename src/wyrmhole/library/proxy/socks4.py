"""The server side of SOCKS4 and SOCKS4a, for old clients: parse a request. No sockets.

The protocol has no passwords, so a proxy with users refuses it. Source: the memos SOCKS.protocol and SOCKS4A.protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from wyrmhole.library.proxy.socks5 import SocksError, host_of_name

VERSION, CONNECT = 4, 1
GRANTED, REJECTED = 0x5A, 0x5B
LONGEST_USER, LONGEST_NAME = 255, 255


@dataclass(frozen=True, slots=True)
class Socks4Request:
    """A request. `host` is an IPv4 address or, in SOCKS4a, a name. `rest` are the bytes after the request."""

    host: str
    port: int
    rest: bytes


def parse(data: bytes) -> Socks4Request | None:
    """Parse a request. Return None while it is incomplete. Raises SocksError."""
    if len(data) < 8:
        return None
    if data[1] != CONNECT:
        raise SocksError(f"SOCKS4 command {data[1]} is not supported")
    port, address = int.from_bytes(data[2:4]), data[4:8]
    end = end_of(data, 8, LONGEST_USER, "SOCKS4 user")
    if end is None:
        return None
    if address[:3] != b"\0\0\0" or not address[3]:
        return Socks4Request(str(IPv4Address(address)), port, data[end + 1 :])
    name_end = end_of(data, end + 1, LONGEST_NAME, "SOCKS4a name")
    if name_end is None:
        return None
    return Socks4Request(host_of_name(data[end + 1 : name_end]), port, data[name_end + 1 :])


def end_of(data: bytes, start: int, longest: int, what: str) -> int | None:
    """Return the position of the terminating zero byte, or None while it is missing. Raises SocksError."""
    end = data.find(b"\0", start)
    if (len(data) if end < 0 else end) - start > longest:
        raise SocksError(f"the {what} is too long")
    return None if end < 0 else end


def reply(code: int) -> bytes:
    return bytes((0, code)) + bytes(6)
