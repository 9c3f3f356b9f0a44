"""Endpoints as text, as socket addresses and as bytes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.wire.endpoint import Endpoint

ports = st.integers(0, 65535)
v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).filter(lambda address: getattr(address, "ipv4_mapped", None) is None).map(str)
endpoints = st.builds(Endpoint, v4, ports) | st.builds(Endpoint, v6, ports, st.integers(0, 2**32 - 1))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("192.0.2.1:51820", Endpoint("192.0.2.1", 51820)),
        ("[2001:db8::1]:51820", Endpoint("2001:db8::1", 51820)),
        ("[2001:DB8:0:0::1]:0", Endpoint("2001:db8::1", 0)),
        ("[fe80::1%3]:51820", Endpoint("fe80::1", 51820, 3)),
        ("[::ffff:192.0.2.1]:7", Endpoint("192.0.2.1", 7)),
        ("0.0.0.0:65535", Endpoint("0.0.0.0", 65535)),
    ],
)
def test_text_forms(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint


@given(endpoints)
def test_parse_inverts_emit(endpoint: Endpoint) -> None:
    assert Endpoint.parse(endpoint.emit()) == endpoint


@given(endpoints)
def test_from_sockaddr_inverts_sockaddr(endpoint: Endpoint) -> None:
    assert Endpoint.from_sockaddr(endpoint.sockaddr) == endpoint
    assert len(endpoint.sockaddr) == (4 if endpoint.is_v6 else 2)


def test_a_scope_in_the_host_of_a_socket_address_is_dropped() -> None:
    """getaddrinfo and some platforms write it there too."""
    assert Endpoint.from_sockaddr(("fe80::1%eth0", 1, 0, 3)) == Endpoint("fe80::1", 1, 3)


def test_address_bytes() -> None:
    assert Endpoint("192.0.2.1", 1).address_bytes == bytes([192, 0, 2, 1])
    assert Endpoint("fe80::1", 1, 3).address_bytes == ipaddress.ip_address("fe80::1").packed


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        "192.0.2.1:+1",
        "192.0.2.1: 1",
        "192.0.2.1:\N{SUPERSCRIPT TWO}",
        "192.0.2.1:\N{ARABIC-INDIC DIGIT ONE}",
        "192.0.2.1:" + "1" * 5000,
        "[192.0.2.1]:1",
        "2001:db8::1:1",
        "[2001:db8::1:1",
        "2001:db8::1]:1",
        "[2001:db8::1]1",
        "[]:1",
        "192.0.2:1",
        "192.0.2.01:1",
        "example.org:1",
        "[fe80::1%eth0]:1",
        "[fe80::1%]:1",
        "[fe80::1%\N{ARABIC-INDIC DIGIT ONE}]:1",
        "[fe80::1%-1]:1",
        "[fe80::1%4294967296]:1",
        "192.0.2.1%1:1",
    ],
)
def test_an_invalid_endpoint_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(text)


@given(st.text() | st.text(alphabet="0123456789abcdef:.[]%"))
def test_any_text_parses_or_raises_value_error(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except ValueError:
        return
    assert Endpoint.parse(endpoint.emit()) == endpoint
