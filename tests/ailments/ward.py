"""A tunnel that should work, for ailments to break: a client's configuration and a peer of another implementation.

The client is a host of its own, with nothing but a configuration file. The peer is wireguard-go on the next host;
behind it, on 10.77.0.2, are a web server on port 80 and a name server that knows `web.internal`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.netns.host import end, until
from tests.netns.lab import Lab, inner
from tests.netns.node import Key, peer_section
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.exchange import Exchange
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.protocol.peer_store import PeerStore

OUTER_PORT = 51821
INSIDE = "10.77.0.2"


class Ward:
    """A context manager. Before any treatment, an ailment changes its attributes, or acts on its hosts and node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.own = Key.generate()
        """The client's key, as the peer knows it."""
        self.private = self.own.private
        self.address: str | None = "10.77.0.1/24"
        self.interface_lines: list[str] = []
        self.allowed_ips = ["10.77.0.0/24"]
        self.endpoint: str | None = f"192.0.2.2:{OUTER_PORT}"
        self.peer_lines: list[str] = []
        self.has_peer = True
        self.known_as = "10.77.0.1/32"
        """The client's address in the peer's AllowedIPs."""
        self.target, self.port = INSIDE, 80
        self.psk_there: str | None = None
        self.clock_was_ahead = False
        """Whether the peer has accepted a handshake of this key with a timestamp one hour ahead."""
        self.seconds = 17
        """How long traffic waits for answers. A peer is reported as silent after 15 s."""
        self.is_steady = False
        """Whether traffic continues after a ping was answered."""
        self.afterwards: Callable[[], object] | None = None
        """Called as soon as the peer is up."""
        self.meanwhile: Callable[[], object] | None = None
        """Called as soon as a treatment has a session."""
        self.heal: Callable[[], object] | None = None
        """Reverts `meanwhile` before the next treatment."""

    def __enter__(self) -> Self:
        self.lab = Lab(self.folder).__enter__()
        self.client, self.peer = self.lab.neighbours()
        self.node = self.lab.node(self.peer, "wireguard-go", port=OUTER_PORT)
        self.public = self.node.key.public
        self.inside = self.serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.lab.__exit__(kind, error, trace)

    def start_peer(self) -> None:
        """Start the peer with the attributes that the ailment left."""
        self.node.configure(peer_section(self.own.public, self.known_as, psk=self.psk_there))
        if not self.node.addresses:
            self.node.assign(*inner(2, 24, 64))
        self.node.up()
        if self.clock_was_ahead:
            self.client.send_udp("192.0.2.1", ("192.0.2.2", OUTER_PORT), future_initiation(self.own, self.public))
            until(lambda: self.node.show_of(self.own.public, "transfer") != ["0", "0"], "the peer has taken it")
        if self.afterwards is not None:
            self.afterwards()

    def has_session(self) -> bool:
        return self.node.latest_handshake(self.own.public) > 0

    def replace_peer(self, implementation: str) -> None:
        """Replace the peer by another implementation with the same key."""
        key = self.node.key
        self.node.stop()
        self.node = self.lab.node(self.peer, implementation, port=OUTER_PORT)
        self.node.key = key

    def restart_peer(self) -> None:
        self.node.stop()
        self.node.restart()

    def serve(self, *words: str) -> None:
        """Start the web server and the name server inside. `words` say how the name server misbehaves."""
        log = (self.folder / "inside.log").open("a")
        program = self.peer.spawn(sys.executable, "-m", "tests.ailments.inside", INSIDE, *words, output=log)
        self.lab.programs.append(program)
        self._server = program

    def serve_otherwise(self, *words: str) -> None:
        end(self._server)
        self.serve(*words)

    def config(self) -> str:
        lines = ["[Interface]", f"PrivateKey = {self.private}", *self.interface_lines]
        lines += [f"Address = {self.address}"] if self.address else []
        if self.has_peer:
            lines += ["", "[Peer]", f"PublicKey = {self.public}", f"AllowedIPs = {', '.join(self.allowed_ips)}"]
            lines += [f"Endpoint = {self.endpoint}"] if self.endpoint else []
            lines += self.peer_lines
        return "\n".join(lines) + "\n"

    def write_config(self, name: str) -> Path:
        path = self.folder / f"{name}.conf"
        path.write_text(self.config())
        path.chmod(0o600)
        return path


def future_initiation(own: Key, peer: str) -> bytes:
    """Return an initiation from a host whose clock is one hour ahead."""
    peers = PeerStore()
    exchange = Exchange(peers, os.urandom, lambda: time.time_ns() + 3600 * SECOND)
    exchange.set_private_key(PrivateKey.from_base64(own.private))
    message = exchange.create_initiation(peers.create(PublicKey.from_base64(peer)), 0)
    assert message is not None
    return message
