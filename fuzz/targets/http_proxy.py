"""Requests of an HTTP client to the proxy: their heads and targets."""

from __future__ import annotations

import h11

from fuzz.reader import Reader
from wyrmhole.library.proxy.http_head import clean_request, take_head
from wyrmhole.library.proxy.http_proxy import (
    FRAMING,
    HOP_BY_HOP,
    HttpError,
    Target,
    authorized,
    request_headers,
    response_headers,
    target_of,
    upgrade_of,
)
from wyrmhole.library.proxy.http_relay import LONGEST_HEAD

USERS = {"user": "password"}


def requests(pieces: list[bytes]) -> list[h11.Request | str]:
    """Return the first request, or a text if it is invalid. Its head is cleaned as a whole, like in the relay."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
    waiting = b""
    for piece in pieces:
        waiting += piece
        taken = take_head(waiting)
        if taken is None and len(waiting) <= LONGEST_HEAD:
            continue
        connection.receive_data(waiting if taken is None else clean_request(taken[0]))
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            return [f"invalid request: {error.error_status_hint}"]
        if isinstance(event, h11.Request):
            return [event]
    return []


def TestOneInput(data: bytes) -> None:
    """A request has a target or is refused with a status and one sentence. A forwarded request has one Host field and
    no hop-by-hop fields, and parses to the request that was sent."""
    reader = Reader(data)
    cut = 1 + reader.byte()
    stream = reader.rest()
    found = requests([stream])
    assert repr(found) == repr(requests([stream[at : at + cut] for at in range(0, len(stream), cut)] or [b""]))
    for request in found:
        if isinstance(request, h11.Request):
            check(request)


def check(request: h11.Request) -> None:
    if authorized(request.headers, USERS):
        assert any(name == b"proxy-authorization" for name, _ in request.headers)
    assert authorized(request.headers, None)
    try:
        target = target_of(request.method, request.target)
    except HttpError as error:
        assert error.status in (400, 421, 501) and "\n" not in str(error)
        return
    assert target.host and 0 <= target.port < 1 << 16
    assert (target.path is None) == (request.method == b"CONNECT")
    if target.path is not None:
        check_passed_on(request, target, target.path)


def check_passed_on(request: h11.Request, target: Target, path: bytes) -> None:
    fields = request_headers(request.headers, target, request.http_version)
    names = [name for name, _ in fields]
    assert names.count(b"host") == 1
    assert HOP_BY_HOP & set(names) == {name for name, _ in upgrade_of(request.headers)}
    assert all(name in names for name, _ in request.headers if name in FRAMING)
    upstream = h11.Connection(h11.CLIENT)
    try:
        sent = upstream.send(h11.Request(method=request.method, target=path, headers=fields))
    except h11.LocalProtocolError:
        return  # the relay answers with 502
    (again,) = requests([sent or b""])
    assert isinstance(again, h11.Request)
    assert (again.method, again.target) == (request.method, path)
    assert b"transfer-encoding" not in dict(response_headers(request.headers, request.http_version))
