"""`wyrmhole doctor CONFIG` with peers on the loopback: real handshakes, without namespaces or privileges."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

import wyrmhole
from tests.netns.node import Key
from tests.support.loopback import run
from wyrmhole.device.assemble import make_device
from wyrmhole.device.clock import SystemClock
from wyrmhole.device.config import AllowedIPChange, DeviceChange, PeerChange
from wyrmhole.library.diagnosis import daemon_contact, outside, steps
from wyrmhole.library.diagnosis.steps import Finding
from wyrmhole.net.memory_tun import MemoryTun
from wyrmhole.protocol.constants import UNDER_LOAD_HOLD
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.wire import ip
from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

OWN = Key.generate()


class FarPeer:
    """A device on a free UDP port that answers pings to any address inside."""

    def __init__(self) -> None:
        self.key = Key.generate()
        self._tun = MemoryTun("far", 1420)
        self.device = make_device(self._tun, engine="portable")

    @property
    def port(self) -> int:
        return self.device.status().listen_port

    async def start(self) -> None:
        inside = tuple(AllowedIPChange(Prefix.parse(each)) for each in ("10.77.0.1/32", "fd77::1/128"))
        peer = PeerChange(PublicKey.from_base64(OWN.public), allowed_ips=inside)
        change = DeviceChange(private_key=PrivateKey.from_base64(self.key.private), listen_port=0, peers=(peer,))
        await self.device.start(change)

    async def answer(self) -> None:
        while True:
            while self._tun.delivered:
                self._tun.inject(pong(bytes(self._tun.pop())))
            await asyncio.sleep(0.001)


def pong(packet: bytes) -> bytes:
    """Return the reply to an echo request."""
    if ip.version_of(packet) == 4:
        body = b"\0\0\0\0" + packet[24:]
        body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
        return packet[:12] + packet[16:20] + packet[12:16] + body
    # The type grows by one in the high byte, so the checksum, a complement, shrinks by as much.
    total = int.from_bytes(packet[42:44], "big") - 0x0100
    total = total if total >= 0 else total + 0xFFFF
    return packet[:8] + packet[24:40] + packet[8:24] + b"\x81\0" + total.to_bytes(2, "big") + packet[44:]


@asynccontextmanager
async def far_peers(count: int = 1) -> AsyncIterator[list[FarPeer]]:
    peers = [FarPeer() for _ in range(count)]
    tasks = []
    try:
        for peer in peers:
            await peer.start()
            tasks.append(asyncio.ensure_future(peer.answer()))
        yield peers
    finally:
        for task in tasks:
            task.cancel()
        for peer in peers:
            await peer.device.close()


def config(*peers: str, address: str = "10.77.0.1/24", more: str = "") -> str:
    return f"[Interface]\nPrivateKey = {OWN.private}\nAddress = {address}\n{more}\n" + "\n".join(peers)


def section(public: str, endpoint: str | None, allowed_ips: str = "10.77.0.2/32") -> str:
    where = f"Endpoint = {endpoint}\n" if endpoint else ""
    return f"[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed_ips}\n{where}"


async def findings(text: str, names: Sequence[str] = ()) -> list[Finding]:
    return [finding async for finding in wyrmhole.diagnose(text, names=names)]


def found(all_of_them: Sequence[Finding], step: str, level: str | None = None) -> str:
    return "; ".join(each.found for each in all_of_them if each.step == step and level in (None, each.level))


async def none(config: object) -> None:
    """Find no daemon: tests must not query other daemons of this host."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten timeouts: a host that is silent in these tests stays silent."""
    monkeypatch.setattr(steps, "LATE_ICMP_SECONDS", 0.1)
    monkeypatch.setattr(steps, "HANDSHAKE_SECONDS", 8.0)
    monkeypatch.setattr(steps, "PING_SECONDS", 1.0)
    monkeypatch.setattr(outside, "ICMP_SECONDS", 0.1)
    monkeypatch.setattr(steps, "find_daemon", none)


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield a port without a listener, reserved for the test."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def silent_port() -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.mark.parametrize("endpoint", ["127.0.0.1", "[::1]"])
def test_working_tunnel_has_a_session_a_ping_and_its_mtu(endpoint: str) -> None:
    async def scenario() -> None:
        async with far_peers() as (peer,):
            text = config(section(peer.key.public, f"{endpoint}:{peer.port}"), more="MTU = 1380")
            got = await findings(text)
        assert not [each for each in got if each.level == "bad"], got
        assert "10.77.0.2 answers" in found(got, "ping", "good")
        assert "packets of 1380 bytes pass" in found(got, "path MTU", "good")

    run(scenario())


def test_ipv6_inside() -> None:
    async def scenario() -> None:
        async with far_peers() as (peer,):
            text = config(section(peer.key.public, f"127.0.0.1:{peer.port}", "fd77::2/128"), address="fd77::1/64")
            got = await findings(text, ["fd77::2", "fd78::1", "10.77.0.2"])
        assert "fd77::2 answers" in found(got, "ping", "good")
        assert "fd77::2 answers" in found(got, "host", "good")
        assert "fd78::1 is in no peer's AllowedIPs; 10.77.0.2 is in no peer's AllowedIPs" in found(got, "host", "bad")

    run(scenario())


def test_each_peer_has_its_own_findings() -> None:
    async def scenario() -> None:
        with closed_port() as closed:
            async with far_peers(2) as (one, two):
                got = await findings(
                    config(
                        section(one.key.public, f"127.0.0.1:{one.port}", "10.77.0.2/32"),
                        section(two.key.public, f"127.0.0.1:{two.port}", "10.77.0.3/32"),
                        section(Key.generate().public, f"127.0.0.1:{closed}", "10.77.0.4/32"),
                        section(Key.generate().public, None, "10.77.0.5/32"),
                    )
                )
        assert len([each for each in got if each.step == "handshake" and each.level == "good"]) == 2
        assert "10.77.0.2 answers" in found(got, "ping") and "10.77.0.3 answers" in found(got, "ping")
        assert f"127.0.0.1:{closed} reports that nothing listens" in found(got, "route", "bad")
        assert "no Endpoint is configured" in found(got, "endpoint", "note")
        assert len({each.peer for each in got if each.peer}) == 4

    run(scenario())


def test_next_address_of_a_name_is_used_if_the_first_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with closed_port() as closed:
            async with far_peers() as (peer,):

                async def look_up(host: str, port: int) -> list[Endpoint]:
                    # Sending to a broadcast address fails without SO_BROADCAST.
                    return [Endpoint("255.255.255.255", 9), Endpoint("127.0.0.1", closed), Endpoint("::1", peer.port)]

                monkeypatch.setattr(outside, "look_up_host", look_up)
                got = await findings(config(section(peer.key.public, "gateway.test:51820")))
        assert f"gateway.test:51820 resolves to [::1]:{peer.port}" in found(got, "endpoint", "good")
        other = f"127.0.0.1:{closed}, another address of the name, fails: Connection refused"
        assert other in found(got, "endpoint", "poor")
        assert "there is a session" in found(got, "handshake", "good")

    run(scenario())


def test_wrong_key_is_listed_as_a_likely_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "HANDSHAKE_SECONDS", 0.2)

    async def scenario() -> None:
        async with far_peers() as (peer,):
            got = await findings(config(section(Key.generate().public, f"127.0.0.1:{peer.port}")))
        (handshake,) = [each for each in got if each.step == "handshake"]
        assert handshake.level == "bad" and "to 1 initiation," in handshake.found
        assert "PublicKey here is not its key" in handshake.advice and "clock" in handshake.advice
        assert got[-1] is handshake, "without a session no further step runs"

    run(scenario())


def test_peer_under_load_is_reached_with_its_cookie() -> None:
    async def scenario() -> None:
        async with far_peers() as (peer,):
            peer.device._interface.exchange._under_load_until = SystemClock().boottime() + UNDER_LOAD_HOLD * 100
            got = await findings(config(section(peer.key.public, f"127.0.0.1:{peer.port}")))
        assert "after a cookie: the peer is under load" in found(got, "handshake", "good")

    run(scenario())


def test_peer_that_only_sends_cookies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "HANDSHAKE_SECONDS", 0.5)

    async def scenario() -> None:
        async with far_peers() as (peer,):
            peer.device._interface.exchange._under_load_until = SystemClock().boottime() + UNDER_LOAD_HOLD * 100
            got = await findings(config(section(peer.key.public, f"127.0.0.1:{peer.port}")))
        assert "sent a cookie reply and then nothing" in found(got, "handshake", "bad")

    run(scenario())


def test_many_silent_peers_take_as_long_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr(steps, "LATE_ICMP_SECONDS", 1.0)

    async def scenario() -> None:
        with silent_port() as port:
            peers = [
                section(Key.generate().public, f"127.0.0.1:{port}", f"10.77.1.{number}/32") for number in range(40)
            ]
            begin = SystemClock().boottime()
            got = await findings(config(*peers))
            seconds = (SystemClock().boottime() - begin) / 1e9
        assert len([each for each in got if each.step == "handshake"]) == steps.MAX_PEERS
        assert "only the first 16 of 40 peers" in found(got, "peers", "note")
        assert seconds < steps.MAX_PEERS * 0.5

    run(scenario())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# nothing\n", "does not configure a tunnel"),
        ("[Interface]\nAddress = 10.0.0.1/24\n[Peer]\nPublicKey = {peer}\n", "no PrivateKey is configured"),
        ("[Interface]\nPrivateKey = {own}\nAddress = 10.0.0.1/24\n", "no [Peer] is configured"),
        ("[Interface]\nPrivateKey = {own}\n[Peer]\nPublicKey = {peer}\n", "no Address is configured"),
    ],
)
def test_missing_section_or_key_is_the_only_finding(text: str, expected: str) -> None:
    got = run(findings(text.format(own=OWN.private, peer=Key.generate().public)))
    (bad,) = [each for each in got if each.level == "bad"]
    assert expected in bad.found and bad.advice


def test_listen_port_in_use_is_found() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
        finding = steps._listen_port(port)
    assert finding is not None and finding.level == "bad" and str(port) in finding.found and finding.advice
    assert steps._listen_port(0) is None


def test_nat_is_mentioned_only_if_it_matters() -> None:
    assert outside.is_translated("192.168.1.7") and outside.is_translated("100.64.0.1")
    assert not outside.is_translated("198.51.100.1") and not outside.is_translated("fd77::1")


# A daemon of this host with the same key


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder with a short name, because the path of a Unix socket is limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="wyr") as name:
        yield Path(name)


@contextmanager
def daemon(folder: Path, name: str, reply: str) -> Iterator[None]:
    """Run a UAPI socket that answers every request with `reply`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f"{name}.sock"))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if connection.recv(100):
                        connection.sendall(reply.encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def look_for_daemon(folder: Path) -> object:
    parsed = wyrmhole.Config.parse(config(section(Key.generate().public, None)), source="/etc/wireguard/office.conf")
    return run(daemon_contact.find_daemon(parsed, str(folder)))


def state(private: str) -> str:
    return f"private_key={PrivateKey.from_base64(private).raw.hex()}\nlisten_port=1\nerrno=0\n\n"


def test_daemon_with_another_key_is_ignored(folder: Path) -> None:
    with daemon(folder, "office", state(Key.generate().private)):
        assert look_for_daemon(folder) is None
    assert look_for_daemon(folder / "missing") is None


def test_daemon_with_the_key_in_another_namespace_is_left_alone(folder: Path) -> None:
    with daemon(folder, "elsewhere", state(OWN.private)):
        finding = look_for_daemon(folder)
    assert isinstance(finding, Finding) and finding.level == "bad"
    assert "elsewhere" in finding.found and "another network namespace" in finding.found


def test_daemon_of_the_name_that_does_not_answer_is_left_alone(folder: Path) -> None:
    with daemon(folder, "office", "errno=1\n\n"):
        finding = look_for_daemon(folder)
    assert isinstance(finding, Finding) and "office" in finding.found and "root" in finding.advice


def test_daemon_with_the_key_in_this_namespace_is_queried(folder: Path) -> None:
    """The interface is `lo`, which always exists."""
    with daemon(folder, "lo", state(OWN.private)):
        assert isinstance(look_for_daemon(folder), daemon_contact.DaemonContact)
