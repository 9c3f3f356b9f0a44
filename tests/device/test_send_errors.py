"""Failed sends to a peer are logged once, with a remedy."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engines import KINDS, chosen, make_engine
from tests.support.namespaces import Namespace
from wyrmhole.device.clock import SystemClock
from wyrmhole.device.config import DeviceChange, PeerChange
from wyrmhole.device.device import Device
from wyrmhole.device.send_errors import explain
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.net.udp_bind import UdpBind
from wyrmhole.protocol.events import Event, SendRefused
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint

PEER = PublicKey(b"\x07" * 32)
ENDPOINT = Endpoint("192.0.2.7", 7)
_LASTING = [
    *("EACCES", "EPERM", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EINVAL", "EMSGSIZE"),
    *("ENETDOWN", "ENODEV", "ENXIO", "EAGAIN", "ENOBUFS", "ENOMEM"),
]


@pytest.mark.parametrize("name", _LASTING)
def test_each_errno_of_sending_has_its_own_remedy(name: str) -> None:
    text = explain(getattr(errno, name), ENDPOINT)
    assert text.startswith("cannot send to 192.0.2.7:7: ")
    assert "the firewall rules" not in text, "that is the remedy for unknown errors"
    assert "{" not in text and text.endswith(")")


def test_an_unknown_errno_is_explained_too() -> None:
    assert "ip route get 2001:db8::1" in explain(errno.EIO, Endpoint("2001:db8::1", 7))
    assert explain(errno.EIO, None).startswith("cannot send to its endpoint")


@pytest.fixture(params=KINDS)
def engine_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    with chosen(request.param):
        yield request.param


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.network
@pytest.mark.parametrize(
    ("route", "number"),
    [
        (None, errno.ENETUNREACH),
        (("prohibit",), errno.EACCES),
        (("unreachable",), errno.EHOSTUNREACH),
        (("blackhole",), errno.EINVAL),
    ],
)
def test_a_persistent_failure_is_logged_once(
    engine_kind: str, route: tuple[str, ...] | None, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    space = Namespace()
    events: list[Event] = []

    def opened() -> UdpBind:
        return UdpBind()

    def note(event: Event) -> None:
        if isinstance(event, SendRefused):
            events.append(event)

    async def run() -> None:
        clock = SystemClock()
        with space.entered():
            engine = make_engine(clock.boottime, threaded=True)
            device = Device(MemoryTun("mem0", up=True), opened, engine, clock=clock, on_event=note)
            device.begin()
            await until(lambda: device.is_up)
        for _ in range(3):
            # A new private key starts a new handshake without the wait of 5 s.
            peer = PeerChange(PEER, persistent_keepalive=1, endpoint=ENDPOINT if not events else None)
            device.configure(DeviceChange(private_key=PrivateKey(os.urandom(32)), peers=(peer,)))
            await until(lambda: events)
            await device.applied()
        await device.close()

    try:
        if route is not None:
            space.ip("route", "add", *route, "192.0.2.0/24")
        with caplog.at_level(logging.WARNING, "wyrmhole"):
            asyncio.run(asyncio.wait_for(run(), 30))
    finally:
        space.delete()
    assert events == [SendRefused(PEER, number)]
    warned = [record.getMessage() for record in caplog.records if "cannot send" in record.getMessage()]
    assert len(warned) == 1
    assert explain(number, ENDPOINT) in warned[0]
