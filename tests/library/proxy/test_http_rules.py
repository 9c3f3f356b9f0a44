"""How the proxy reads a request, and what it forwards: rules without a connection."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.library.proxy.http import USERS, basic
from wyrmhole.library.proxy.http_head import clean_request, clean_response, take_head
from wyrmhole.library.proxy.http_proxy import (
    FRAMING,
    HttpError,
    Target,
    authorized,
    end_to_end,
    request_headers,
    response_headers,
    target_of,
)


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        (b"CONNECT", b"db.internal:443", Target("db.internal", 443, b"db.internal:443", None)),
        (b"CONNECT", b"[fd00::1]:443", Target("fd00::1", 443, b"[fd00::1]:443", None)),
        (b"GET", b"http://a.internal/x?y=1", Target("a.internal", 80, b"a.internal", b"/x?y=1")),
        (b"GET", b"http://a.internal:8080", Target("a.internal", 8080, b"a.internal:8080", b"/")),
        (b"GET", b"HTTP://user:secret@A.internal/", Target("a.internal", 80, b"A.internal", b"/")),
        (b"GET", b"http://[fd00::1]:81/", Target("fd00::1", 81, b"[fd00::1]:81", b"/")),
        (b"GET", b"http://a.internal/?", Target("a.internal", 80, b"a.internal", b"/?")),
        (b"GET", b"ws://a.internal/chat", Target("a.internal", 80, b"a.internal", b"/chat")),
        (b"CONNECT", b"a.internal", Target("a.internal", 443, b"a.internal:443", None)),
        (b"CONNECT", b"a.internal.:443", Target("a.internal.", 443, b"a.internal.:443", None)),
        (b"CONNECT", b"[fd00::1]", Target("fd00::1", 443, b"[fd00::1]:443", None)),
    ],
)
def test_target_is_read_according_to_the_rfc(method: bytes, target: bytes, expected: Target) -> None:
    """RFC 9112, 3.2.2 and 3.2.3."""
    assert target_of(method, target) == expected


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"GET", b"/index.html", 421),
        (b"OPTIONS", b"*", 421),
        (b"GET", b"ftp://a.internal/", 501),
        (b"GET", b"https://a.internal/", 501),
        (b"GET", b"http:///x", 400),
        (b"GET", b"http://[fd00::1/", 400),
        (b"GET", b"http://a:99999/", 400),
        (b"GET", b"\xff\xfe", 501),
        (b"CONNECT", b"fd00::1", 400),
        (b"CONNECT", b":443", 400),
        (b"CONNECT", b"a.internal:0", 400),
        (b"CONNECT", b"a.internal:53/udp", 400),
        (b"CONNECT", b"http://a.internal:443/", 400),
    ],
)
def test_unusable_target_has_a_status(method: bytes, target: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        target_of(method, target)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("value", "is_accepted"),
    [
        (basic("ada", "lovelace"), True),
        (b"basic " + basic("ada", "lovelace")[6:], True),
        (basic("ada", "byron"), False),
        (basic("eve", "lovelace"), False),
        (b"Basic ???", False),
        (b"Basic " + base64.b64encode(b"ada"), False),
        (b"Bearer " + basic("ada", "lovelace")[6:], False),
        (b"", False),
    ],
)
def test_only_the_right_password_is_accepted(value: bytes, is_accepted: bool) -> None:
    """RFC 7617."""
    assert authorized([(b"proxy-authorization", value)], USERS) is is_accepted
    assert authorized([(b"proxy-authorization", value)], None)
    assert not authorized([], USERS)


def test_hop_by_hop_fields_are_removed_but_not_framing() -> None:
    """RFC 9110, 7.6.1; a Connection that names Content-Length must not remove it."""
    fields = [
        (b"Connection", b"close, X-Hop, Content-Length, Host"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"5"),
        (b"Proxy-Authorization", b"secret"),
        (b"Upgrade", b"h2c"),
        (b"TE", b"trailers"),
        (b"Content-Length", b"3"),
        (b"X-End", b"2"),
    ]
    assert end_to_end(fields) == [(b"content-length", b"3"), (b"x-end", b"2")]


def test_host_is_taken_from_the_target_and_via_is_added() -> None:
    """RFC 9112, 3.2.2; RFC 9110, 7.6.3."""
    target = Target("a.internal", 80, b"a.internal", b"/")
    fields = request_headers([(b"Host", b"evil.internal"), (b"Accept", b"*/*")], target, b"1.1")
    assert fields == [(b"host", b"a.internal"), (b"accept", b"*/*"), (b"via", b"1.1 wyrmhole")]
    assert response_headers([(b"Transfer-Encoding", b"chunked")], b"1.0") == [(b"via", b"1.0 wyrmhole")]


FIELDS = st.lists(
    st.one_of(
        st.sampled_from(
            [b"Content-Length: 2", b"Transfer-Encoding: chunked", b"X : y", b"A B: c", b" folded", b"X: a\0b"]
        ),
        st.binary(max_size=20),
    ),
    max_size=6,
)


@given(lines=FIELDS)
def test_normalising_a_head_is_idempotent_and_keeps_framing(lines: list[bytes]) -> None:
    data = b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b"body"])
    taken = take_head(data)
    assert taken is not None and taken[0] + taken[1] == data
    assert take_head(taken[0].rstrip(b"\r\n")) is None
    head, left_out = clean_response(taken[0])
    assert clean_response(head) == (head, []) and take_head(head) == (head, b"")
    names = {line.partition(b":")[0].rstrip(b" \t").lower() for line in left_out if b":" in line}
    assert names & FRAMING <= {b"transfer-encoding"}, "only `identity` is removed from it"
    assert clean_request(clean_request(data)) == clean_request(data)
