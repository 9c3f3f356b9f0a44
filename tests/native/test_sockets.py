"""The native engine's system calls, on real UDP sockets over the test's own loopback, a memory TUN and given keys."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.support.edges import PLAIN, ListTun
from tests.support.engines import make_engine
from tests.support.namespaces import Namespace, namespaces
from tests.support.packets import ipv4
from tests.support.sides import A_INNER, B_INNER, OUR_KEY, params
from wyrmhole.engine.contract import EngineReport
from wyrmhole.net.sticky import emit_source
from wyrmhole.net.tun import KernelQueue
from wyrmhole.net.udp_bind import UdpBind
from wyrmhole.net.udp_offload import enable_gro
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.cookie import mac1_key
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

pytestmark = pytest.mark.network

UDP_SEGMENT = 103
LOCALHOST = {4: "127.0.0.1", 6: "::1"}


class PairTun(ListTun):
    """A TUN whose queues are one end of socket pairs; the test holds the other ends."""

    def __init__(self, queues: int) -> None:
        super().__init__()
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(queues)]
        for ours, _ in self.pairs:
            ours.setblocking(False)

    def kernel_queues(self) -> list[KernelQueue]:
        return [KernelQueue(ours.fileno(), True) for ours, _ in self.pairs]

    def suspect_end(self) -> None: ...

    def close(self) -> None:
        for pair in self.pairs:
            for end in pair:
                end.close()


class Side:
    """One engine, its sockets on the namespace's loopback, and one peer."""

    def __init__(self, namespace: Namespace, inner: str, *, initiator: bool, tun: ListTun | None = None) -> None:
        self.tun = tun or ListTun()
        self.engine = make_engine(lambda: 1000 * SECOND)
        self.engine.set_mac1_key(mac1_key(OUR_KEY))
        with namespace.entered():
            self.bind = UdpBind()
            self.port = self.bind.open(0)
        self.engine.attach_tun(self.tun)
        self.engine.attach_bind(self.bind, self.port)
        self.engine.add_peer(1)
        self.engine.insert_allowed_ip(1, Prefix.parse(f"{inner}/32"))
        self.initiator = initiator

    def know(self, other: Side, host: str) -> None:
        self.engine.set_endpoint(1, Endpoint(host, other.port))
        keys = params(10, 20, initiator=True) if self.initiator else params(20, 10, initiator=False)
        self.engine.install_keypair(1, keys)

    def turns(self) -> list[EngineReport]:
        for _ in range(8):
            self.engine.turn()
        reports: list[EngineReport] = self.engine.poll_reports(10_000)
        return reports

    @property
    def delivered(self) -> list[bytes]:
        taken, self.tun.written = [frame[10:] for frame in self.tun.written], []
        return taken

    def close(self) -> None:
        self.engine.close()
        self.bind.close()


@contextlib.contextmanager
def connected(host: str, tun: ListTun | None = None) -> Iterator[tuple[Namespace, Side, Side]]:
    """Yield a connected pair of sides; `tun` is the TUN of the second."""
    with namespaces(1) as (namespace,):
        a, b = Side(namespace, B_INNER, initiator=True), Side(namespace, A_INNER, initiator=False, tun=tun)
        try:
            b.know(a, host)
            a.know(b, host)
            for side in (b, a):
                side.turns()
                # Note a handshake message from the peer, so that the path is not new and trains may leave.
                side.engine.note_handshake(1, 92, 1000 * SECOND)
            yield namespace, a, b
        finally:
            for side in (a, b):
                side.close()


def sender(namespace: Namespace, to: Side) -> socket.socket:
    with namespace.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", to.port))
    return sock


@pytest.mark.parametrize("version", [4, 6])
def test_packets_of_both_families_are_exchanged(version: int) -> None:
    with connected(LOCALHOST[version]) as (_, a, b):
        packets = [ipv4(A_INNER, B_INNER, bytes((number,)) * 700) for number in range(60)]
        for packet in packets:
            a.tun.inject(PLAIN + packet)
        a.turns()
        b.turns()
        assert b.delivered == packets
        b.tun.inject(PLAIN + ipv4(B_INNER, A_INNER))
        b.turns()
        a.turns()
        assert a.delivered == [ipv4(B_INNER, A_INNER)]


def test_packets_read_together_reach_peers_of_both_families() -> None:
    with connected("127.0.0.1") as (namespace, a, b):
        with namespace.entered():
            other = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with other:
            other.bind(("::1", 0))
            other.settimeout(5)
            a.engine.add_peer(2)
            a.engine.insert_allowed_ip(2, Prefix.parse("10.0.0.3/32"))
            a.engine.set_endpoint(2, Endpoint("::1", other.getsockname()[1]))
            a.engine.install_keypair(2, params(11, 21, initiator=True))
            packets = [ipv4(A_INNER, B_INNER, bytes((number,)) * 32) for number in range(10)]
            for packet in packets:
                a.tun.inject(PLAIN + packet)
                a.tun.inject(PLAIN + ipv4(A_INNER, "10.0.0.3", packet[20:]))
            a.turns()
            b.turns()
            assert b.delivered == packets
            sizes = [32, *[32 + 64] * 10]
            received = [other.recv(1 << 16) for _ in sizes]
        assert [len(datagram) for datagram in received] == sizes
        assert [struct.unpack_from("<IIQ", datagram) for datagram in received] == [(4, 21, at) for at in range(11)]
        assert a.engine.drops() == {}


def test_datagrams_of_every_invalid_length_are_dropped_and_counted() -> None:
    """The test tries all lengths up to the longest UDP datagram."""
    with connected("127.0.0.1") as (namespace, _, b), sender(namespace, b) as sock:
        lengths = [*range(200), 1500, 9000, 65_507]
        for length in lengths:
            sock.send(bytes((5,)) * length)
            b.engine.turn()
        b.turns()
        assert b.engine.drops() == {DropReason.TOO_SHORT: 4, DropReason.UNKNOWN_TYPE: len(lengths) - 4}


@pytest.mark.parametrize("count", [64, 65, 128])
def test_a_train_of_128_segments_is_received_whole(count: int) -> None:
    """wireguard-go and others accept only 64 segments."""
    with connected("127.0.0.1") as (namespace, _, b), sender(namespace, b) as sock:
        segment = struct.pack("<IIQ", 4, 20, 7) + bytes(32)
        control = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(segment)))]
        try:
            sock.sendmsg([segment * count], control)
        except OSError:
            pytest.skip("this kernel limits trains to 64 datagrams")
        b.turns()
        assert b.engine.drops() == {DropReason.BAD_TAG: count}


def test_a_path_too_narrow_for_the_train_gets_single_datagrams() -> None:
    """After EMSGSIZE, single datagrams arrive as fragments."""
    with connected("127.0.0.1") as (namespace, a, b):
        namespace.ip("link", "set", "lo", "mtu", "1280")
        packets = [ipv4(A_INNER, B_INNER, bytes((number,)) * 1380) for number in range(30)]
        for packet in packets:
            a.tun.inject(PLAIN + packet)
        a.turns()
        for _ in range(10):
            b.turns()
        assert b.delivered == packets
        assert a.engine.drops() == {}


def test_a_full_tun_drops_only_the_packets_that_do_not_fit() -> None:
    """On EAGAIN, the engine does not wait; it counts the dropped packets."""
    tun = PairTun(1)
    with connected("127.0.0.1", tun) as (_, a, b), contextlib.closing(tun):
        reader = tun.pairs[0][1]
        reader.setblocking(False)

        def read() -> list[bytes]:
            frames = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    frames.append(reader.recv(1 << 16)[10:])
            return frames

        sent: list[bytes] = []
        while not b.engine.drops():
            sent.append(ipv4(A_INNER, B_INNER, struct.pack("<I", len(sent)) + bytes(1000)))
            a.tun.inject(PLAIN + sent[-1])
            a.turns()
            b.turns()
        assert b.engine.drops() == {DropReason.TUN_WRITE_FAILED: 1}
        assert read() == sent[:-1]
        a.tun.inject(PLAIN + sent[-1])
        a.turns()
        b.turns()
        assert read() == sent[-1:]


@pytest.mark.parametrize("worker", [0, 1])
def test_every_worker_tries_trains_again_after_a_route_change(worker: int) -> None:
    tun, bind = PairTun(2), UdpBind(shares=2)
    engine = make_engine(lambda: 1000 * SECOND, workers=2)
    with namespaces(1) as (namespace,), contextlib.ExitStack() as stack:
        with namespace.entered():
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            port = bind.open(0)
        for close in (tun.close, bind.close, engine.close):
            stack.callback(close)
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        assert enable_gro(receiver)
        engine.attach_tun(tun)
        engine.attach_bind(bind, port)
        engine.set_mac1_key(mac1_key(OUR_KEY))
        engine.add_peer(1)
        engine.insert_allowed_ip(1, Prefix.parse(f"{B_INNER}/32"))
        engine.set_endpoint(1, Endpoint(*receiver.getsockname()))
        engine.install_keypair(1, params(10, 20, initiator=True))
        assert len(receiver.recv(1 << 16)) == 32
        engine.note_handshake(1, 92, 1000 * SECOND)

        def arrive() -> list[int]:
            packet = ipv4(A_INNER, B_INNER, bytes(1388))
            for _ in range(10):
                tun.pairs[worker][1].send(PLAIN + packet)
            engine.turn()
            sizes = [len(receiver.recv(1 << 16))]
            while sum(sizes) < 10 * (len(packet) + 32):
                sizes.append(len(receiver.recv(1 << 16)))
            return sizes

        arrive()
        assert arrive() == [14_400]
        namespace.ip("link", "set", "lo", "mtu", "1280")
        assert arrive() == [1440] * 10
        namespace.ip("link", "set", "lo", "mtu", "65536")
        engine._native.forget_paths()
        assert arrive() == [14_400]


def test_an_answer_leaves_from_the_address_that_was_contacted() -> None:
    """The train's control messages contain both PKTINFO and the GRO size."""
    with connected("127.0.0.1") as (namespace, a, b):
        namespace.address("lo", "10.99.0.7/32")
        a.engine.set_endpoint(1, Endpoint("10.99.0.7", b.port))
        for number in range(10):
            a.tun.inject(PLAIN + ipv4(A_INNER, B_INNER, bytes((number,)) * 600))
        a.turns()
        b.turns()
        with namespace.entered():
            spy = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        with spy:
            spy.settimeout(5)
            b.tun.inject(PLAIN + ipv4(B_INNER, A_INNER))
            b.turns()
            packet = spy.recv(65_535)
        assert socket.inet_ntoa(packet[12:16]) == "10.99.0.7"


def test_a_removed_source_address_is_forgotten() -> None:
    with connected("127.0.0.1") as (_, a, b):
        b.engine.set_endpoint(1, Endpoint("127.0.0.1", a.port), emit_source("10.99.0.7", 1))
        b.tun.inject(PLAIN + ipv4(B_INNER, A_INNER))
        b.turns()
        a.turns()
        assert a.delivered == [ipv4(B_INNER, A_INNER)]
        assert b.engine.drops() == {}


def test_a_pending_icmp_error_loses_no_datagram() -> None:
    """The next send or receive returns ECONNREFUSED, which concerns an earlier datagram."""
    with connected("127.0.0.1") as (namespace, a, b):
        with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            closed_port = closed.getsockname()[1]
        a.engine.set_endpoint(1, Endpoint("127.0.0.1", closed_port))
        a.tun.inject(PLAIN + ipv4(A_INNER, B_INNER, b"lost"))
        a.turns()
        a.engine.set_endpoint(1, Endpoint("127.0.0.1", b.port))
        a.tun.inject(PLAIN + ipv4(A_INNER, B_INNER, b"comes"))
        a.turns()
        b.turns()
        assert b.delivered == [ipv4(A_INNER, B_INNER, b"comes")]


def test_a_bind_may_be_replaced_between_two_packets() -> None:
    with connected("127.0.0.1") as (namespace, a, b):
        for number in range(3):
            with namespace.entered():
                fresh = UdpBind()
                port = fresh.open(0)
            former, b.bind = b.bind, fresh
            b.engine.attach_bind(fresh, port)
            former.close()
            a.engine.set_endpoint(1, Endpoint("127.0.0.1", port))
            a.tun.inject(PLAIN + ipv4(A_INNER, B_INNER, b"%d" % number))
            a.turns()
            b.turns()
            assert b.delivered == [ipv4(A_INNER, B_INNER, b"%d" % number)]
        b.engine.detach_bind()
        b.tun.inject(PLAIN + ipv4(B_INNER, A_INNER))
        b.turns()
        assert b.engine.drops() == {DropReason.SEND_FAILED: 1}
