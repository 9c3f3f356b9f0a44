"""An engine in place of the model data plane, so that the protocol's tests run on the model and on both engines.

Payloads travel as IPv4 packets from 10.0.<sender>.1 to 10.0.<receiver>.1, through the engine's real steps, between a
TUN and a bind made of lists.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from tests.support.edges import PLAIN, ListBind, ListTun
from tests.support.engines import index_count, make_engine
from tests.support.packets import ipv4
from wyrmhole.engine.contract import TunChanged
from wyrmhole.protocol.data_plane import HandshakeDatagram, PeerId, Report
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


def inner_address(number: int) -> str:
    return f"10.{number >> 8 & 255}.{number & 255}.1"


_NAMES = {
    DropReason.STAGING_FULL: "staging_full",
    DropReason.HANDSHAKE_GAVE_UP: "gave_up",
    DropReason.NO_ENDPOINT: "no_endpoint",
    DropReason.UNKNOWN_INDEX: "no_key",
    DropReason.KEY_EXPIRED: "no_key",
    DropReason.BAD_TAG: "bad_tag",
    DropReason.REPLAYED: "replayed",
    DropReason.BAD_MAC1: "bad_mac1",
    DropReason.NO_PRIVATE_KEY: "bad_mac1",
}


class EnginePlane:
    """The methods of tests.support.model_plane.ModelPlane, on an engine. Node n has the inner address 10.x.n.1."""

    def __init__(self, clock: Callable[[], int], transmit: Callable[[Endpoint, bytes], None]) -> None:
        self.engine = make_engine(clock)
        self.tun = ListTun()
        self.bind = ListBind(lambda sockaddr, data, source, tos: transmit(Endpoint.from_sockaddr(sockaddr), data))
        self.engine.attach_tun(self.tun)
        self.engine.attach_bind(self.bind, 51820)
        self.queue_depth = 0
        self.number = 0
        """The node's own inner address, set by the world."""
        self._numbers: dict[PeerId, int] = {}
        self._reports: deque[Report] = deque()

    def __del__(self) -> None:
        self.engine.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        self._numbers[peer] = prefix.network >> 8 & 0xFFFF
        self.engine.insert_allowed_ip(peer, prefix)

    @property
    def reports(self) -> deque[Report]:
        for report in self.engine.poll_reports(1 << 20):
            if isinstance(report, HandshakeDatagram):
                self._reports.append(replace(report, queue_depth=max(report.queue_depth, self.queue_depth)))
            elif not isinstance(report, TunChanged):
                self._reports.append(report)
        return self._reports

    @property
    def delivered(self) -> list[tuple[PeerId, bytes]]:
        found = [(int.from_bytes(frame[23:25], "big"), frame[30:]) for frame in self.tun.written if frame[19] == 253]
        return [(peer, payload) for peer, payload in found]

    @property
    def dropped(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for reason, count in self.engine.drops().items():
            counted[_NAMES.get(reason, reason.value)] += count
        return counted

    @property
    def indices(self) -> dict[int, object]:
        return dict.fromkeys(range(index_count(self.engine)))

    def send_packet(self, peer: PeerId, payload: bytes) -> None:
        self.tun.inject(PLAIN + ipv4(inner_address(self.number), inner_address(self._numbers[peer]), payload))
        self.engine.turn()

    def receive(self, datagram: bytes, endpoint: Endpoint) -> None:
        self.bind.arrive(datagram, endpoint.sockaddr, source=b"source")
        if self.engine.answers_initiations:
            self.engine.turn(queue_depth=self.queue_depth)
        else:
            self.engine.turn()
