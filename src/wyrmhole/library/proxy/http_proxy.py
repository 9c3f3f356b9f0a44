"""The rules of HTTP for proxies (RFC 9110, RFC 9112): targets, authentication and the fields to forward.

This module has no sockets and no parser: h11 parses, and `http_relay.py` moves the messages.
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
"""Fields that are meant for this proxy and not forwarded (RFC 9110, 7.6.1)."""


class HttpError(ValueError):
    """A request that the proxy answers itself, with this status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a request. `path` is in origin form, or None for CONNECT; `authority` is the Host field to send."""

    host: str
    port: int
    authority: bytes
    path: bytes | None


def target_of(method: bytes, target: bytes) -> Target:
    """Parse a request target.

    Raises HttpError: 400 for an invalid target, 501 for another scheme, 421 for a request to an origin server.
    """
    text = target.decode("ascii", "replace")
    return connect_target(text) if method == b"CONNECT" else absolute_target(text)


def connect_target(text: str) -> Target:
    if not text.rpartition("]")[2].count(":"):
        text += f":{HTTPS_PORT}"  # the port that clients without one mean
    try:
        address = HostPort.parse(text)
    except ValueError:
        address = HostPort("", 0)
    if not address.host or not address.port or address.proto:
        raise HttpError(400, f"CONNECT needs HOST:PORT, not {text!r}")
    return Target(address.host, address.port, text.encode(), None)


def absolute_target(text: str) -> Target:
    if text.startswith("/") or text == "*":
        raise HttpError(421, "this is a proxy, not a server: set it as the proxy of your program")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise HttpError(400, f"the URL of the request is invalid: {error}") from None
    if url.scheme.lower() not in ("http", "ws"):
        raise HttpError(501, f"this proxy fetches only http:// URLs, not {url.scheme!r}: use CONNECT instead")
    if not host:
        raise HttpError(400, "the URL of the request has no host")
    path = (url.path or "/") + (f"?{url.query}" if url.query or text.endswith("?") else "")
    return Target(host, 80 if port is None else port, url.netloc.rpartition("@")[2].encode(), path.encode())


def authorized(headers: Iterable[tuple[bytes, bytes]], users: Mapping[str, str] | None) -> bool:
    """Check Proxy-Authorization (RFC 9110, 11.7; Basic: RFC 7617). Without users, everybody is authorized."""
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
    """Remove the hop-by-hop fields, including those that Connection names."""
    fields = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in fields if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in fields if name not in HOP_BY_HOP and name not in named - FRAMING]


FRAMING = frozenset((b"content-length", b"transfer-encoding", b"host"))
"""Fields that are kept even if Connection names them, because they define where a message ends and whom it is for."""


def request_headers(headers: Iterable[tuple[bytes, bytes]], target: Target, version: bytes) -> Headers:
    """Return the fields to forward, with Host from the target (RFC 9112, 3.2.2) and our own Via (RFC 9110, 7.6.3)."""
    headers = list(headers)
    fields = [(name, value) for name, value in end_to_end(headers) if name != b"host"]
    return [(b"host", target.authority), *fields, (b"via", version + b" " + PSEUDONYM), *upgrade_of(headers)]


def response_headers(headers: Iterable[tuple[bytes, bytes]], version: bytes) -> Headers:
    """Return the fields to forward to the client.

    Transfer-Encoding is removed, and Content-Length if it accompanies it (RFC 9112, 6.3), because h11 frames the body
    again for the client's version.
    """
    headers = list(headers)
    replaced = FRAMED_HERE if has_two_lengths(headers) else {b"transfer-encoding"}
    fields = [(name, value) for name, value in end_to_end(headers) if name not in replaced]
    return [*fields, (b"via", version + b" " + PSEUDONYM)]


FRAMED_HERE = frozenset((b"content-length", b"transfer-encoding"))


def has_two_lengths(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Report whether a message defines its end in two ways."""
    return {name.lower() for name, _ in headers} >= FRAMED_HERE


def check_framing(request: h11.Request) -> None:
    """Raise HttpError for a request whose end is ambiguous (RFC 9112, 6.1)."""
    if has_two_lengths(request.headers):
        raise HttpError(400, "the request has both Content-Length and Transfer-Encoding")
    if request.http_version < b"1.1" and any(name == b"transfer-encoding" for name, _ in request.headers):
        raise HttpError(400, "an HTTP/1.0 request must not have Transfer-Encoding")


def upgrade_of(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the fields that request or accept a websocket. Other upgrades are not forwarded."""
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
