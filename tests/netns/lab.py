"""Laboratories: hosts in several topologies, nodes on them, and tunnels between nodes, for the time of a test.

    with Lab(tmp_path) as lab:
        a, b = lab.neighbours()
        one, two = lab.tunnel(a, "wyrmhole", b, "wireguard-go")
        a.ping(two.addresses[0])

Neighbours have outer addresses in 192.0.2.0/24 and 2001:db8::/64. Inside a tunnel, the n-th node has 10.77.0.n and
fd77::n.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.netns.host import Host, end
from tests.netns.node import Node, generate_psk, logs, peer_section, stop_all

INNER_V4 = "10.77.0.{}"
INNER_V6 = "fd77::{}"


class Lab:
    """A context manager. Raises OSError or CalledProcessError if namespaces cannot be created."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: list[Host] = []
        self.nodes: list[Node] = []
        self.programs: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for program in self.programs:
                end(program)
            stop_all(self.nodes)
        finally:
            for host in self.hosts:
                host.delete()
        if error is not None:
            error.add_note(logs(self.nodes))

    # Wires

    def host(self) -> Host:
        host = Host()
        self.hosts.append(host)
        return host

    def wire(self, a: Host, b: Host, a_addresses: tuple[str, ...] = (), b_addresses: tuple[str, ...] = ()) -> None:
        """Join two hosts by a veth pair. A host's ends are called eth0, eth1, ... in order of creation."""
        names = []
        for host in (a, b):
            names.append(f"eth{len(host.links)}")
            host.links.append(names[-1])
        a.join(b, names[0], names[1])
        a.address(names[0], *a_addresses)
        b.address(names[1], *b_addresses)

    def neighbours(self) -> tuple[Host, Host]:
        """Return two hosts on one wire: 192.0.2.1 and .2, 2001:db8::1 and ::2."""
        a, b = self.host(), self.host()
        self.wire(a, b, ("192.0.2.1/24", "2001:db8::1/64"), ("192.0.2.2/24", "2001:db8::2/64"))
        return a, b

    def routed(self, mtu: int = 1500) -> tuple[Host, Host, Host]:
        """Return a client, a router and a server; `mtu` is the MTU of the wire from router to server.

        client 192.0.2.2 (2001:db8:1::2) - .1 router 198.51.100.1 (2001:db8:2::1) - .2 server
        """
        client, router, server = self.host(), self.host(), self.host()
        self.wire(client, router, ("192.0.2.2/24", "2001:db8:1::2/64"), ("192.0.2.1/24", "2001:db8:1::1/64"))
        self.wire(router, server, ("198.51.100.1/24", "2001:db8:2::1/64"), ("198.51.100.2/24", "2001:db8:2::2/64"))
        router.forward()
        for host, v4, v6 in ((client, "192.0.2.1", "2001:db8:1::1"), (server, "198.51.100.1", "2001:db8:2::1")):
            host.ip("route", "add", "default", "via", v4)
            host.ip("-6", "route", "add", "default", "via", v6)
        for host, link in ((router, "eth1"), (server, "eth0")):
            host.ip("link", "set", link, "mtu", str(mtu))
        return client, router, server

    def switched(self, count: int) -> list[Host]:
        """Return hosts on one switch: 192.0.2.1, .2, ..., 2001:db8::1, ::2, ..."""
        switch = self.host()
        switch.ip("link", "add", "switch", "type", "bridge")
        switch.ip("link", "set", "switch", "up")
        hosts = [self.host() for _ in range(count)]
        for number, host in enumerate(hosts, 1):
            self.wire(host, switch, (f"192.0.2.{number}/24", f"2001:db8::{number}/64"))
            switch.ip("link", "set", switch.links[-1], "master", "switch")
        return hosts

    # Tunnels

    def node(self, host: Host, implementation: str, *, port: int = 51820) -> Node:
        node = Node(host, implementation, self.folder, port=port)
        self.nodes.append(node)
        return node

    def tunnel(
        self,
        a: Host,
        a_implementation: str,
        b: Host,
        b_implementation: str,
        *,
        endpoint: str,
        back: str | None = None,
        psk: bool = False,
        keepalive: int = 0,
        mtu: int = 1420,
    ) -> tuple[Node, Node]:
        """Return two nodes that are peers of each other and up.

        The first one knows the endpoint of the second (HOST:PORT). With `back`, the second also knows that of the
        first; otherwise, only the first one can initiate.
        """
        one, two = self.node(a, a_implementation), self.node(b, b_implementation, port=51821)
        secret = generate_psk() if psk else None
        one.configure(peer_section(two.key.public, *inner(2), endpoint=endpoint, psk=secret, keepalive=keepalive))
        two.configure(peer_section(one.key.public, *inner(1), endpoint=back, psk=secret))
        # Start the initiator last: if nobody received its first message, the second would follow after 5 s.
        for number, node in ((2, two), (1, one)):
            node.assign(*inner(number, 24, 64))
            node.up(mtu)
        return one, two


def inner(number: int, v4_bits: int = 32, v6_bits: int = 128) -> tuple[str, str]:
    """Return the inner addresses of the node with that number."""
    return f"{INNER_V4.format(number)}/{v4_bits}", f"{INNER_V6.format(number)}/{v6_bits}"
