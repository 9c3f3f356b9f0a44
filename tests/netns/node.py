"""A test node: a daemon on a host, its interface, its keys, and the output of `wg` about it."""

from __future__ import annotations

import base64
import itertools
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.netns.host import Host, end, until
from tests.netns.implementations import COMMANDS, ENVIRON

SOCKETS = Path("/var/run/wireguard")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Key:
    """A private key and its public key, in the base64 form of wg(8)."""

    private: str = field(repr=False)
    public: str

    @classmethod
    def generate(cls) -> Key:
        key = X25519PrivateKey.generate()
        return cls(_text(key.private_bytes_raw()), _text(key.public_key().public_bytes_raw()))


def generate_psk() -> str:
    return _text(os.urandom(32))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def unique_name() -> str:
    """Return an unused interface name; it must be unique because the socket files of all namespaces share a folder."""
    return f"wt{os.getpid()}x{next(_numbers)}"


def peer_section(
    public: str, *allowed_ips: str, endpoint: str | None = None, psk: str | None = None, keepalive: int = 0
) -> str:
    lines = ["[Peer]", f"PublicKey = {public}", f"AllowedIPs = {', '.join(allowed_ips)}"]
    lines += [f"Endpoint = {endpoint}"] if endpoint else []
    lines += [f"PresharedKey = {psk}"] if psk else []
    lines += [f"PersistentKeepalive = {keepalive}"] if keepalive else []
    return "\n".join(lines) + "\n"


class Node:
    """A running daemon. The constructor starts it, and returns when it listens on its UAPI socket."""

    def __init__(self, host: Host, implementation: str, folder: Path, *, port: int = 51820) -> None:
        self.host = host
        self.implementation = implementation
        self.name = unique_name()
        self.key = Key.generate()
        self.port = port
        self.addresses: list[str] = []
        self.log = folder / f"{self.name}.{implementation}.log"
        self.socket = SOCKETS / f"{self.name}.sock"
        self._peers: tuple[str, ...] = ()
        self._prefixes: list[str] = []
        self._start()

    def _start(self) -> None:
        with self.log.open("a") as log:
            self.process = self.host.spawn(*COMMANDS[self.implementation], self.name, output=log, environ=ENVIRON)
        until(self._listens, f"{self.implementation} listens on {self.socket}")

    def restart(self, mtu: int = 1420) -> None:
        """Start the daemon again after it ended, with the same interface, configuration and addresses, up."""
        self._start()
        self.configure(*self._peers)
        self.host.address(self.name, *self._prefixes)
        self.up(mtu)

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"{self.implementation} ended: {self.log.read_text()[-2000:]}"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        end(self.process)
        self.socket.unlink(missing_ok=True)

    # Configuration

    def configure(self, *peers: str, fwmark: int = 0) -> None:
        """Set the whole configuration at once, because some implementations do not support changes."""
        lines = ["[Interface]", f"PrivateKey = {self.key.private}", f"ListenPort = {self.port}"]
        lines += [f"FwMark = {fwmark}"] if fwmark else []
        self._peers = peers
        self.wg("setconf", self.name, "/dev/stdin", text="\n".join([*lines, *peers]) + "\n")

    def wg(self, *words: str, text: str | None = None) -> str:
        return self.host.run("wg", *words, text=text)

    def set(self, *words: str, text: str | None = None) -> str:
        return self.wg("set", self.name, *words, text=text)

    def show(self, what: str) -> str:
        return self.wg("show", self.name, what).strip()

    def show_of(self, peer: str, what: str) -> list[str]:
        """Return the words after the peer's key in `wg show NAME WHAT`."""
        for line in self.show(what).splitlines():
            words = line.split()
            if words[0] == peer:
                return words[1:]
        raise AssertionError(f"{self.name} has no peer {peer}")

    def latest_handshake(self, peer: str) -> int:
        return int(self.show_of(peer, "latest-handshakes")[0])

    def assign(self, *addresses: str) -> None:
        """Assign addresses with prefix lengths; the interface stays down until `up`."""
        self.host.address(self.name, *addresses)
        self._prefixes += addresses
        self.addresses += [address.partition("/")[0] for address in addresses]

    def up(self, mtu: int = 1420) -> None:
        self.host.ip("link", "set", self.name, "mtu", str(mtu), "up")
        until(self._is_up, f"{self.implementation} has its socket open")

    def _is_up(self) -> bool:
        """Whether the daemon has noticed that the interface is up, which happens after the kernel's change."""
        assert self.process.poll() is None, f"{self.implementation} ended: {self.log.read_text()[-2000:]}"
        return self.has_socket()

    def has_socket(self) -> bool:
        """Whether a process on its host listens on its port."""
        return bool(self.host.run("ss", "-Huln", f"sport = :{self.port}"))

    def down(self) -> None:
        self.host.ip("link", "set", self.name, "down")


def stop_all(nodes: Sequence[Node]) -> None:
    for node in nodes:
        if node.process.poll() is None:
            node.process.terminate()
    for node in nodes:
        node.stop()


def logs(nodes: Sequence[Node]) -> str:
    """Return the last part of each daemon's log, for the report of a failed test."""
    return "\n".join(f"--- {node.log.name}\n{node.log.read_text()[-3000:]}" for node in nodes)
