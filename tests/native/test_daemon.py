"""The daemon on the native engine: workers, a busy interpreter, configuration under traffic, and silent peers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.host import Host, until
from tests.netns.implementations import COMMANDS
from tests.netns.lab import Lab
from tests.netns.node import Key, Node, peer_section
from tests.netns.traffic import Capture, iperf, iperf_server
from wyrmhole.cli.daemon.caretaker import COMMAND as CARETAKER

pytestmark = pytest.mark.network

ENDPOINT = "192.0.2.2:51821"
BACK = "192.0.2.1:51820"
NATIVE = ("--engine", "native")
SIZE = 100
WIRE_SIZE = 28 + SIZE + 32
"""A datagram of SIZE bytes in IPv4 and UDP is 128 bytes, which needs no padding."""
BULK = 1200


def pid_of(node: Node) -> int:
    (pid,) = [int(pid) for pid in children(node.process.pid)] or [node.process.pid]
    return pid


def threads_of(node: Node) -> set[str]:
    return {task.joinpath("comm").read_text().strip() for task in Path(f"/proc/{pid_of(node)}/task").iterdir()}


def times_of(node: Node) -> list[int]:
    """Nanoseconds of processor time of each worker, the busiest first."""
    tasks = Path(f"/proc/{pid_of(node)}/task").iterdir()
    workers = [task for task in tasks if re.fullmatch(r"wyrmhole-\d+\n", task.joinpath("comm").read_text())]
    return sorted((int(task.joinpath("schedstat").read_text().split()[0]) for task in workers), reverse=True)


def children(pid: int) -> list[str]:
    """Return the child processes, except the caretaker of the control socket."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if Path(f"/proc/{child}/comm").read_text().strip() != CARETAKER]


class Flows:
    """Numbered datagrams in several flows from one host to another, and the order of their arrival."""

    def __init__(self, sender: Host, receiver: Host, to: str, count: int, size: int = SIZE) -> None:
        self._size = size
        with receiver.entered():
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._receiver.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
            self._receiver.bind((to, 0))
        self._receiver.settimeout(5)
        with sender.entered():
            self._senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        for sock in self._senders:
            sock.connect(self._receiver.getsockname())
        self.arrived: list[list[int]] = [[] for _ in range(count)]

    def __enter__(self) -> Flows:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._receiver, *self._senders):
            sock.close()

    def exchange(self, numbers: range) -> None:
        """Send each number once in every flow, a few at a time, so that no queue overflows."""
        for first in range(numbers.start, numbers.stop, 20):
            part = range(first, min(first + 20, numbers.stop))
            for number in part:
                for flow, sock in enumerate(self._senders):
                    sock.send(struct.pack("<II", flow, number).ljust(self._size, b"."))
            for _ in range(len(part) * len(self._senders)):
                flow, number = struct.unpack_from("<II", self._receiver.recv(2048))
                self.arrived[flow].append(number)

    def send(self, numbers: range) -> None:
        for number in numbers:
            for flow, sock in enumerate(self._senders):
                sock.send(struct.pack("<II", flow, number).ljust(self._size, b"."))

    def take(self, count: int) -> None:
        for _ in range(count):
            self._take()

    def burst(self, numbers: range, answer_at: int) -> None:
        """Send all numbers at once, at most as many as a queue holds, and answer each flow at number `answer_at`."""
        count = len(self._senders)
        for number in numbers:
            for flow, sock in enumerate(self._senders):
                sock.send(struct.pack("<II", flow, number).ljust(self._size, b"."))
            if number - numbers.start == answer_at:
                for _ in range(count):
                    self._receiver.sendto(b"answer", self._take())
        for _ in range(count * len(numbers) - count):
            self._take()

    def _take(self) -> tuple[str, int]:
        sender: tuple[str, int]
        data, sender = self._receiver.recvfrom(2048)
        flow, number = struct.unpack_from("<II", data)
        self.arrived[flow].append(number)
        return sender


def with_workers(lab: Lab, workers: int) -> tuple[Host, Host, Node, Node]:
    """Return two hosts with a session between their daemons, both with `workers` workers."""
    name = f"workers-{workers}"
    COMMANDS[name] = (*COMMANDS["wyrmhole"], *NATIVE, "--workers", str(workers))
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, name, b, name, endpoint=ENDPOINT, back=BACK)
    a.ping(two.addresses[0])
    return a, b, one, two


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_workers_keep_the_order_of_flows_and_never_reuse_a_nonce(lab: Lab, workers: int) -> None:
    """Both sides have several workers, and every datagram on the wire is examined (I1, I4)."""
    a, b, one, two = with_workers(lab, workers)
    assert {thread for thread in threads_of(one) if re.fullmatch(r"wyrmhole-\d+", thread)} == {
        f"wyrmhole-{number}" for number in range(workers)
    }
    count, flows = 3000, 8
    with Capture(b, "eth0") as wire, Flows(a, b, two.addresses[0], flows) as traffic:
        seen: list[bytes] = []
        for first in range(0, count, 500):
            traffic.exchange(range(first, first + 500))
            seen += [datagram.payload for datagram in wire.datagrams[len(seen) :]]
        assert traffic.arrived == [list(range(count))] * flows
    nonces: Counter[tuple[int, int]] = Counter()
    for payload in seen:
        # Where we capture, a train has not been segmented yet; its datagrams have equal sizes.
        for at in range(0, len(payload), WIRE_SIZE):
            kind, receiver, counter = struct.unpack_from("<IIQ", payload, at)
            assert kind in (1, 2, 3, 4)
            nonces[receiver, counter] += kind == 4
    assert sum(nonces.values()) >= count * flows
    assert max(nonces.values()) == 1
    for node in (one, two):
        node.process.terminate()
        assert node.process.wait(10) == 0, "the daemon did not exit cleanly"


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """Stop the daemon, so that datagrams gather in its socket: more than it receives in one turn."""
    pid = pid_of(node)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def sent_bytes(node: Node) -> int:
    return int(node.show("transfer").split()[2])


def gather(traffic: Flows, one: Node, two: Node, numbers: range) -> None:
    """Let the datagrams of these numbers gather at the second node, which begins to receive them when this returns."""
    with stopped(two):
        target = sent_bytes(one) + len(numbers) * BULK
        traffic.send(numbers)
        until(lambda: sent_bytes(one) >= target, "the datagrams were sent")


@pytest.mark.parametrize("workers", [2, 4, 8, 16])
def test_idle_workers_help_one_that_has_a_backlog(lab: Lab, workers: int) -> None:
    """One flow arrives at one socket. It stays in order although several workers decrypt its datagrams."""
    a, b, one, two = with_workers(lab, workers)
    count, rounds = 400, 20
    with Flows(a, b, two.addresses[0], 1, BULK) as traffic:
        before = times_of(two)
        for number in range(rounds):
            gather(traffic, one, two, range(number * count, (number + 1) * count))
            traffic.take(count)
        assert traffic.arrived == [list(range(rounds * count))]
    after = times_of(two)
    assert sum(after[1:]) - sum(before[1:]) > 1_000_000, f"only one worker ran: {before}, {after}"


@pytest.mark.parametrize("workers", [2, 8])
def test_configuration_changes_while_workers_help(lab: Lab, workers: int) -> None:
    """Sockets are replaced during a backlog, and peers come and go. Only what the old socket still held is lost."""
    a, b, one, two = with_workers(lab, workers)
    stranger, count = Key.generate().public, 400
    with Flows(a, b, two.addresses[0], 1, BULK) as traffic:
        for number in range(10):
            gather(traffic, one, two, range(number * count, (number + 1) * count))
            two.set("peer", stranger, "allowed-ips", "10.9.0.0/16", "endpoint", "192.0.2.9:9")
            two.set("listen-port", "51822")
            two.set("peer", stranger, "remove")
            two.set("listen-port", "51821")
        a.ping(two.addresses[0])
        traffic.send(range(10 * count, 10 * count + 1))
        (arrived,) = traffic.arrived
        while not arrived or arrived[-1] < 10 * count:
            traffic.take(1)
        assert arrived == sorted(set(arrived))
    assert two.show("peers") == one.key.public


@pytest.mark.parametrize("workers", [2, 8])
def test_a_daemon_ends_cleanly_while_workers_help(lab: Lab, workers: int) -> None:
    a, b, one, two = with_workers(lab, workers)
    with Flows(a, b, two.addresses[0], 1, BULK) as traffic:
        gather(traffic, one, two, range(400))
        two.process.terminate()
        assert two.process.wait(10) == 0


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_answers_do_not_move_a_flow_to_another_worker(lab: Lab, workers: int) -> None:
    """A peer's answers arrive at one worker, and the kernel would move the flows there: see net/tun_steering.py."""
    a, b, _, two = with_workers(lab, workers)
    for _ in range(20):
        # New flows each time: a flow that was moved once would stay there.
        with Flows(a, b, two.addresses[0], 8) as traffic:
            traffic.burst(range(200), answer_at=20)
            assert traffic.arrived == [list(range(200))] * 8


def test_the_log_warns_that_packets_may_be_reordered(lab: Lab) -> None:
    COMMANDS["unsteered"] = (*COMMANDS["wyrmhole"], *NATIVE, "--workers", "2", "--without", "steering")
    COMMANDS["steered"] = (*COMMANDS["wyrmhole"], *NATIVE, "--workers", "2")
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, "unsteered", b, "steered", endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    assert "may be reordered" in one.log.read_text()
    assert "may be reordered" not in two.log.read_text()


def test_a_busy_interpreter_does_not_slow_the_tunnel(lab: Lab) -> None:
    """Python is not on the packet path: a thread in the daemon's process runs `while True: pass` for 10 s.

    The traffic has a fixed rate far below the machine's capacity, so the result does not depend on the machine. Without
    the native engine, packets would wait for the interpreter.
    """
    COMMANDS["busy"] = (str(COMMANDS["wyrmhole-short"][0]), str(Path(__file__).with_name("busy_interpreter.py")), "-f")
    COMMANDS["busy"] += NATIVE
    arrived = {}
    for implementation in ("wyrmhole", "busy"):
        with Lab(lab.folder) as fresh:
            a, b = fresh.neighbours()
            _, two = fresh.tunnel(a, implementation, b, "wyrmhole", endpoint=ENDPOINT)
            a.ping(two.addresses[0])
            with iperf_server(b, two.addresses[0]):
                total = iperf(a, two.addresses[0], "-u", "-b", "100M", "-l", "1200", seconds=10)["sum"]
            arrived[implementation] = total["packets"] - total["lost_packets"]
    assert arrived["busy"] >= 0.9 * arrived["wyrmhole"]


@contextlib.contextmanager
def uapi(node: Node) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(node.socket))
        client.settimeout(20)
        yield client


def request(client: socket.socket, text: str) -> str:
    client.sendall(text.encode())
    answer = b""
    while not answer.endswith(b"\n\n"):
        answer += client.recv(4096)
    return answer.decode()


def test_adding_and_removing_peers_does_not_affect_others(lab: Lab) -> None:
    """Peers and allowed IPs change 1,000 times each during a transfer with few packets in flight, so no queue fills."""
    COMMANDS["native"] = (*COMMANDS["wyrmhole"], *NATIVE)
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, "native", b, "native", endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    stranger = bytes(range(32)).hex()
    answers: list[str] = []

    def churn() -> None:
        with uapi(one) as client:
            for number in range(1000):
                added = f"set=1\npublic_key={stranger}\nendpoint=192.0.2.9:9\nallowed_ip=10.9.{number % 250}.0/24\n"
                moved = f"allowed_ip=10.10.0.0/16\nallowed_ip=fd99::{number % 999}/128\n\n"
                answers.append(request(client, added + moved))
                answers.append(request(client, f"set=1\npublic_key={stranger}\nremove=true\n\n"))

    thread = threading.Thread(target=churn)
    exchanged = 0
    with Flows(a, b, two.addresses[0], 4) as traffic:
        thread.start()
        try:
            while thread.is_alive() or exchanged < 1000:
                traffic.exchange(range(exchanged, exchanged + 100))
                exchanged += 100
        finally:
            thread.join(60)
        assert traffic.arrived == [list(range(exchanged))] * 4
    assert answers == ["errno=0\n\n"] * 2000
    assert one.show("peers") == two.key.public


def test_a_silent_peer_does_not_delay_other_peers(lab: Lab) -> None:
    """Its endpoint is on-link but unused, so its datagrams wait in the kernel for address resolution."""
    COMMANDS["native"] = (*COMMANDS["wyrmhole"], *NATIVE)
    a, b = lab.neighbours()
    one, two = lab.node(a, "native"), lab.node(b, "native", port=51821)
    lost = Key.generate()
    one.configure(
        peer_section(two.key.public, "10.77.0.2/32", endpoint=ENDPOINT),
        peer_section(lost.public, "10.77.0.9/32", endpoint="192.0.2.99:9"),
    )
    two.configure(peer_section(one.key.public, "10.77.0.1/32"))
    for number, node in ((2, two), (1, one)):
        node.assign(f"10.77.0.{number}/24")
        node.up()
    a.ping("10.77.0.2")
    with a.pinging("10.77.0.9", interval=0.002):
        a.ping("10.77.0.2", count=100)
    report = json.loads(a.run("ip", "-s", "-j", "link", "show", one.name))
    assert report[0]["stats64"]["tx"]["packets"] > 100


@pytest.mark.parametrize("without", ["tso", "uso", "gso", "gro", "spin", "tso,uso,gso,gro,spin,steering"])
def test_the_daemon_works_without_each_optional_feature(lab: Lab, without: str) -> None:
    name = f"without-{without}"
    COMMANDS[name] = (*COMMANDS["wyrmhole"], *NATIVE, "--without", without)
    a, b = lab.neighbours()
    _, two = lab.tunnel(a, name, b, name, endpoint=ENDPOINT)
    a.ping(two.addresses[0])
    with iperf_server(b, two.addresses[0]):
        for direction in ((), ("-R",)):
            assert iperf(a, two.addresses[0], *direction)["sum_received"]["bytes"] > 1_000_000


def test_the_cipher_backends_interoperate(lab: Lab) -> None:
    for aead in ("aws-lc", "auto"):
        COMMANDS[f"aead-{aead}"] = (*COMMANDS["wyrmhole"], *NATIVE, "--aead", aead)
    a, b = lab.neighbours()
    one, two = lab.tunnel(a, "aead-aws-lc", b, "aead-auto", endpoint=ENDPOINT)
    a.ping(two.addresses[0], size=1372)
    with iperf_server(b, two.addresses[0]):
        assert iperf(a, two.addresses[0])["sum_received"]["bytes"] > 1_000_000
    until(lambda: "Native engine with aws-lc" in one.log.read_text(), "the log names the library")
