"""Endpoints and prefixes as text, compared with the standard library."""

from __future__ import annotations

import ipaddress

from wyrmhole.control.uapi.format import emit_prefix, parse_prefix
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


def expected_prefix(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Parse by the standard library, without its extensions: masks, wildcards, scopes, a missing length."""
    address, slash, length = text.partition("/")
    if not slash or "%" in address or not (length.isascii() and length.isdigit()):
        return None
    try:
        return ipaddress.ip_network((ipaddress.ip_address(address), int(length)), strict=False)
    except ValueError:
        return None


def TestOneInput(data: bytes) -> None:
    """Both parsers accept the same prefixes as the library, as the same networks. A parsed value emits text that parses
    to the same value. All other text raises ValueError or OSError."""
    text = data.decode(errors="replace")
    check_prefix(text)
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert Endpoint.parse(endpoint.emit()) == endpoint
    assert Endpoint.from_sockaddr(endpoint.sockaddr) == endpoint
    assert len(endpoint.address_bytes) == (16 if endpoint.is_v6 else 4)
    assert 0 <= endpoint.port <= 65535 and 0 <= endpoint.scope_id < 1 << 32


def check_prefix(text: str) -> None:
    expected = expected_prefix(text)
    try:
        prefix = Prefix.parse(text)
    except ValueError:
        prefix = None
    assert (prefix is None) == (expected is None), text
    try:
        quick = parse_prefix(text)
    except (ValueError, OSError):
        quick = None
    if prefix is not None and expected is not None:
        assert (prefix.network, prefix.length) == (int(expected.network_address), expected.prefixlen)
        assert Prefix.parse(prefix.emit()) == prefix == parse_prefix(emit_prefix(prefix))
    if quick is not None:
        assert quick == prefix
