"""Prefixes, the unit of allowed IPs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wyrmhole.wire.prefix import Prefix


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    version, bits = draw(st.sampled_from([(4, 32), (6, 128)]))
    length = draw(st.integers(0, bits))
    return Prefix(version, draw(st.integers(0, 2**length - 1)) << (bits - length), length)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3/32", "10.1.2.3/32"),
        ("255.255.255.255/0", "0.0.0.0/0"),
        ("2001:db8::1/64", "2001:db8::/64"),
        ("2001:DB8::1/128", "2001:db8::1/128"),
        ("::/0", "::/0"),
    ],
)
def test_host_bits_are_masked(text: str, canonical: str) -> None:
    assert Prefix.parse(text).emit() == canonical


@given(prefixes())
def test_parse_inverts_emit(prefix: Prefix) -> None:
    assert Prefix.parse(prefix.emit()) == prefix


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/8/8",
        "10.0.0.0/\N{ARABIC-INDIC DIGIT ONE}",
        "10.0.0/8",
        "::/129",
        "fe80::1%1/64",
        "fe80::%eth0/64",
        "::/" + "1" * 5000,
    ],
)
def test_an_invalid_prefix_raises_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Prefix.parse(text)


@given(st.text() | st.text(alphabet="0123456789abcdef:./%"))
def test_any_text_is_a_prefix_or_raises_value_error(text: str) -> None:
    try:
        prefix = Prefix.parse(text)
    except ValueError:
        return
    assert Prefix.parse(prefix.emit()) == prefix


def test_bits_is_the_length_of_an_address() -> None:
    assert Prefix.parse("10.0.0.0/8").bits == 32
    assert Prefix.parse("::/8").bits == 128
