"""A private network behind a tunnel, and witnesses outside that record what a program leaks.

    with Site(tmp_path) as site:
        with site.program("proxy", site.config) as program: ...

Inside, on the peer (wireguard-go by default), are web servers on port 80 and, with TLS, 443 of 10.77.0.2 and fd77::2,
a UDP echo on port 7, and a name server on 10.77.0.2 that knows `web.internal`. Outside, where the program runs, the
server in resolv.conf records every question, and a capture records the wire.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import trustme

from tests.netns.host import PATIENCE, Host, end
from tests.netns.lab import Lab, inner
from tests.netns.node import Key, peer_section

OUTER_PORT = 51821
ETH_P_ALL = 3
MARK = bytes(12) + b"\x88\xb5" + b"passed".ljust(46)
"""A frame with an EtherType reserved for experiments (IEEE 802)."""
PORT_UNREACHABLE = b"\x03\x03"
"""Type and code of ICMP (RFC 792)."""
NAMES = ("web.internal", "10.77.0.2", "fd77::2")
RED = (0xC8, 0x14, 0x32)


class Site:
    """`client` is the host of the program, `peer` the host of the private network."""

    def __init__(self, folder: Path, implementation: str = "wireguard-go") -> None:
        """`implementation` is the peer's, by its name in `tests.netns.implementations`."""
        self._folder = folder
        self._implementation = implementation
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            lab = stack.enter_context(Lab(self._folder))
            self.client, self.peer = lab.neighbours()
            self._join(lab)
            self.authority = self._certify()
            self.inside = Program(self.peer, "inside", self._folder / "server.pem")
            stack.callback(self.inside.close)
            stack.enter_context(own_resolv_conf(self.client))
            self.outside = Program(self.client, "outside")
            stack.callback(self.outside.close)
            self.wire = Wire(self.client, "eth0")
            stack.callback(self.wire.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (log := self._folder / "program.log").exists():
            error.add_note(log.read_text()[-5000:])
        self._stack.__exit__(kind, error, trace)

    def program(self, name: str, *words: str | Path) -> Program:
        """Start a program of `tests.library.programs` on the client's host. `with` ends it."""
        return Program(self.client, name, *words, log=self._folder / "program.log")

    def run_python(self, *words: str) -> str:
        """Run a Python program on the client's host, and return its output."""
        return self.client.run(sys.executable, *words)

    @contextmanager
    def python(self, *words: str) -> Iterator[str]:
        """Run a Python program on the client's host until the block ends, and yield its first line."""
        process = self.client.spawn(sys.executable, *words, output=subprocess.PIPE)
        try:
            yield cast(IO[str], process.stdout).readline()
        finally:
            end(process)

    @property
    def config(self) -> Path:
        return self._folder / "tunnel.conf"

    def assert_nothing_leaked(self) -> None:
        """Check that the host's resolver received no question, and that the wire carried only the tunnel."""
        asked, strange = self.outside.ask("asked"), self.wire.strange()
        assert not asked, f"the host's resolver was asked: {asked}"
        assert not strange, f"the wire carried {strange}"

    def _join(self, lab: Lab) -> None:
        key, node = Key.generate(), lab.node(self.peer, self._implementation, port=OUTER_PORT)
        node.configure(peer_section(key.public, *inner(1)))
        node.assign(*inner(2, 24, 64))
        node.up()
        interface = [
            "[Interface]",
            f"PrivateKey = {key.private}",
            f"Address = {', '.join(inner(1, 24, 64))}",
            "DNS = 10.77.0.2, internal",
        ]
        peer = peer_section(node.key.public, "10.77.0.0/24", "fd77::/64", endpoint=f"192.0.2.2:{OUTER_PORT}")
        self.config.touch(mode=0o600)
        self.config.write_text("\n".join([*interface, "", peer]))

    def _certify(self) -> Path:
        authority, file = trustme.CA(), self._folder / "authority.pem"
        authority.issue_cert(*NAMES).private_key_and_cert_chain_pem.write_to_path(str(self._folder / "server.pem"))
        authority.cert_pem.write_to_path(str(file))
        return file


class Program:
    """A function of `tests.library.programs` in its own process on a host. Both sides exchange lines of JSON.

    The constructor starts it, and returns after its first line, `hello`.
    """

    def __init__(self, host: Host, name: str, *words: str | Path, log: Path | None = None) -> None:
        command = host.command(sys.executable, "-X", "dev", "-m", "tests.library.programs", name, *map(str, words))
        self._errors = log.open("w") if log else None
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.hello = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, *question: object) -> Any:
        to = cast(IO[str], self._process.stdin)
        to.write(json.dumps(question) + "\n")
        to.flush()
        return self._answer()

    def close(self) -> None:
        """Close its input, which ends it."""
        cast(IO[str], self._process.stdin).close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        end(self._process)
        if self._errors is not None:
            self._errors.close()

    def _answer(self) -> Any:
        line = cast(IO[str], self._process.stdout).readline()
        assert line, f"the program ended with {self._process.wait(10)}"
        return json.loads(line)


class Wire:
    """A capture of an interface: whatever is neither tunnel traffic nor housekeeping of a link (ARP, ICMPv6)."""

    def __init__(self, host: Host, link: str) -> None:
        with host.entered():
            self._capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._marker = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._capture.bind((link, 0))
        self._marker.bind((link, 0))
        self._marked = threading.Event()
        self._capture.settimeout(0.1)
        self._strange: list[str] = []
        self._tunnel = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def strange(self) -> list[str]:
        """Return the unexpected frames up to now. A marker frame of ours proves that no earlier frame is missing."""
        self._marked.clear()
        self._marker.send(MARK)
        assert self._marked.wait(PATIENCE), "the capture does not see our marker frame"
        return list(self._strange)

    def forget(self) -> None:
        self._strange.clear()

    @property
    def tunnel_packets(self) -> int:
        return self._tunnel

    def close(self) -> None:
        self._capture.close()
        self._marker.close()
        self._thread.join()

    def _read(self) -> None:
        while self._capture.fileno() >= 0:
            try:
                frame = self._capture.recv(128)
            except TimeoutError:
                continue
            except OSError:
                return
            if frame == MARK:
                self._marked.set()
                continue
            what = describe(frame)
            self._tunnel += what == "tunnel"
            if what not in ("tunnel", "housekeeping"):
                self._strange.append(what)


def describe(frame: bytes) -> str:
    """Return `tunnel`, `housekeeping`, or the protocol and ports of anything else."""
    kind = int.from_bytes(frame[12:14])
    if kind == 0x0806:
        return "housekeeping"
    if kind == 0x0800:
        protocol, payload = frame[23], frame[14 + 4 * (frame[14] & 15) :]
    elif kind == 0x86DD:
        protocol, payload = frame[20], frame[54:]
    else:
        return f"ethertype {kind:#x}"
    if protocol in (0, 58) and kind == 0x86DD:
        return "housekeeping"
    if protocol == socket.IPPROTO_ICMP and payload[:2] == PORT_UNREACHABLE:
        # The peer sent to a tunnel that was just closed. The ICMP error quotes its packet.
        quoted = describe(frame[:14] + payload[8:])
        return quoted if quoted == "tunnel" else f"an ICMP error about {quoted}"
    ports = int.from_bytes(payload[:2]), int.from_bytes(payload[2:4])
    if protocol == socket.IPPROTO_UDP and OUTER_PORT in ports:
        return "tunnel"
    return f"protocol {protocol} from port {ports[0]} to {ports[1]}"


@contextmanager
def own_resolv_conf(host: Host) -> Iterator[None]:
    """Write a resolv.conf for the host. `ip netns exec` mounts the files of its folder over those of /etc."""
    folder = Path("/etc/netns") / host.name
    made = not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "resolv.conf").write_text("nameserver 127.0.0.53\noptions timeout:1 attempts:1\n")
    try:
        yield
    finally:
        (folder / "resolv.conf").unlink()
        folder.rmdir()
        if made:
            folder.parent.rmdir()
