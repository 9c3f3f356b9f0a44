"""A test host: a network namespace, with commands and programs that run inside it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from tests.support.namespaces import Namespace
from wyrmhole.wire.checksum import checksum

PATIENCE = 20.0
"""Seconds after which a test gives up waiting: many times longer than any wait takes."""

T = TypeVar("T")


def until(look: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Return the first true result of `look`. Raises AssertionError with `what` after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (result := look()):
        assert time.monotonic() < deadline, f"not within {patience:.0f} s: {what}"
        time.sleep(0.01)
    return result


class Host(Namespace):
    """`links` are its ends of wires, in order of creation. A program is ended by the code that started it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]

    def try_run(
        self, *words: str, text: str | None = None, environ: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            env={**os.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *words: str, text: str | None = None, environ: Mapping[str, str] | None = None) -> str:
        """Return the command's standard output. Raises AssertionError with its output if it fails."""
        result = self.try_run(*words, text=text, environ=environ)
        assert result.returncode == 0, f"{' '.join(words)}: status {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout

    def spawn(
        self, *words: str, output: int | IO[str] | IO[bytes], environ: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
            text=True,
        )

    def readdress(self, link: str, former: str, latter: str) -> None:
        """Add `latter`, then remove `former`.

        A link that loses its first IPv4 address also loses the others of the same network.
        """
        self.ip("address", "del", former, "dev", link)
        self.address(link, latter)

    def forward(self) -> None:
        """Become a router."""
        self.sysctl("net.ipv4.ip_forward", "1")
        self.sysctl("net.ipv6.conf.all.forwarding", "1")

    def nft(self, rules: str) -> None:
        self.run("nft", "-f", "-", text=rules)

    def send_udp(self, source: str, destination: tuple[str, int], *payloads: bytes) -> None:
        """Send these payloads as datagrams, from a free port of the address."""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with self.entered(), socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.bind((source, 0))
            for payload in payloads:
                sender.sendto(payload, destination)

    def packets_sent(self, link: str) -> int:
        """Return the number of packets that the kernel has sent through the interface."""
        (status,) = json.loads(self.run("ip", "-s", "-j", "link", "show", link))
        return int(status["stats64"]["tx"]["packets"])

    def ping(self, address: str, count: int = 3, size: int = 56, *, fragment: bool = True) -> None:
        """Ping the address. Raises AssertionError unless every ping is answered."""
        answered = self.count_pings(address, count, size, fragment=fragment)
        assert answered == count, f"{answered} of {count} pings to {address} were answered"

    def count_pings(
        self, address: str, count: int = 3, size: int = 56, *, fragment: bool = True, wait: float = 10
    ) -> int:
        """Send `count` pings, 20 ms apart, and return how many are answered within `wait` seconds each.

        The default is long enough for a handshake whose first message was lost.
        ping(8) would wait for at most two round trips after the first answer, which a busy machine exceeds.
        """
        with self.entered():
            sock = echo_socket(address, fragment=fragment)
        with sock:
            identity = os.urandom(2)
            for number in range(count):
                # A ping that cannot be sent counts as unanswered.
                with contextlib.suppress(OSError):
                    sock.sendto(echo_request(sock.family, identity, number, size), (address, 0))
                time.sleep(0.02)
            return count_answers(sock, identity, count, wait)

    @contextmanager
    def pinging(self, address: str, interval: float = 0.02) -> Iterator[None]:
        """Send pings in the background, whether they are answered or not."""
        words = ("ping", "-q", "-n", "-i", str(interval), address)
        process = self.spawn(*words, output=subprocess.DEVNULL)
        try:
            yield
        finally:
            end(process)

    def can_ping(self, address: str) -> bool:
        return self.try_run("ping", "-q", "-n", "-c", "1", "-W", "1", address).returncode == 0


def echo_socket(address: str, *, fragment: bool) -> socket.socket:
    """Return a raw socket for pings to the address; without `fragment`, packets are never fragmented."""
    if ":" in address:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        level, discover = socket.IPPROTO_IPV6, 23
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        level, discover = socket.IPPROTO_IP, 10
    # Answers are read after all requests have been sent, so make room for thousands (SO_RCVBUFFORCE).
    sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)
    if not fragment:
        sock.setsockopt(level, discover, 2)  # IP_PMTUDISC_DO
    return sock


def echo_request(family: int, identity: bytes, number: int, size: int) -> bytes:
    """Return an echo request; the kernel fills in the checksum of ICMPv6."""
    tail = identity + number.to_bytes(2, "big") + bytes(size)
    if family == socket.AF_INET6:
        return bytes((128, 0, 0, 0)) + tail
    return bytes((8, 0)) + checksum(bytes((8, 0, 0, 0)) + tail).to_bytes(2, "big") + tail


def count_answers(sock: socket.socket, identity: bytes, count: int, wait: float) -> int:
    """Count distinct answers to the requests of that identity, up to `count`, for at most `wait` seconds."""
    deadline, seen = time.monotonic() + wait, set[bytes]()
    reply = 129 if sock.family == socket.AF_INET6 else 0
    while len(seen) < count and (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            packet = sock.recv(1 << 16)
        except OSError:
            continue
        message = packet if sock.family == socket.AF_INET6 else packet[(packet[0] & 15) * 4 :]
        if message[0] == reply and message[4:6] == identity:
            seen.add(message[6:8])
    return len(seen)


def end(process: subprocess.Popen[str]) -> None:
    """End a program with SIGTERM, or with SIGKILL if it does not exit."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0
