"""Two engines with given keys, each between a TUN and a bind made of lists."""

from __future__ import annotations

from pathlib import Path

from tests.support.edges import PLAIN, ListBind, ListTun
from tests.support.engines import make_engine
from wyrmhole.engine.contract import TunChanged
from wyrmhole.net.tun import TunOffloads
from wyrmhole.protocol.constants import (
    REJECT_AFTER_MESSAGES,
    REKEY_AFTER_MESSAGES,
    SECOND,
)
from wyrmhole.protocol.cookie import CookieGenerator, mac1_key
from wyrmhole.protocol.data_plane import (
    NEVER,
    KeypairParams,
    Report,
)
from wyrmhole.protocol.drops import DropReason
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.prefix import Prefix

A_OUTER, B_OUTER = Endpoint("192.0.2.1", 51820), Endpoint("192.0.2.2", 51820)
A_INNER, B_INNER = "10.0.0.1", "10.0.0.2"
OUR_KEY = PublicKey(b"\x05" * 32)


def thread_names() -> set[str]:
    """Return the names of all threads of the process, including those without Python."""
    return {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}


class Side:
    """One engine with its TUN, its bind, and one peer, the other side."""

    def __init__(self, other_inner: str, other_outer: Endpoint, *, offloads: TunOffloads | None = None) -> None:
        self.now = 1000 * SECOND
        self.sent: list[tuple[SockAddr, bytes, bytes | None, int]] = []
        self.tun = ListTun(offloads)
        self.bind = ListBind(lambda *datagram: self.sent.append(datagram))
        self.engine = make_engine(lambda: self.now)
        self.engine.set_mac1_key(mac1_key(OUR_KEY))
        self.engine.attach_tun(self.tun)
        self.engine.attach_bind(self.bind, 51820)
        self.engine.add_peer(1)
        self.engine.insert_allowed_ip(1, Prefix.parse(f"{other_inner}/32"))
        self.engine.set_endpoint(1, other_outer)
        self.engine.poll_reports()

    def __del__(self) -> None:
        # The descriptors are plain numbers, so nothing else would close them, and property tests make hundreds.
        self.engine.close()

    def tunnel(self, *packets: bytes) -> None:
        """Insert packets into the TUN, and process them together."""
        for packet in packets:
            self.tun.inject(PLAIN + packet)
        self.engine.turn()

    def network(self, data: bytes, sender: Endpoint, *, segment: int = 0, source: bytes | None = None) -> None:
        self.bind.arrive(data, sender.sockaddr, segment=segment, source=source)
        self.engine.turn()

    def take(self) -> list[bytes]:
        """Return the datagrams sent since the last call."""
        taken, self.sent = [data for _, data, _, _ in self.sent], []
        return taken

    @property
    def delivered(self) -> list[bytes]:
        """Return the packets written to the TUN since the last call, without their virtio headers."""
        taken, self.tun.written = [frame[10:] for frame in self.tun.written], []
        return taken

    def reports(self) -> list[Report]:
        return [report for report in self.engine.poll_reports(10_000) if not isinstance(report, TunChanged)]

    def drops(self) -> dict[DropReason, int]:
        return dict(self.engine.drops())


def params(local: int, remote: int, *, initiator: bool, birth: int = 1000 * SECOND) -> KeypairParams:
    """Return the parameters of one side of a session. The initiator's index determines the keys."""
    first = (local if initiator else remote).to_bytes(4, "big") * 8
    second = bytes(255 - byte for byte in first)
    send, receive = (first, second) if initiator else (second, first)
    return KeypairParams(
        local, remote, send, receive, initiator, birth,
        rekey_send_at=birth + 120 * SECOND if initiator else NEVER,
        rekey_receive_at=birth + 165 * SECOND if initiator else NEVER,
        reject_at=birth + 180 * SECOND,
        rekey_after_messages=REKEY_AFTER_MESSAGES,
        reject_after_messages=REJECT_AFTER_MESSAGES,
        send_until=birth + 179 * SECOND,
    )  # fmt: skip


def sides() -> tuple[Side, Side]:
    return Side(B_INNER, B_OUTER), Side(A_INNER, A_OUTER)


def connected() -> tuple[Side, Side]:
    """Return two sides with a session. `a` is the initiator; its confirming keepalive was delivered and reported."""
    a, b = sides()
    b.engine.install_keypair(1, params(20, 10, initiator=False))
    a.engine.install_keypair(1, params(10, 20, initiator=True))
    (keepalive,) = a.take()
    b.network(keepalive, A_OUTER)
    a.reports()
    b.reports()
    return a, b


def carry(a: Side, b: Side) -> None:
    for datagram in a.take():
        b.network(datagram, A_OUTER)


def handshake_message(kind: int = 1) -> bytes:
    body = kind.to_bytes(4, "little") + bytes({1: 112, 2: 56}[kind])
    return CookieGenerator(OUR_KEY).add_macs(body, 0)


def outer(number: int) -> Endpoint:
    return Endpoint(f"198.51.{number >> 8}.{number & 255}", 7)
