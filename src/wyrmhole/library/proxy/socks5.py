"""The server side of SOCKS5 (RFC 1928) with passwords (RFC 1929): bytes in, bytes out, no sockets.

server = Negotiation(users={"name": "password"})
send(server.receive(data))          # repeat until .request or .failure is set
send(reply(SocksReply.SUCCEEDED, "10.0.0.1", 4711))
"""

from __future__ import annotations

import enum
import errno
import hmac
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION, AUTH_VERSION = 5, 1
NO_AUTHENTICATION, USER_PASSWORD, NONE_ACCEPTABLE = 0, 2, 0xFF
IPV4, DOMAIN, IPV6 = 1, 3, 4


class Command(enum.IntEnum):
    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class SocksReply(enum.IntEnum):
    """The reply codes of RFC 1928, 6."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class SocksError(ValueError):
    """Invalid SOCKS5, or an unsupported request. `reply` is the code to answer with, if any."""

    def __init__(self, message: str, reply: SocksReply | None = None) -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Socks5Request:
    """A request. `host` is a literal or a name."""

    command: Command
    host: str
    port: int


@dataclass
class Negotiation:
    """The negotiation with a client, up to its request. `users` maps names to passwords; None requires neither.

    `rest` are the bytes after the request. `failure` is one sentence; after it, send the last answer and close.
    """

    users: Mapping[str, str] | None = field(default=None, repr=False)
    request: Socks5Request | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        self._buffer = b""
        self._step = self._methods

    @property
    def rest(self) -> bytes:
        return self._buffer

    @property
    def finished(self) -> bool:
        return self.request is not None or self.failure is not None

    def receive(self, data: bytes) -> bytes:
        """Return the bytes to send. The caller bounds `data`; at most 513 bytes wait here for more."""
        self._buffer += data
        out = b""
        try:
            while not self.finished and (answer := self._step()) is not None:
                out += answer
        except SocksError as error:
            self.failure = str(error)
            out += b"" if error.reply is None else reply(error.reply)
        return out

    def _take(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    # Each step returns the bytes to send, or None while it needs more input.

    def _methods(self) -> bytes | None:
        if self._buffer and self._buffer[0] != VERSION:
            raise SocksError(f"the client speaks version {self._buffer[0]} of SOCKS, not 5")
        if len(self._buffer) < 2 or len(self._buffer) < 2 + self._buffer[1]:
            return None
        offered = self._take(2 + self._buffer[1])[2:]
        wanted = NO_AUTHENTICATION if self.users is None else USER_PASSWORD
        if self.users is None and wanted not in offered:
            wanted = USER_PASSWORD  # accept any password from a client that insists on one
        if wanted not in offered:
            self.failure = "the client offers no password" if self.users else "the client offers no supported method"
            return bytes((VERSION, NONE_ACCEPTABLE))
        self._step = self._request if wanted == NO_AUTHENTICATION else self._password
        return bytes((VERSION, wanted))

    def _password(self) -> bytes | None:
        """Check version, length, name, length, password (RFC 1929, 2).

        Some clients send the version of SOCKS instead.
        """
        buffer = self._buffer
        if buffer and buffer[0] not in (AUTH_VERSION, VERSION):
            raise SocksError(f"the client uses version {buffer[0]} of password authentication, not 1")
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return None
        end = 3 + buffer[1] + buffer[2 + buffer[1]]
        if len(buffer) < end:
            return None
        message = self._take(end)
        if self.users is not None and not allowed(self.users, message[2 : 2 + message[1]], message[3 + message[1] :]):
            self.failure = "wrong user or password"
            return bytes((AUTH_VERSION, 1))
        self._step = self._request
        return bytes((AUTH_VERSION, 0))

    def _request(self) -> bytes | None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise SocksError(f"the request has version {buffer[0]}, not 5", SocksReply.GENERAL_FAILURE)
        if len(buffer) < 4:
            return None
        if buffer[1] not in (Command.CONNECT, Command.UDP_ASSOCIATE):
            raise SocksError(f"command {buffer[1]} is not supported", SocksReply.COMMAND_NOT_SUPPORTED)
        parsed = parse_address(buffer, 3)
        if parsed is None:
            return None
        host, port, end = parsed
        self._take(end)
        self.request = Socks5Request(Command(buffer[1]), host, port)
        return b""


def allowed(users: Mapping[str, str], name: bytes, password: bytes) -> bool:
    """Check name and password in a time that reveals neither."""
    is_allowed = False
    for user, secret in users.items():
        is_match = hmac.compare_digest(user.encode(), name) & hmac.compare_digest(secret.encode(), password)
        is_allowed |= bool(is_match)
    return is_allowed


def parse_address(data: bytes, start: int) -> tuple[str, int, int] | None:
    """Return host, port and their end, or None if bytes are missing.

    `start` is the position of ATYP. Raises SocksError.
    """
    if len(data) < start + 2:
        return None
    kind = data[start]
    if kind == DOMAIN:
        first, end = start + 2, start + 2 + data[start + 1]
    elif kind in (IPV4, IPV6):
        first, end = start + 1, start + 1 + (4 if kind == IPV4 else 16)
    else:
        raise SocksError(f"unknown address type {kind}", SocksReply.ADDRESS_TYPE_NOT_SUPPORTED)
    if len(data) < end + 2:
        return None
    return host_of(kind, data[first:end]), int.from_bytes(data[end : end + 2]), end + 2


def host_of(kind: int, raw: bytes) -> str:
    return host_of_name(raw) if kind == DOMAIN else str(ipaddress.ip_address(raw))


def host_of_name(raw: bytes) -> str:
    """Decode a name, or an address given as a name. Raises SocksError."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():
        raise SocksError("the requested name is not valid text", SocksReply.GENERAL_FAILURE)
    return name


def address_bytes(host: str, port: int) -> bytes:
    """Return ATYP, address and port of a literal. Raises ValueError for a name."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return bytes((IPV4 if address.version == 4 else IPV6,)) + address.packed + port.to_bytes(2)


def reply(code: SocksReply, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """Build the reply to a request. The address is that of our end of the connection."""
    return bytes((VERSION, code, 0)) + address_bytes(host, port)


def reply_for(error: OSError) -> SocksReply:
    """Return the reply code that matches the reason of a failed connection best."""
    if isinstance(error, socket.gaierror | TimeoutError):
        return SocksReply.HOST_UNREACHABLE
    if isinstance(error, ConnectionRefusedError):
        return SocksReply.CONNECTION_REFUSED
    return UNREACHABLE.get(error.errno or 0, SocksReply.GENERAL_FAILURE)


UNREACHABLE = {
    errno.ENETUNREACH: SocksReply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: SocksReply.HOST_UNREACHABLE,
    errno.EPERM: SocksReply.NOT_ALLOWED,
    errno.EACCES: SocksReply.NOT_ALLOWED,
}


def parse_packet(data: bytes) -> tuple[str, int, bytes]:
    """Parse a UDP packet of a client (RFC 1928, 7) into host, port and payload.

    Fragments are refused. Raises SocksError.
    """
    if len(data) < 4 or data[:2] != b"\0\0":
        raise SocksError("a UDP packet without a SOCKS5 header")
    if data[2]:
        raise SocksError("fragments of UDP packets are not supported")
    parsed = parse_address(data, 3)
    if parsed is None:
        raise SocksError("a UDP packet with a truncated header")
    host, port, end = parsed
    return host, port, data[end:]


def build_packet(host: str, port: int, payload: bytes) -> bytes:
    """Build a UDP packet to a client. `host` and `port` are its source."""
    return bytes(3) + address_bytes(host, port) + payload
