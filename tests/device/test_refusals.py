"""At debug level, a device logs the datagrams that it refuses, and counts them for the peer."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.device.devices import World, packet, scenario, until
from wyrmhole.device.config import DeviceChange, PeerChange
from wyrmhole.device.event_log import peer_text
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint

LOGGER = logging.getLogger("wyrmhole")
INITIATION = b"\1\0\0\0" + bytes(144)


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture(autouse=True)
def former_level() -> Iterator[None]:
    level, handlers = LOGGER.level, LOGGER.handlers[:]
    yield
    LOGGER.handlers[:] = handlers
    LOGGER.setLevel(level)


def read_log(level: int) -> list[str]:
    lines = Lines()
    LOGGER.addHandler(lines)
    LOGGER.setLevel(level)
    return lines.texts


@scenario
async def test_a_disallowed_inner_source_is_logged(world: World) -> None:
    texts = read_log(logging.DEBUG)
    _, a_tun, b, _ = await world.pair()
    a_tun.inject(packet(77, 2))
    (key,) = b.peer_keys()
    wanted = f"IPv4 packet with disallowed source address from {peer_text(key)} at 192.0.2.1:1: 10.0.0.77"
    await until(lambda: any(wanted in text for text in texts))
    assert b.peer_drops(key) == {DropReason.BAD_SOURCE: 1}
    assert b.drop_counts().peers == {key: {"bad_source": 1}}


@scenario
async def test_a_wrong_mac1_is_logged_with_its_source(world: World) -> None:
    texts = read_log(logging.DEBUG)
    await world.pair()
    stranger = world.network.bind("192.0.2.9")
    stranger.open(9)
    stranger.send(INITIATION, 0, Endpoint("192.0.2.2", 2).sockaddr, None)
    await until(lambda: any("Received packet with invalid mac1 from 192.0.2.9:9" in text for text in texts))
    stranger.close()


@scenario
async def test_a_device_follows_the_level_of_its_logger(world: World) -> None:
    read_log(logging.WARNING)
    a, _, _, _ = await world.pair()
    refusals = a._engine._tables.refusals  # type: ignore[attr-defined]
    assert not refusals.is_on
    for level, is_on in ((logging.DEBUG, True), (logging.INFO, False)):
        LOGGER.setLevel(level)
        a.configure(DeviceChange())
        await a.applied()
        assert refusals.is_on is is_on


@scenario
async def test_interface_events_are_logged_like_in_wireguard_go(world: World) -> None:
    texts = read_log(logging.DEBUG)
    a, a_tun, b, _ = await world.pair()
    (key,) = a.peer_keys()
    a.configure(DeviceChange(peers=(PeerChange(key, remove=True),)))
    a_tun.set_up(False)
    await until(lambda: not a.is_up)
    for wanted in (
        "Interface up requested",
        "UDP bind has been updated, listening on port 1",
        f"{peer_text(key)} - Starting",
        f"{peer_text(key)} - Stopping",
        "Interface down requested",
    ):
        assert wanted in texts, texts
    assert b.is_up
