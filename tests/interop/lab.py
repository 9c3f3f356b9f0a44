"""A small laboratory: hosts in network namespaces, daemons of any implementation on them, and what to do with them.

        host a --- veth --- host b            or        host a --- router --- host b

Everything is made here and removed here. Nothing waits blindly: a condition is polled until it holds or a deadline
passes. Interface names are unique in the machine, because socket files are not per namespace.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.net.namespaces import Namespace, namespaces

BIN = Path(sys.executable).parent
RUN = Path("/var/run/wireguard")
COMMANDS: dict[str, list[str]] = {
    "wyrmhole": [str(BIN / "wyrmholed"), "-f", "{name}"],
    "wyrmhole-short": [sys.executable, str(Path(__file__).with_name("short_timers.py")), "-f", "{name}"],
    "wireguard-go": ["wireguard", "-f", "{name}"],
    "boringtun": ["boringtun-cli", "-f", "--disable-drop-privileges", "{name}"],
    "gotatun": ["gotatun", "-f", "--disable-drop-privileges", "{name}"],
}
_numbers = itertools.count()


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The first true value of the condition, asked for again and again."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value


def run(command: Sequence[str], *, stdin: str | None = None, check: bool = True, seconds: float = 60.0) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Node:
    """One daemon on one host, with its key and inner addresses."""

    host: Namespace
    implementation: str
    inner4: str
    inner6: str
    port: int = 51820
    name: str = field(default_factory=lambda: f"wh{os.getpid() % 100_000}x{next(_numbers)}")
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.private = run(["wg", "genkey"]).strip()
        self.public = run(["wg", "pubkey"], stdin=self.private).strip()

    @property
    def socket(self) -> Path:
        return RUN / f"{self.name}.sock"

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.host.name, *arguments]

    def exec(self, *arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 60.0) -> str:
        return run(self.command(*arguments), stdin=stdin, check=check, seconds=seconds)

    def start(self) -> None:
        words = [word.format(name=self.name) for word in COMMANDS[self.implementation]]
        self.process = subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error", "WG_SUDO": "1"},
        )
        until(self._is_ready, f"{self.implementation} is ready")
        self.wg("set", self.name, "private-key", "/dev/stdin", "listen-port", str(self.port), stdin=self.private)
        self.host.address(self.name, f"{self.inner4}/24", f"{self.inner6}/64")
        self.host.ip("link", "set", self.name, "mtu", "1420", "up")

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.process.stderr.read() if self.process.stderr else b"").decode()
        return self.socket.exists() and bool(self.exec("wg", "show", self.name, "listen-port", check=False))

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        self.process = None
        self.socket.unlink(missing_ok=True)

    def wg(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.exec("wg", *arguments, stdin=stdin, check=check)

    def know(
        self, other: Node, endpoint: str | None = None, *, psk: str | None = None, extra: Sequence[str] = ()
    ) -> None:
        """Make the other a peer; `endpoint` is ip:port as wg takes it."""
        words = ["set", self.name, "peer", other.public, "allowed-ips", f"{other.inner4}/32,{other.inner6}/128"]
        words += ["endpoint", endpoint] if endpoint else []
        words += ["preshared-key", "/dev/stdin"] if psk else []
        self.wg(*words, *extra, stdin=psk)

    def ping(self, address: str, *, count: int = 1, interval: float = 0.2, check: bool = True) -> bool:
        done = subprocess.run(
            self.command("ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", "5", address),
            capture_output=True,
            timeout=60 + count * interval,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout.decode()
        return done.returncode == 0

    def reach(self, other: Node) -> None:
        """The tunnel works within some seconds, whoever has to start."""
        until(lambda: self.ping(other.inner4, check=False), f"{self.name} reaches {other.name}")

    def show(self, field_: str) -> dict[str, str]:
        """One column of `wg show` by public key."""
        lines = self.wg("show", self.name, field_).splitlines()
        return dict(line.split("\t", 1) for line in lines)

    def handshakes(self) -> int:
        return max(map(int, self.show("latest-handshakes").values()), default=0)

    @contextmanager
    def iperf_server(self) -> Iterator[None]:
        server = subprocess.Popen(
            self.command("iperf3", "-s", "-B", self.inner4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: ":5201" in self.exec("ss", "-ltn"), "iperf3 listens")
            yield
        finally:
            server.kill()
            server.wait()

    def iperf(self, other: Node, *arguments: str, seconds: int = 1) -> dict[str, Any]:
        """Run iperf3 to the other's server; the `end` part of its report."""
        out = self.exec(
            "iperf3", "-c", other.inner4, "-J", "-t", str(seconds), *arguments, check=False, seconds=seconds + 60
        )
        report: dict[str, Any] = json.loads(out)
        assert "error" not in report, report.get("error")
        end: dict[str, Any] = report["end"]
        return end


class Lab:
    """Hosts and nodes of one test."""

    def __init__(self, hosts: list[Namespace]) -> None:
        self.hosts = hosts
        self.nodes: list[Node] = []

    def node(self, implementation: str, host: Namespace, number: int, *, port: int = 51820) -> Node:
        node = Node(host, implementation, f"10.77.0.{number}", f"fd77::{number}", port)
        self.nodes.append(node)
        node.start()
        return node

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


@contextmanager
def laboratory(count: int) -> Iterator[Lab]:
    with namespaces(count) as hosts:
        lab = Lab(hosts)
        try:
            yield lab
        finally:
            lab.stop()


@contextmanager
def pair_of_hosts() -> Iterator[Lab]:
    """Two hosts on one link: 10.66.0.1, fd66::1 and 10.66.0.2, fd66::2."""
    with laboratory(2) as lab:
        a, b = lab.hosts
        a.join(b, "v0", "v0")
        for number, host in enumerate((a, b), start=1):
            host.address("v0", f"10.66.0.{number}/24", f"fd66::{number}/64")
        yield lab


@contextmanager
def hosts_behind_router() -> Iterator[Lab]:
    """a (10.66.1.2, fd66:1::2) - router - b (10.66.2.2, fd66:2::2); the router is the third host."""
    with laboratory(3) as lab:
        a, b, router = lab.hosts
        for number, host in enumerate((a, b), start=1):
            host.join(router, "v0", f"r{number}")
            host.address("v0", f"10.66.{number}.2/24", f"fd66:{number}::2/64")
            router.address(f"r{number}", f"10.66.{number}.1/24", f"fd66:{number}::1/64")
            host.ip("route", "add", "default", "via", f"10.66.{number}.1")
            host.ip("-6", "route", "add", "default", "via", f"fd66:{number}::1")
        router.sysctl("net.ipv4.ip_forward", "1")
        router.sysctl("net.ipv6.conf.all.forwarding", "1")
        yield lab


def connect(a: Node, b: Node, *, v6: bool = False, psk: str | None = None, responder_knows: bool = True) -> None:
    """Make the two nodes of `pair_of_hosts` peers of each other."""
    ends = ("[fd66::1]", "[fd66::2]") if v6 else ("10.66.0.1", "10.66.0.2")
    a.know(b, f"{ends[1]}:{b.port}", psk=psk)
    b.know(a, f"{ends[0]}:{a.port}" if responder_knows else None, psk=psk)
