"""HTTP for proxies (RFC 9110, RFC 9112): what a request asks for, who may ask, and which fields are passed on.

No sockets and no parsing: h11 does that. `http_relay.py` moves the messages.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from wyrmhole.library.proxy.socks5 import allowed
from wyrmhole.library.services.dialer import HostPort

if TYPE_CHECKING:
    import h11

Headers: TypeAlias = list[tuple[bytes, bytes]]

PSEUDONYM = b"wyrmhole"
HTTPS_PORT = 443
WEBSOCKET = b"websocket"
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"upgrade",
        b"proxy-authenticate",
        b"proxy-authorization",
    )
)
"""RFC 9110, 7.6.1: meant for us and not for who is behind us."""


class HttpError(ValueError):
    """A request that is answered here, with this status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: `path` in origin form, or None for CONNECT. `authority` is the Host field to send."""

    host: str
    port: int
    authority: bytes
    path: bytes | None


def target_of(method: bytes, target: bytes) -> Target:
    """Raises HttpError: 400 for what cannot be read, 501 for another scheme, 421 for a request to a plain server."""
    text = target.decode("ascii", "replace")
    return connect_target(text) if method == b"CONNECT" else absolute_target(text)


def connect_target(text: str) -> Target:
    if not text.rpartition("]")[2].count(":"):
        text += f":{HTTPS_PORT}"  # what a client without a port means
    try:
        spot = HostPort.parse(text)
    except ValueError:
        spot = HostPort("", 0)
    if not spot.host or not spot.port or spot.proto:
        raise HttpError(400, f"CONNECT needs HOST:PORT and not {text!r}")
    return Target(spot.host, spot.port, text.encode(), None)


def absolute_target(text: str) -> Target:
    if text.startswith("/") or text == "*":
        raise HttpError(421, "this is a proxy and no server: set it as the proxy of your program")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise HttpError(400, f"the address of the request cannot be read: {error}") from None
    if url.scheme.lower() not in ("http", "ws"):
        raise HttpError(501, f"only http:// is fetched for a client, not {url.scheme!r}: use CONNECT for others")
    if not host:
        raise HttpError(400, "the address of the request has no host")
    path = (url.path or "/") + (f"?{url.query}" if url.query or text.endswith("?") else "")
    return Target(host, 80 if port is None else port, url.netloc.rpartition("@")[2].encode(), path.encode())


def authorized(headers: Iterable[tuple[bytes, bytes]], users: Mapping[str, str] | None) -> bool:
    """Whether Proxy-Authorization (RFC 9110, 11.7; Basic: RFC 7617) names one of the users. None lets everybody in."""
    if users is None:
        return True
    for name, value in headers:
        if name == b"proxy-authorization":
            scheme, _, credentials = value.partition(b" ")
            try:
                user, _, password = base64.b64decode(credentials.strip(), validate=True).partition(b":")
            except binascii.Error:
                return False
            return scheme.lower() == b"basic" and allowed(users, user, password)
    return False


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Without the fields of this hop, those that Connection names included."""
    fields = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in fields if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in fields if name not in HOP_BY_HOP and name not in named - FRAMING]


FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host"))
"""Never removed because Connection names them: that would change where a message ends, or whom it is for."""


def request_headers(headers: Iterable[tuple[bytes, bytes]], target: Target, version: bytes) -> Headers:
    """What is sent on: Host as in the address (RFC 9112, 3.2.2) and a Via of our own (RFC 9110, 7.6.3)."""
    headers = list(headers)
    fields = [(name, value) for name, value in end_to_end(headers) if name != b"host"]
    return [(b"host", target.authority), *fields, (b"via", version + b" " + PSEUDONYM), *upgrade_of(headers)]


def response_headers(headers: Iterable[tuple[bytes, bytes]], version: bytes) -> Headers:
    """Without Transfer-Encoding, and a Content-Length beside it (RFC 9112, 6.3): h11 frames the body anew for the
    client's version."""
    headers = list(headers)
    ours = FRAMED_HERE if has_two_lengths(headers) else {b"transfer-encoding"}
    fields = [(name, value) for name, value in end_to_end(headers) if name not in ours]
    return [*fields, (b"via", version + b" " + PSEUDONYM)]


FRAMED_HERE = frozenset((b"content-length", b"transfer-encoding"))


def has_two_lengths(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a message says in two ways where it ends."""
    return {name.lower() for name, _ in headers} >= FRAMED_HERE


def check_framing(request: h11.Request) -> None:
    """Raises HttpError for a request whose end somebody else may see elsewhere (RFC 9112, 6.1)."""
    if has_two_lengths(request.headers):
        raise HttpError(400, "the request has Content-Length beside Transfer-Encoding")
    if request.http_version < b"1.1" and any(name == b"transfer-encoding" for name, _ in request.headers):
        raise HttpError(400, "a request of HTTP/1.0 has no Transfer-Encoding")


def upgrade_of(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The fields that ask for a websocket or grant one; of other upgrades nothing is passed on."""
    fields = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in fields if name == b"connection" for word in value.split(b",")}
    protocols = [value.strip() for name, value in fields if name == b"upgrade"]
    if b"upgrade" not in named or [protocol.lower() for protocol in protocols] != [WEBSOCKET]:
        return []
    return [(b"connection", b"Upgrade"), (b"upgrade", protocols[0])]


def error_headers(status: int, body: bytes) -> Headers:
    fields = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    return [*fields, (b"proxy-authenticate", b'Basic realm="wyrmhole", charset="UTF-8"')] if status == 407 else fields
