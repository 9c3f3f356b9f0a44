"""Creating and starting a device: the one function that programs use, and the errors that `start` raises."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

import pytest

from tests.device.devices import packet, until
from wyrmhole.device.assemble import make_device
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.device.device import Device
from wyrmhole.engine.contract import EngineFailed
from wyrmhole.engine.select import EngineUnavailable
from wyrmhole.errors import ConfigError, DeviceError
from wyrmhole.net.memory_bind import MemoryNetwork
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

STRANGER = PublicKey(b"\x07" * 32)


class Made:
    """Devices on one memory network; all of them are closed at the end."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.devices: list[Device] = []

    def device(self, number: int, *, up: bool = True) -> tuple[Device, MemoryTun]:
        tun = MemoryTun(f"mem{number}", up=up)
        device = make_device(tun, bind_factory=lambda: self.network.bind(f"192.0.2.{number}"), engine="portable")
        self.devices.append(device)
        return device, tun


def run(scenario: Callable[[Made], Awaitable[None]]) -> None:
    async def closing() -> None:
        made = Made()
        try:
            await asyncio.wait_for(scenario(made), 30)
        finally:
            for device in made.devices:
                await device.close()

    asyncio.run(closing())


def keys(count: int) -> list[PrivateKey]:
    return [PrivateKey(os.urandom(32)) for _ in range(count)]


def change(own: PrivateKey, port: int, other: PrivateKey, other_number: int) -> DeviceChange:
    peer = PeerChange(
        other.public_key(),
        endpoint=Endpoint(f"192.0.2.{other_number}", other_number),
        allowed_ips=(AllowedIPChange(Prefix.parse(f"10.0.0.{other_number}/32")),),
    )
    return DeviceChange(private_key=own, listen_port=port, peers=(peer,))


def test_a_missing_engine_raises_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def select(kind: str, *, clock: object, options: object) -> object:
        raise EngineUnavailable(f"no {kind} engine: build one")

    monkeypatch.setattr("wyrmhole.device.assemble.select_engine", select)
    tun = MemoryTun("mem0")
    with pytest.raises(DeviceError, match="no native engine: build one"):
        make_device(tun, engine="native")
    assert tun.fileno() >= 0, "the caller still owns the TUN"
    tun.close()


def test_a_failed_assembly_closes_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Engine:
        def close(self) -> None:
            closed.append(self)

    def fail(*_arguments: object, **_options: object) -> Device:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("wyrmhole.device.assemble.select_engine", lambda *_, **__: (Engine(), ""))
    monkeypatch.setattr("wyrmhole.device.assemble.Device", fail)
    with pytest.raises(OSError, match="too many open files"):
        make_device(MemoryTun("mem0"))
    assert len(closed) == 1


def test_start_returns_when_the_interface_is_up() -> None:
    async def scenario(made: Made) -> None:
        (own,) = keys(1)
        device, _ = made.device(1)
        await device.start(DeviceChange(private_key=own, listen_port=7))
        assert device.is_up
        assert device.status().listen_port == 7
        assert (device.engine_name, device.engine_reason) == ("portable", "Portable engine: requested")

    run(scenario)


def test_start_raises_for_a_port_in_use() -> None:
    async def scenario(made: Made) -> None:
        holder = made.network.bind("192.0.2.1")
        holder.open(7)
        device, _ = made.device(1)
        with pytest.raises(ConfigError, match="UDP port 7") as caught:
            await device.start(DeviceChange(listen_port=7))
        assert caught.value.errno_value == errno.EADDRINUSE
        assert not device.is_up
        holder.close()

    run(scenario)


def test_start_raises_if_another_socket_takes_the_port_before_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(made: Made) -> None:
        device, _ = made.device(1)
        monkeypatch.setattr(device, "_probe_port", lambda port: setattr(device, "_port", port))
        holder = made.network.bind("192.0.2.1")
        holder.open(7)
        with pytest.raises(ConfigError, match="UDP port 7"):
            await device.start(DeviceChange(listen_port=7))
        holder.close()

    run(scenario)


def test_start_raises_if_the_interface_stays_down() -> None:
    async def scenario(made: Made) -> None:
        device, _ = made.device(1, up=False)
        with pytest.raises(DeviceError, match="the engine does not report its interface as up"):
            await device.start(DeviceChange(), limit=0)

    run(scenario)


def test_start_raises_with_the_reason_of_an_engine_failure() -> None:
    async def scenario(made: Made) -> None:
        device, _ = made.device(1, up=False)
        starting = asyncio.ensure_future(device.start(DeviceChange()))
        await asyncio.sleep(0)
        device._driver._calls.on_failure(EngineFailed("the moon is not full").reason)
        with pytest.raises(DeviceError, match="did not come up: the moon is not full"):
            await starting

    run(scenario)


def test_start_raises_if_the_interface_is_deleted() -> None:
    async def scenario(made: Made) -> None:
        device, tun = made.device(1, up=False)
        starting = asyncio.ensure_future(device.start(DeviceChange()))
        await asyncio.sleep(0)
        tun.delete()
        with pytest.raises(DeviceError, match="did not come up: its interface is gone"):
            await starting

    run(scenario)


def test_ensure_session_starts_a_session_and_the_status_shows_it() -> None:
    async def scenario(made: Made) -> None:
        own, other = keys(2)
        a, _ = made.device(1)
        b, _ = made.device(2)
        await a.start(change(own, 1, other, 2))
        before = a.peer(other.public_key())
        assert before is not None
        assert (before.session_age, before.handshake_age, before.unanswered) == (None, None, 0)
        await b.start(change(other, 2, own, 1))
        assert a.ensure_session(other.public_key())
        await until(lambda: all(each.session_age is not None for each in (*a.status().peers, *b.status().peers)))
        after = a.peer(other.public_key())
        assert after is not None
        assert after.session_age is not None and after.session_age >= 0
        assert after.handshake_age is not None and (after.attempts, after.unanswered, after.problem) == (0, 0, None)
        assert after == a.status().peers[0].__class__(**{name: getattr(after, name) for name in after.__slots__})

    run(scenario)


def test_queries_about_an_unknown_peer_return_nothing() -> None:
    async def scenario(made: Made) -> None:
        device, _ = made.device(1)
        await device.start(DeviceChange())
        assert not device.ensure_session(STRANGER) and not device.request_handshake(STRANGER)
        assert device.peer(STRANGER) is None and not device.has_peer(STRANGER)
        assert device.owner(Prefix.parse("10.0.0.2/32")) is None

    run(scenario)


def test_the_owner_of_a_prefix_has_exactly_this_prefix() -> None:
    async def scenario(made: Made) -> None:
        own, other = keys(2)
        device, _ = made.device(1)
        await device.start(change(own, 1, other, 2))
        assert device.owner(Prefix.parse("10.0.0.2/32")) == other.public_key()
        assert device.owner(Prefix.parse("10.0.0.0/24")) is None

    run(scenario)


def test_unanswered_initiations_are_counted() -> None:
    async def scenario(made: Made) -> None:
        own, other = keys(2)
        device, _ = made.device(1)
        await device.start(change(own, 1, other, 2))
        device.ensure_session(other.public_key())
        await until(lambda: device.status().peers[0].unanswered == 1)
        status = device.peer(other.public_key())
        assert status is not None and status.unanswered_for >= 0 and status.attempts == 0

    run(scenario)


def test_drain_returns_when_the_tun_is_empty() -> None:
    async def scenario(made: Made) -> None:
        device, tun = made.device(1)
        await device.start(DeviceChange())
        tun.inject(packet(1, 2))
        await asyncio.to_thread(device.drain, 20.0)
        await device.applied()
        assert sum(device.drops().values()) == 1, "no peer owns the address, so the packet was dropped"

    run(scenario)


def test_drain_ends_at_its_limit_and_when_the_device_closes() -> None:
    async def scenario(made: Made) -> None:
        device, tun = made.device(1)
        tun.inject(packet(1, 2))
        device.drain(0.002)
        await device.close()
        device.drain(20.0)

    run(scenario)
