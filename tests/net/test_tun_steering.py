"""Steering in the kernel: the queue of a TUN that each packet comes out of."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.support.namespaces import Namespace, namespaces
from tests.support.packets import ipv4, ipv6, tcp_segment, udp_datagram
from wyrmhole.cli.daemon.serve import steering_warning
from wyrmhole.net import tun_ioctl, tun_steering
from wyrmhole.net.linux_tun import LinuxTun
from wyrmhole.system import libc

HEADER = bytes(10)
MARK = b"a packet of the test"
OURS, THEIRS = "10.77.0.1", "10.77.0.2"
OURS_6, THEIRS_6 = "fd77::1", "fd77::2"


class Queues:
    """An interface with several queues, up, in its own namespace."""

    def __init__(self, namespace: Namespace, tun: LinuxTun) -> None:
        self.namespace = namespace
        self.tun = tun
        self.filenos = [queue.fileno for queue in tun.kernel_queues()]

    def take(self, count: int) -> list[tuple[int, bytes]]:
        """Return the next `count` packets that contain MARK, each with its queue."""
        taken: list[tuple[int, bytes]] = []
        poller = select.poll()
        for fileno in self.filenos:
            poller.register(fileno, select.POLLIN)
        while len(taken) < count:
            ready = poller.poll(5000)
            assert ready, f"{len(taken)} of {count} packets arrived"
            for fileno, _ in ready:
                packet = os.read(fileno, 70_000)[len(HEADER) :]
                if MARK in packet:
                    taken.append((self.filenos.index(fileno), packet))
        return taken

    def queues_of(self, count: int) -> set[int]:
        return {queue for queue, _ in self.take(count)}


@contextmanager
def interface(queues: int, *, steering: bool = True) -> Iterator[Queues]:
    with namespaces(1) as (namespace,):
        with namespace.entered():
            tun = LinuxTun.create("wyq", queues=queues, steering=steering)
        try:
            namespace.ip("link", "set", "wyq", "up")
            namespace.address("wyq", f"{OURS}/24", f"{OURS_6}/64")
            yield Queues(namespace, tun)
        finally:
            tun.close()


def raw_socket(namespace: Namespace) -> socket.socket:
    """Open a socket that sends arbitrary IP packets of both versions to the interface."""
    with namespace.entered():
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)


def send(sock: socket.socket, packet: bytes) -> None:
    sock.sendto(packet, ("wyq", 0x0800 if packet[0] >> 4 == 4 else 0x86DD, 0, 0, b""))


def v4(protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b"", source: str = OURS) -> bytes:
    return ipv4(source, THEIRS, payload, protocol=protocol, fragment=fragment, options=options)


def v6(protocol: int, payload: bytes) -> bytes:
    return ipv6(OURS_6, THEIRS_6, payload, protocol=protocol)


def udp(port: int, number: int = 0) -> bytes:
    return udp_datagram((port, 53), struct.pack(">I", number) + MARK)


def tcp(port: int, number: int = 0) -> bytes:
    return tcp_segment((port, 443), MARK, sequence=number)


def echo(kind: int, number: int) -> bytes:
    return struct.pack(">BBHHH", kind, 0, 0, number, number) + MARK


FRAGMENT_HEADER = struct.Struct(">BBHI")


def fragments_v4(port: int, number: int) -> Iterator[bytes]:
    """Yield a first fragment with the ports, then fragments with other bytes in their place."""
    yield v4(17, udp(port, number), fragment=0x2000)
    yield v4(17, os.urandom(16) + MARK, fragment=0x2004)
    yield v4(17, os.urandom(16) + MARK, fragment=0x0009)


def fragments_v6(port: int, number: int) -> Iterator[bytes]:
    yield v6(44, FRAGMENT_HEADER.pack(17, 0, 1, number) + udp(port, number))
    yield v6(44, FRAGMENT_HEADER.pack(17, 0, 4 << 3, number) + os.urandom(16) + MARK)


FLOWS: dict[str, list[bytes]] = {
    "UDP over IPv4": [v4(17, udp(1000, number)) for number in range(20)],
    "TCP over IPv4": [v4(6, tcp(1000, number)) for number in range(20)],
    "UDP after IPv4 options": [v4(17, udp(1000, number), options=bytes([1] * 8)) for number in range(20)],
    "ICMP": [v4(1, echo(8, number)) for number in range(20)],
    "IPv4 fragments": [packet for number in range(8) for packet in fragments_v4(1000 + number, number)],
    "UDP over IPv6": [v6(17, udp(1000, number)) for number in range(20)],
    "TCP over IPv6": [v6(6, tcp(1000, number)) for number in range(20)],
    "ICMPv6": [v6(58, echo(128, number)) for number in range(20)],
    "IPv6 fragments": [packet for number in range(8) for packet in fragments_v6(1000 + number, number)],
    "an unknown protocol": [v4(132, os.urandom(4) + MARK) for _ in range(20)],
}


@pytest.mark.network
@pytest.mark.parametrize("queues", [2, 4])
@pytest.mark.parametrize("packets", FLOWS.values(), ids=FLOWS)
def test_a_flow_has_one_queue(queues: int, packets: Sequence[bytes]) -> None:
    with interface(queues) as there, raw_socket(there.namespace) as sock:
        assert there.tun.unsteered is None
        for packet in packets:
            send(sock, packet)
        assert len(there.queues_of(len(packets))) == 1


@pytest.mark.network
@pytest.mark.parametrize("queues", [2, 4])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("step", [1, 2, 64])
def test_flows_with_different_ports_are_spread(queues: int, version: int, protocol: int, step: int) -> None:
    """Each queue gets at least half of its share of 256 ports. The ports that connect(2) chooses are all even."""
    head, body = {4: v4, 6: v6}[version], {6: tcp, 17: udp}[protocol]
    with interface(queues) as there, raw_socket(there.namespace) as sock:
        taken = []
        for port in range(40_000, 40_000 + 256 * step, step):
            send(sock, head(protocol, body(port)))
            taken += there.take(1)
    counts = [sum(queue == number for queue, _ in taken) for number in range(queues)]
    assert min(counts) >= 128 // queues, counts


@pytest.mark.network
def test_flows_with_different_addresses_are_spread() -> None:
    with interface(4) as there, raw_socket(there.namespace) as sock:
        taken = []
        for number in range(256):
            send(sock, v4(1, echo(8, 1), source=f"10.77.1.{number}"))
            taken += there.take(1)
    counts = [sum(queue == number for queue, _ in taken) for number in range(4)]
    assert min(counts) >= 32, counts


@pytest.mark.network
@pytest.mark.parametrize("packet", [v4(17, b"\1"), v6(17, b"\1")], ids=["IPv4", "IPv6"])
def test_a_truncated_packet_comes_out_of_the_first_queue(packet: bytes) -> None:
    with interface(4) as there, raw_socket(there.namespace) as sock:
        send(sock, packet)
        poller = select.poll()
        poller.register(there.filenos[0], select.POLLIN)
        while poller.poll(5000):
            if os.read(there.filenos[0], 2048)[len(HEADER) :] == packet:
                return
    raise AssertionError("the packet did not arrive")


ANSWERS = [(4, 17), (4, 6), (6, 17), (6, 6)]


def answer(version: int, protocol: int, port: int) -> bytes:
    """Return a packet from the other end of the flow.

    The kernel learns from it before it verifies the transport checksum, which may therefore be wrong. It does not
    contain MARK: an ICMP error that quotes it must not look like the flow.
    """
    theirs = struct.pack(">HH", 53 if protocol == 17 else 443, port)
    body = theirs + {6: tcp, 17: udp}[protocol](port)[4:].replace(MARK, bytes(len(MARK)))
    packet = {4: v4, 6: v6}[version](protocol, body)
    if version == 6:
        return packet[:8] + packet[24:40] + packet[8:24] + packet[40:]
    # The checksum does not depend on the order of the words.
    return packet[:12] + packet[16:20] + packet[12:16] + packet[20:]


def queues_around_answers(there: Queues, version: int, protocol: int) -> set[int]:
    """Write answers to each queue in turn; return the queues that the flow comes out of."""
    head, body = {4: v4, 6: v6}[version], {6: tcp, 17: udp}[protocol]
    seen: set[int] = set()
    with raw_socket(there.namespace) as sock:
        for fileno in (*there.filenos, *there.filenos):
            os.writev(fileno, (HEADER, answer(version, protocol, 1000)))
            send(sock, head(protocol, body(1000)))
            seen |= there.queues_of(1)
    return seen


@pytest.mark.network
@pytest.mark.parametrize("queues", [2, 4])
@pytest.mark.parametrize(("version", "protocol"), ANSWERS)
def test_answers_on_another_queue_do_not_move_a_flow(queues: int, version: int, protocol: int) -> None:
    with interface(queues) as there:
        assert len(queues_around_answers(there, version, protocol)) == 1


@contextmanager
def program(there: Queues, host: str) -> Iterator[socket.socket]:
    """Yield a program's UDP socket, connected to the other end."""
    with there.namespace.entered():
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.connect((host, 53))
        yield sock


@pytest.mark.network
@pytest.mark.parametrize("queues", [2, 4])
@pytest.mark.parametrize(("host", "version"), [(THEIRS, 4), (THEIRS_6, 6)])
def test_flows_of_udp_sockets_keep_their_queues_and_are_spread(queues: int, host: str, version: int) -> None:
    queues_seen = set()
    with interface(queues) as there:
        for _ in range(16):
            with program(there, host) as sock:
                sock.send(MARK)
                before = there.queues_of(1)
                for fileno in there.filenos:
                    os.writev(fileno, (HEADER, answer(version, 17, sock.getsockname()[1])))
                    sock.send(MARK)
                    assert there.queues_of(1) == before
                queues_seen |= before
    assert len(queues_seen) > 1, "all flows have the same queue"


@pytest.mark.network
@pytest.mark.parametrize("queues", [2, 4])
def test_the_fragments_of_one_datagram_have_one_queue(queues: int) -> None:
    with interface(queues) as there, program(there, THEIRS) as sock:
        sock.send(MARK * 400)
        assert len(there.queues_of(-(-(8 + 400 * len(MARK)) // 1400))) == 1


@pytest.mark.network
@pytest.mark.parametrize(("version", "protocol"), ANSWERS)
def test_without_steering_answers_move_a_flow(version: int, protocol: int) -> None:
    """This is why the steering program exists. It can be removed once kernels do not move flows any more."""
    with interface(2, steering=False) as there:
        assert there.tun.unsteered is not None
        assert queues_around_answers(there, version, protocol) == {0, 1}


@pytest.mark.network
def test_a_single_queue_needs_no_steering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun_steering, "steer", lambda _tun: pytest.fail("steering was requested"))
    with interface(1) as there:
        assert there.tun.unsteered is None


@pytest.mark.network
def test_a_failed_attempt_to_steer_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(tun_ioctl, "set_steering", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Invalid argument"):
        tun_steering.steer(-1)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.network
def test_without_permission_to_steer_the_tun_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_tun: int) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(tun_steering, "steer", refuse)
    with interface(2) as there:
        assert there.tun.unsteered is not None
        assert there.tun.unsteered.errno == errno.EPERM
        assert len(there.filenos) == 2
        assert "use one worker" in str(steering_warning(there.tun))


def test_an_architecture_without_a_known_bpf_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "_SYSCALL_BPF", {"vax": 1})
    with pytest.raises(OSError, match="is unknown"):
        tun_steering.steer(-1)
