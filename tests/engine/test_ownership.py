"""An engine owns the descriptors it polls: once an edge is closed, it never touches the next file of that number."""

from __future__ import annotations

import copy
import errno
import gc
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.edges import PLAIN, ListBind, ListTun
from tests.support.engines import make_engine
from tests.support.namespaces import Namespace, namespaces
from tests.support.packets import ipv4
from tests.support.scripted import Script
from tests.support.sides import A_INNER, A_OUTER, B_INNER, B_OUTER, OUR_KEY, Side, params
from wyrmhole.net.tun import KernelQueue, TunEvent, TunOffloads
from wyrmhole.net.udp_bind import UdpBind
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.cookie import mac1_key
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

TURNS = 4


class QueueTun:
    """A TUN that is always up. Its queue is one end of a socket pair, which the engine uses by number."""

    name, mtu = "queue0", 1420
    offloads = TunOffloads(tso=False, uso=False)

    def __init__(self) -> None:
        ours, self.program = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.program.setblocking(False)
        ours.setblocking(False)
        self._fd = ours.detach()
        self._events = [TunEvent.UP]

    def fileno(self) -> int:
        return self._fd

    def events_fileno(self) -> int:
        return -1

    def poll_events(self) -> list[TunEvent]:
        events, self._events = self._events, []
        return events

    def kernel_queues(self) -> list[KernelQueue]:
        return [KernelQueue(self._fd, True)]

    def suspect_end(self) -> None: ...

    def lend(self) -> QueueTun:
        lent = copy.copy(self)
        lent._fd = os.dup(self._fd)
        return lent

    def read_into(self, buffer: bytearray | memoryview) -> int:
        try:
            return os.readv(self._fd, (buffer,))
        except BlockingIOError:
            return 0

    def write(self, parts: Sequence[Buffer]) -> bool:
        return os.writev(self._fd, parts) > 0

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Receiver:
    """The responder's engine, on a TUN that the test chooses."""

    def __init__(self, tun: Any, bind: Any, port: int = 51820) -> None:
        self.engine = make_engine(lambda: 1000 * SECOND)
        self.engine.set_mac1_key(mac1_key(OUR_KEY))
        self.engine.attach_tun(tun)
        self.engine.attach_bind(bind, port)
        self.engine.add_peer(1)
        self.engine.insert_allowed_ip(1, Prefix.parse(f"{A_INNER}/32"))
        self.engine.set_endpoint(1, A_OUTER)
        self.engine.install_keypair(1, params(20, 10, initiator=False))

    def turn(self) -> None:
        for _ in range(TURNS):
            self.engine.turn()
            self.engine.poll_reports()


@contextmanager
def successor(
    number: int, kind: socket.SocketKind = socket.SOCK_DGRAM
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open socket pairs until one end gets `number`; yield that end and its other end."""
    pairs: list[tuple[socket.socket, socket.socket]] = []
    try:
        while not any(end.fileno() == number for pair in pairs for end in pair):
            pairs.append(socket.socketpair(socket.AF_UNIX, kind))
            assert len(pairs) < 500, "the number is not free"
        pair = pairs[-1]
        for end in pair:
            end.setblocking(False)
        yield pair if pair[0].fileno() == number else (pair[1], pair[0])
    finally:
        for first, second in pairs:
            first.close()
            second.close()


def sealed(*packets: bytes) -> list[bytes]:
    """Return the initiator's datagrams: the keepalive that confirms the session, then the packets."""
    a = Side(B_INNER, B_OUTER)
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    a.tunnel(*packets)
    return a.take()


def test_nothing_is_written_to_a_reused_tun_descriptor() -> None:
    tun, bind = QueueTun(), ListBind(lambda *datagram: None)
    receiver = Receiver(tun, bind)
    number = tun.fileno()
    tun.close()
    with successor(number) as (_, other):
        for datagram in sealed(ipv4(A_INNER, B_INNER)):
            bind.arrive(datagram, A_OUTER.sockaddr)
            receiver.turn()
        with pytest.raises(BlockingIOError):
            other.recv(2000)
        receiver.engine.close()


def test_nothing_is_read_from_a_reused_tun_descriptor() -> None:
    tun, bind = QueueTun(), ListBind(lambda *datagram: None)
    receiver = Receiver(tun, bind)
    number = tun.fileno()
    tun.close()
    with successor(number) as (reused, other):
        other.send(PLAIN + ipv4(B_INNER, A_INNER))
        for datagram in sealed(ipv4(A_INNER, B_INNER)):
            bind.arrive(datagram, A_OUTER.sockaddr)
            receiver.turn()
        assert reused.recv(2000) == PLAIN + ipv4(B_INNER, A_INNER)
        receiver.engine.close()


@pytest.mark.portable_only
@pytest.mark.parametrize("edge", ["tun", "bind"])
def test_a_reused_descriptor_does_not_wake_the_engine(edge: str) -> None:
    tun, bind = QueueTun(), UdpLike()
    receiver = Receiver(tun, bind)
    closing: QueueTun | UdpLike = tun if edge == "tun" else bind
    number = closing.fileno()
    closing.close()
    with successor(number) as (_, other):
        other.send(b"readable")
        assert receiver.engine._loop._poll.poll(0) == []
        receiver.engine.close()


class UdpLike(ListBind):
    """A bind that closes its descriptor when it is closed."""

    def __init__(self) -> None:
        super().__init__(lambda *datagram: None)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def test_close_releases_every_descriptor() -> None:
    gc.collect()  # Close descriptors that earlier tests left to the collector.
    tun, bind = QueueTun(), UdpLike()
    before = os.listdir("/proc/self/fd")
    receiver = Receiver(tun, bind)
    receiver.turn()
    receiver.engine.detach_bind()
    receiver.engine.attach_bind(bind, 1)
    receiver.engine.close()
    assert os.listdir("/proc/self/fd") == before
    tun.close()


def test_a_failed_attach_keeps_the_former_sockets() -> None:
    tun, former, latter = ListTun(), UdpLike(), UdpLike()
    receiver = Receiver(tun, former)
    number = latter.fileno()
    latter.close()
    latter._fd = number
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        receiver.engine.attach_bind(latter, 1)
    latter._fd = -1
    if receiver.engine.kind.value == "portable":
        for datagram in sealed(ipv4(A_INNER, B_INNER)):
            former.arrive(datagram, A_OUTER.sockaddr)
            receiver.turn()
        assert tun.written == [PLAIN + ipv4(A_INNER, B_INNER)]
    receiver.engine.close()


# Kernel sockets


@pytest.mark.network
def test_nothing_is_sent_on_a_reused_socket_descriptor() -> None:
    with namespaces(1) as (namespace,), far_socket(namespace) as far, namespace.entered():
        bind = UdpBind()
        port = bind.open(0)
        tun = ListTun()
        receiver = Receiver(tun, bind, port)
        receiver.engine.install_keypair(1, params(20, 10, initiator=True))
        receiver.engine.set_endpoint(1, Endpoint("127.0.0.1", far.getsockname()[1]))
        receiver.turn()
        numbers = set(bind.filenos())
        bind.close()
        reused_sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(100)]
        assert numbers & {reused.fileno() for reused in reused_sockets}
        tun.inject(PLAIN + ipv4(B_INNER, A_INNER))
        receiver.turn()
        receiver.engine.close()
        for reused in reused_sockets:
            reused.close()
        while True:
            try:
                _, sender = far.recvfrom(2000)
            except BlockingIOError:
                break
            assert sender[1] == port


@contextmanager
def far_socket(namespace: Namespace) -> Iterator[socket.socket]:
    with namespace.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


@pytest.mark.network
@pytest.mark.portable_only
def test_a_socket_reopened_by_the_bind_is_polled() -> None:
    script = Script()
    with namespaces(1) as (namespace,), far_socket(namespace) as far, namespace.entered():
        bind = UdpBind(socket_factory=script.factory)
        port = bind.open(0)
        tun = ListTun()
        receiver = Receiver(tun, bind, port)
        script.receiving = [errno.ECONNABORTED] * 4
        far.sendto(b"", ("127.0.0.1", port))
        receiver.turn()
        assert bind.counters.reopened == 1
        for datagram in sealed(ipv4(A_INNER, B_INNER)):
            far.sendto(datagram, ("127.0.0.1", port))
            receiver.turn()
        assert tun.written == [PLAIN + ipv4(A_INNER, B_INNER)]
        receiver.engine.close()
        bind.close()
