"""Whole devices on memory edges: life cycle, configuration and status. They run in real time and wait for events."""

from __future__ import annotations

import asyncio
import errno
import logging
import os

import pytest

from tests.device.devices import World, packet, peer_change, scenario, until
from wyrmhole.device.clock import Alarm, SystemClock
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.device.device import Device
from wyrmhole.engine.contract import EngineFailed
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.errors import ConfigError
from wyrmhole.net.bind import Bind
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.events import HandshakeCompleted
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

# Traffic


@scenario
async def test_a_new_mark_forgets_the_sources_of_all_peers(world: World) -> None:
    a, a_tun, _, b_tun = await world.pair()
    a_tun.inject(packet(1, 2))
    await until(lambda: b_tun.delivered)
    b_tun.inject(packet(2, 1))
    await until(lambda: a_tun.delivered)
    (peer,) = a._engine._tables.peers.values()  # type: ignore[attr-defined]
    assert peer.source is not None
    a.configure(DeviceChange(fwmark=0))
    await a.applied()
    assert peer.source is not None, "the mark did not change, so the source must be kept"
    for mark in (77, 0):
        peer.source = b"pinned"
        a.configure(DeviceChange(fwmark=mark))
        await a.applied()
        assert peer.source is None


@scenario
async def test_two_devices_complete_a_handshake_and_carry_packets(world: World) -> None:
    a, a_tun, b, b_tun = await world.pair()
    a_tun.inject(packet(1, 2))
    await until(lambda: b_tun.delivered)
    b_tun.inject(packet(2, 1))
    await until(lambda: a_tun.delivered)
    assert (a_tun.pop(), b_tun.pop()) == (packet(2, 1), packet(1, 2))
    assert {type(event) for event in world.events} >= {HandshakeCompleted}
    status = a.status().peers[0]
    assert status.last_handshake > (1_600_000_000, 0)
    assert (status.tx_bytes, status.rx_bytes) == (148 + 64, 92 + 64)
    await until(lambda: b.status().peers[0].last_handshake > (0, 0))


@scenario
async def test_a_port_change_keeps_the_session(world: World) -> None:
    a, a_tun, b, b_tun = await world.pair()
    a_tun.inject(packet(1, 2))
    await until(lambda: b_tun.delivered)
    before = a.status().peers[0].last_handshake
    a.configure(DeviceChange(listen_port=77))
    a_tun.inject(packet(1, 2))
    await until(lambda: len(b_tun.delivered) == 2)
    await until(lambda: b.status().peers[0].endpoint == Endpoint("192.0.2.1", 77))
    assert a.status().peers[0].last_handshake == before
    assert a.status().listen_port == 77


@scenario
async def test_a_changed_peer_keeps_its_session(world: World) -> None:
    """boringtun and gotatun panic or drop the session when an existing peer is changed."""
    a, a_tun, _b, b_tun = await world.pair()
    a_tun.inject(packet(1, 2))
    await until(lambda: b_tun.delivered)
    before = a.status().peers[0]
    change = PeerChange(
        before.public_key,
        persistent_keepalive=25,
        preshared_key=PresharedKey(b"p" * 32),
        replace_allowed_ips=True,
        allowed_ips=(AllowedIPChange(Prefix.parse("10.0.0.0/24")),),
    )
    a.configure(DeviceChange(peers=(change,)))
    a_tun.inject(packet(1, 2))
    await until(lambda: len(b_tun.delivered) == 2)
    after = a.status().peers[0]
    assert after.last_handshake == before.last_handshake
    assert (after.persistent_keepalive, after.allowed_ips) == (25, (Prefix.parse("10.0.0.0/24"),))


# Life cycle


@scenario
async def test_down_frees_the_port_and_up_takes_it_again(world: World) -> None:
    """wireguard-go keeps the port while the interface is down."""
    a, a_tun, _b, b_tun = await world.pair()
    a_tun.set_up(False)
    await until(lambda: not a.is_up)
    with_port_free = world.network.bind("192.0.2.1")
    assert with_port_free.open(1) == 1
    with_port_free.close()
    a_tun.set_up(True)
    await until(lambda: a.is_up)
    a_tun.inject(packet(1, 2))
    await until(lambda: b_tun.delivered)
    assert a.status().listen_port == 1


@scenario
async def test_a_port_in_use_at_up_leaves_the_device_down_and_running(world: World) -> None:
    taken = world.network.bind("192.0.2.1")
    taken.open(5)
    device, tun = await world.device(1, up=False)
    taken.close()
    device.configure(DeviceChange(listen_port=5))
    taken.open(5)
    tun.set_up(True)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not device.is_up
    device.configure(DeviceChange(listen_port=6))
    assert device.is_up
    assert device.status().listen_port == 6
    taken.close()


@scenario
async def test_a_port_in_use_is_refused_even_while_down(world: World) -> None:
    taken = world.network.bind("192.0.2.1")
    taken.open(5)
    device, tun = await world.device(1, up=False)
    device.configure(DeviceChange(listen_port=4))
    with pytest.raises(ConfigError) as caught:
        device.configure(DeviceChange(listen_port=5))
    assert caught.value.errno_value == errno.EADDRINUSE
    assert device.status().listen_port == 4
    taken.close()
    device.configure(DeviceChange(listen_port=5))
    tun.set_up(True)
    await until(lambda: device.is_up)


@scenario
async def test_deletion_of_the_tun_ends_the_device(world: World) -> None:
    """gotatun continues to run."""
    device, tun = await world.device(1)
    tun.delete()
    await device.wait_closed()
    await device.close()


@scenario
async def test_failure_of_the_engine_ends_the_device(world: World) -> None:
    device, _ = await world.device(1)
    device._engine._tables.report(EngineFailed("reason"))  # type: ignore[attr-defined]
    device._engine._loop.announce()  # type: ignore[attr-defined]
    await device.wait_closed()
    assert device.failure == "reason"


@scenario
async def test_the_engine_learns_a_new_mtu(world: World) -> None:
    device, tun = await world.device(1)
    tun.set_mtu(1280)
    await until(lambda: device._engine._tables.mtu == 1280)  # type: ignore[attr-defined]
    assert device.status().mtu == 1280


@scenario
async def test_the_alarm_triggers_persistent_keepalives(world: World) -> None:
    """The timerfd on the boottime clock wakes the device: with an interval of 1 s, a keepalive arrives."""
    a, a_tun, _b, b_tun = await world.pair()
    a_tun.inject(packet(1, 2))
    await until(lambda: b_tun.delivered)
    key = a.status().peers[0].public_key
    a.configure(DeviceChange(peers=(PeerChange(key, persistent_keepalive=1),)))
    before = a.status().peers[0].tx_bytes
    await until(lambda: a.status().peers[0].tx_bytes >= before + 32)


# Configuration


@scenario
async def test_a_change_with_a_port_in_use_applies_nothing(world: World) -> None:
    """wireguard-go applies half of the change and loses the former port."""
    a, a_tun, _b, b_tun = await world.pair()
    taken = world.network.bind("192.0.2.1")
    taken.open(9)
    before = a.status()
    with pytest.raises(ConfigError) as caught:
        a.configure(
            DeviceChange(
                private_key=PrivateKey(b"\x01" * 32),
                listen_port=9,
                fwmark=7,
                replace_peers=True,
                peers=(peer_change(),),
            )
        )
    assert caught.value.errno_value == errno.EADDRINUSE
    assert a.status() == before
    a_tun.inject(packet(1, 2))
    await until(lambda: b_tun.delivered)


@scenario
async def test_a_change_with_too_many_peers_applies_nothing(world: World) -> None:
    device, _ = await world.device(1)
    device._interface.peers.max_peers = 2
    device.configure(DeviceChange(peers=(peer_change(),)))
    before = device.status()
    many = tuple(PeerChange(PublicKey(bytes((number,)) * 32)) for number in (1, 2))
    with pytest.raises(ConfigError) as caught:
        device.configure(DeviceChange(listen_port=3, peers=many))
    assert caught.value.errno_value == errno.EINVAL
    assert device.status() == before
    device.configure(DeviceChange(replace_peers=True, peers=many))
    assert len(device.status().peers) == 2
    device.configure(DeviceChange(peers=(peer_change(update_only=True), peer_change(remove=True))))
    assert len(device.status().peers) == 2
    one_more = PeerChange(PublicKey(b"\x09" * 32))
    for sections in (
        (one_more, PeerChange(PublicKey(b"\x01" * 32), remove=True)),
        (PeerChange(one_more.public_key, remove=True), one_more),
    ):
        with pytest.raises(ConfigError):
            device.configure(DeviceChange(peers=sections))
        assert len(device.status().peers) == 2


@scenario
async def test_configuration_made_while_down_applies_after_up(world: World) -> None:
    device, tun = await world.device(1, up=False)
    device.configure(
        DeviceChange(private_key=PrivateKey(b"\x01" * 32), listen_port=5, fwmark=6, peers=(peer_change(),))
    )
    assert (device.status().listen_port, device.status().fwmark) == (5, 6)
    tun.set_up(True)
    await until(lambda: device.is_up)
    assert (device.status().listen_port, device.status().fwmark) == (5, 6)
    assert len(device.status().peers) == 1


@scenario
async def test_the_keys_of_a_peer_section_are_applied(world: World) -> None:
    device, _ = await world.device(1)
    device.configure(DeviceChange(peers=(peer_change(update_only=True),)))
    assert device.status().peers == ()
    first, second = Prefix.parse("10.1.0.0/16"), Prefix.parse("fd00::/64")
    endpoint = Endpoint("198.51.100.1", 1)
    everything = peer_change(
        preshared_key=PresharedKey(b"p" * 32),
        endpoint=endpoint,
        persistent_keepalive=9,
        allowed_ips=(AllowedIPChange(first), AllowedIPChange(second)),
    )
    device.configure(DeviceChange(peers=(everything,)))
    shown = device.status().peers[0]
    assert (shown.preshared_key, shown.endpoint) == (PresharedKey(b"p" * 32), endpoint)
    assert (shown.persistent_keepalive, shown.allowed_ips) == (9, (first, second))
    device.configure(DeviceChange(peers=(peer_change(allowed_ips=(AllowedIPChange(first, remove=True),)),)))
    assert device.status().peers[0].allowed_ips == (second,)
    both = (AllowedIPChange(second, remove=True), AllowedIPChange(first), AllowedIPChange(second))
    device.configure(DeviceChange(peers=(peer_change(replace_allowed_ips=True, allowed_ips=both),)))
    assert set(device.status().peers[0].allowed_ips) == {first, second}
    device.configure(DeviceChange(peers=(peer_change(preshared_key=PresharedKey(bytes(32)), persistent_keepalive=0),)))
    assert device.status().peers[0].preshared_key.is_zero
    device.configure(DeviceChange(peers=(peer_change(remove=True, endpoint=endpoint),)))
    assert device.status().peers == ()


@scenario
async def test_a_prefix_belongs_to_the_peer_that_was_given_it_last(world: World) -> None:
    """In gotatun, two peers can have the same prefix."""
    device, _ = await world.device(1)
    prefix = Prefix.parse("10.0.0.0/8")
    for number in (1, 2):
        change = PeerChange(PublicKey(bytes((number,)) * 32), allowed_ips=(AllowedIPChange(prefix),))
        device.configure(DeviceChange(peers=(change,)))
    assert [peer.allowed_ips for peer in device.status().peers] == [(), (prefix,)]


@scenario
async def test_our_own_key_is_not_a_peer_in_either_order(world: World) -> None:
    """Our own public key is never a peer (M51)."""
    device, _ = await world.device(1)
    key = PrivateKey(b"\x01" * 32)
    device.configure(DeviceChange(peers=(PeerChange(key.public_key()),)))
    device.configure(DeviceChange(private_key=key))
    device.configure(DeviceChange(peers=(PeerChange(key.public_key()),)))
    assert device.status().peers == ()
    device.configure(DeviceChange(private_key=PrivateKey(bytes(32))))
    assert device.status().private_key is None


@scenario
async def test_many_changes_in_quick_succession_are_applied(world: World) -> None:
    """gotatun exits after several consecutive calls of `wg set`."""
    a, a_tun, _b, b_tun = await world.pair()
    for number in range(300):
        change = PeerChange(PublicKey(bytes((number % 250 + 1,)) * 32), remove=number % 2 == 1)
        a.configure(DeviceChange(peers=(change,)))
        if number % 10 == 0:
            a_tun.inject(packet(1, 2))
    await until(lambda: len(b_tun.delivered) == 30)


@scenario
async def test_a_large_change_is_in_effect_when_it_is_acknowledged(world: World) -> None:
    """The engine needs several turns to apply it, and the UAPI's reply waits for the last one."""
    a, a_tun, _b, b_tun = await world.pair()
    key = a.status().peers[0].public_key
    prefixes = tuple(AllowedIPChange(Prefix(4, (11 << 24) + number, 32)) for number in range(5000))
    a.configure(DeviceChange(peers=(PeerChange(key, allowed_ips=prefixes),)))
    await a.applied()
    last = packet(1, 2)[:16] + bytes((11, 0, 4999 >> 8, 4999 & 255)) + b"data"
    a_tun.inject(last)
    await until(lambda: b_tun.delivered)
    assert a.drops() == {}
    await a.close()
    await a.applied()


@scenario
async def test_drops_of_engine_and_protocol_are_reported_together(world: World) -> None:
    a, a_tun, b, _b_tun = await world.pair()
    a_tun.inject(packet(1, 99))
    b.configure(DeviceChange(replace_peers=True))
    a_tun.inject(packet(1, 2))
    await until(lambda: b.drops().get(DropReason.UNKNOWN_PEER))
    await until(lambda: a.drops().get(DropReason.NO_ROUTE) == 1)


@scenario
async def test_no_secret_is_printed_or_logged(world: World) -> None:
    """Events, log lines and representations contain no secret bytes (I33)."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    logger, handler = logging.getLogger("wyrmhole"), Collect()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        a, a_tun, _b, b_tun = await world.pair()
        a_tun.inject(packet(1, 2))
        await until(lambda: b_tun.delivered)
        await world.devices[0].close()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert lines
    private = a.status().private_key
    assert private is not None
    text = "\n".join(lines) + repr(a.status()) + repr(a.status().peers) + repr(DeviceChange(private_key=private))
    assert private.hex() not in text
    assert private.base64() not in text


def test_the_alarm_rings_at_its_deadline_and_not_after_disarming() -> None:
    import select

    alarm, clock = Alarm(), SystemClock()
    try:
        alarm.set(clock.boottime() + 3600 * 10**9)
        alarm.set(None)
        assert not select.select([alarm], [], [], 0)[0]
        alarm.set(1)
        assert select.select([alarm], [], [], 10)[0]
        alarm.clear()
        assert not select.select([alarm], [], [], 0)[0]
    finally:
        alarm.close()
        alarm.close()


class Full(PortableEngine):
    """An engine that, on request, has no descriptors left for another socket."""

    is_full = False

    def attach_bind(self, bind: Bind, port: int) -> None:
        if self.is_full:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        super().attach_bind(bind, port)


@scenario
async def test_without_descriptors_for_a_new_port_the_old_one_is_kept(world: World) -> None:
    tun, clock = MemoryTun("mem1", up=True), SystemClock()
    engine = Full(clock.boottime)
    device = Device(tun, lambda: world.network.bind("192.0.2.1"), engine, clock=clock)
    world.devices.append(device)
    device.begin()
    await until(lambda: device.is_up)
    device.configure(DeviceChange(listen_port=7))
    engine.is_full = True
    with pytest.raises(ConfigError, match="ulimit"):
        device.configure(DeviceChange(listen_port=8))
    assert device.status().listen_port == 7
    engine.is_full = False
    device.configure(DeviceChange(listen_port=8))
    assert device.status().listen_port == 8


@scenario
async def test_the_end_is_reported_once_without_a_task(world: World) -> None:
    calls: list[bool] = []
    device, tun = await world.device(1)
    device.on_closed = lambda: calls.append(device.is_closed)
    tun.delete()
    await until(lambda: device.is_closed)
    device.close_now()
    assert calls == [True]
