"""Loss of whole GSO batches is detected from the inner TCP's retransmissions; a new path gets single datagrams first.

A TCP sender in virtual time sends through engine a, a lossy line drops some datagrams, engine b delivers the rest, and
acknowledgements return at the end of each round trip. The calls to a's bind show whether a datagram left in a batch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest

from tests.support.engines import KINDS, chosen
from tests.support.packets import ACK, SYN, TCP, ipv4, ipv6, tcp_segment, udp, uso
from tests.support.sides import A_INNER, A_OUTER, B_INNER, B_OUTER, Side, connected, params
from wyrmhole.net.bind import SendOutcome
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.data_plane import TrainsLost
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

ROUND_TRIP = SECOND // 20
RETRANSMISSION_TIMEOUT = SECOND // 4
SIZE = 200
MOST_SEGMENTS = 40
MOST_WINDOW = 50
A6, B6 = "::a", "::b"

Line = Callable[[list[bytes]], list[bytes]]
"""Takes the datagrams of one send, and returns those that arrive."""


def tcp(sequence: int, payload: bytes, ports: tuple[int, int], flags: int = ACK, *, v6: bool = False) -> bytes:
    segment = tcp_segment(ports, payload, sequence=sequence, flags=flags)
    return ipv6(A6, B6, segment, protocol=TCP) if v6 else ipv4(A_INNER, B_INNER, segment, protocol=TCP)


def tso(packet: bytes, *, v6: bool = False) -> bytes:
    """Return a frame with a TCP super-packet, or with a plain packet if there is only one segment."""
    headers = 60 if v6 else 40
    if len(packet) <= headers + SIZE:
        return bytes(10) + packet
    return struct.pack("=BBHHHH", 1, 4 if v6 else 1, headers, SIZE, headers - 20, 16) + packet


class Sender:
    """A TCP connection that never runs out of segments to send, with slow start, SACK and a timeout.

    `start` is the first sequence number, `most` the largest window in segments. Without `offload`, each segment is a
    separate frame.
    """

    def __init__(
        self, port: int, start: int = 7, *, v6: bool = False, offload: bool = True, most: int = MOST_WINDOW
    ) -> None:
        self.ports = (port, 443)
        self.start, self.v6, self.offload, self.most = start, v6, offload, most
        self.next = 0
        self.window = 10
        self.missing: set[int] = set()
        self.in_flight: set[int] = set()
        self.waits = 0
        self.arrived = 0

    def frames(self, now: int) -> list[bytes]:
        """Return the frames to send now, oldest first, with adjacent segments joined."""
        if now < self.waits:
            return []
        again = sorted(self.missing)[: self.window]
        new = list(range(self.next, self.next + max(0, self.window - len(again)))) if not self.missing else []
        self.next += len(new)
        self.in_flight = {*again, *new}
        runs: list[list[int]] = []
        for number in sorted(self.in_flight):
            if runs and self.offload and runs[-1][-1] == number - 1 and len(runs[-1]) < MOST_SEGMENTS:
                runs[-1].append(number)
            else:
                runs.append([number])
        return [self._frame(run) for run in runs]

    def _frame(self, run: list[int]) -> bytes:
        payload = b"".join(number.to_bytes(4, "big") * (SIZE // 4) for number in run)
        return tso(tcp(self.start + run[0] * SIZE, payload, self.ports, v6=self.v6), v6=self.v6)

    def acknowledged(self, numbers: set[int], now: int) -> None:
        if now < self.waits or not self.in_flight:
            return
        arrived = numbers & self.in_flight
        self.arrived += len(arrived)
        lost = self.in_flight - arrived
        self.missing = self.missing - arrived | lost
        if not arrived:
            self.window, self.waits = 1, now + RETRANSMISSION_TIMEOUT
        elif lost:
            self.window = max(2, self.window // 2)
        else:
            self.window = min(2 * self.window, self.most)


class Scene:
    """Two connected engines, and TCP connections between them over a line."""

    def __init__(self, line: Line, senders: list[Sender] | None = None, *, doubts: bool = False) -> None:
        self.a, self.b = connected()
        if doubts:
            self.a.bind.doubts_trains = True  # type: ignore[attr-defined]
            self.a.engine.attach_bind(self.a.bind, 51820)
        for side, host in ((self.a, B6), (self.b, A6)):
            side.engine.insert_allowed_ip(1, Prefix.parse(f"{host}/128"))
        self.line = line
        self.senders = [Sender(4000)] if senders is None else senders
        self.reports: list[TrainsLost] = []
        self.index = 100
        self.renewed = self.a.now
        self.sent: list[list[bytes]] = []
        self.a.bind.trains.clear()

    def run(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        end = self.a.now + int(seconds * SECOND)
        while self.a.now < end and not stop():
            self.turn()

    def turn(self) -> None:
        now = self.a.now = self.b.now = self.a.now + ROUND_TRIP
        self._renew()
        frames = [frame for sender in self.senders for frame in sender.frames(now)]
        for frame in frames:
            self.a.tun.inject(frame)
        while self.a.tun.to_read:
            self.a.engine.turn()
        self.sent = messages(self.a)
        for message in self.sent:
            for datagram in self.line(message):
                self.b.bind.arrive(datagram, A_OUTER.sockaddr)
        while self.b.bind.incoming:
            self.b.engine.turn()
        delivered = self.b.delivered
        if delivered:
            self.a.engine.note_handshake(1, 92, now)
        for sender in self.senders:
            sender.acknowledged({_number(it) for it in delivered if _ports(it) == sender.ports}, now)
        self.reports += [report for report in self.a.reports() if isinstance(report, TrainsLost)]

    def _renew(self) -> None:
        if self.a.now - self.renewed < 100 * SECOND:
            return
        self.renewed, self.index = self.a.now, self.index + 2
        ours, theirs = self.index, self.index + 1
        self.b.engine.install_keypair(1, params(theirs, ours, initiator=False, birth=self.b.now))
        self.a.engine.install_keypair(1, params(ours, theirs, initiator=True, birth=self.a.now))
        self.b.reports()
        self.b.network(self.a.take()[-1], A_OUTER)
        self.a.bind.trains.clear()

    def pause(self, seconds: int) -> None:
        """Send nothing for `seconds`, then replace the connections."""
        self.a.now = self.b.now = self.a.now + seconds * SECOND
        self.senders = [Sender(sender.ports[0] + 1) for sender in self.senders]

    def has_sent_trains(self) -> bool:
        """Whether any datagram of the last round trip left in a batch."""
        return any(len(message) > 1 for message in self.sent)

    def sends_trains(self) -> bool:
        """Whether bulk data leaves in batches."""
        self.a.engine.note_handshake(1, 92, self.a.now)
        self.a.tunnel(*[ipv4(A_INNER, B_INNER, bytes(100))] * 8)
        self.a.tunnel(*[ipv4(A_INNER, B_INNER, bytes(100))] * 8)
        return any(len(message) > 1 for message in messages(self.a))


def _ports(packet: bytes) -> tuple[int, int]:
    ports: tuple[int, int] = struct.unpack_from(">HH", packet, 40 if packet[0] >> 4 == 6 else 20)
    return ports


def _number(packet: bytes) -> int:
    return int.from_bytes(packet[60 if packet[0] >> 4 == 6 else 40 :][:4], "big")


def messages(side: Side) -> list[list[bytes]]:
    """The datagrams of each send since the last call."""
    datagrams = iter(side.take())
    trains, side.bind.trains = side.bind.trains, []
    return [[next(datagrams) for _ in range(-(-total // segment) if segment else 1)] for total, segment in trains]


def intact(message: list[bytes]) -> list[bytes]:
    return message


def no_trains(message: list[bytes]) -> list[bytes]:
    return message if len(message) == 1 else []


def only_the_first(message: list[bytes]) -> list[bytes]:
    return message[:1]


def lossy(share: float, seed: int = 1) -> Line:
    random = Random(seed)
    return lambda message: [datagram for datagram in message if random.random() >= share]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("line", [no_trains, only_the_first])
def test_a_path_that_loses_trains_is_detected(line: Line, v6: bool) -> None:
    scene = Scene(line, [Sender(4000, v6=v6)])
    scene.run(30, lambda: bool(scene.reports))
    assert scene.reports == [TrainsLost(1)]
    before = scene.senders[0].arrived
    scene.run(10)
    assert scene.senders[0].arrived - before > 10 * SECOND // ROUND_TRIP * 25, "the line is used in full again"
    assert all(len(message) == 1 for message in scene.sent)
    assert len(scene.reports) == 1


def test_trains_gathered_from_single_packets_count_too() -> None:
    """On a TUN without TSO, the engine gathers single packets into trains."""
    scene = Scene(no_trains, [Sender(4000, offload=False)])
    scene.run(30, lambda: bool(scene.reports))
    assert scene.reports == [TrainsLost(1)]


def test_a_connection_that_stalls_with_data_in_flight_is_evidence() -> None:
    """BBR stalls like this: it repeats a few of 1,500 lost segments per second, and sends nothing new."""
    scene = Scene(intact, [Sender(4000, most=4)])
    scene.run(1)
    scene.senders[0].window = 1500
    scene.line = no_trains
    scene.run(60, lambda: bool(scene.reports))
    assert scene.reports == [TrainsLost(1)]
    assert scene.senders[0].missing, "most segments were never retransmitted"


def test_many_short_connections_add_up_to_evidence() -> None:
    scene = Scene(no_trains, [])
    for number in range(300):
        scene.senders = [Sender(5000 + number, 1000 * number)]
        scene.run(1, lambda: scene.senders[0].arrived >= 10)
    assert scene.reports == [TrainsLost(1)]


@pytest.mark.parametrize("most", [4, MOST_WINDOW])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.15, 0.3])
def test_ordinary_loss_keeps_trains(share: float, most: int) -> None:
    scene = Scene(lossy(share), [Sender(4000, most=most), Sender(4001, most=most)])
    # Any trial has ended by then; low loss does not start one.
    scene.run(25 if share > 0.1 else 5)
    assert not scene.reports
    scene.line = intact
    scene.run(10, scene.has_sent_trains)
    assert scene.sends_trains()


def test_bursts_of_loss_keep_trains() -> None:
    """The line drops everything for 100 ms each second, like an overflowing queue or a radio link."""
    scene = Scene(intact, [Sender(4000), Sender(4001)])
    scene.line = lambda message: message if scene.a.now % SECOND >= SECOND // 10 else []
    scene.run(30)
    assert not scene.reports


def test_a_dead_peer_is_not_mistaken_for_a_path_that_loses_trains() -> None:
    scene = Scene(intact)
    scene.run(2)
    scene.line = lambda message: []
    scene.run(60)
    assert not scene.reports
    scene.line = intact
    scene.run(30, scene.has_sent_trains)
    assert scene.sends_trains()


def test_trains_are_tried_again_after_ten_minutes() -> None:
    scene = Scene(only_the_first)
    scene.run(30, lambda: bool(scene.reports))
    scene.line = intact
    scene.pause(595)
    scene.run(4)
    assert not scene.sends_trains()
    scene.run(12)
    assert scene.sends_trains()
    scene.line = only_the_first
    scene.pause(1)
    scene.run(60, lambda: len(scene.reports) == 2)
    assert len(scene.reports) == 2, "lost again after a period without loss"


def test_consecutive_verdicts_double_the_wait_and_report_once() -> None:
    scene = Scene(no_trains)
    scene.run(30, lambda: bool(scene.reports))
    for seconds in (600, 1200, 2400):
        scene.pause(seconds - 30)
        scene.run(3)
        assert not scene.sends_trains()
        scene.pause(30)
        scene.run(1)
        assert scene.sends_trains()
        scene.run(15)
        assert not scene.sends_trains()
    assert len(scene.reports) == 1


def test_on_a_suspect_kernel_trains_start_once_tcp_runs() -> None:
    scene = Scene(intact, doubts=True)
    assert not scene.sends_trains()
    scene.run(9)
    assert not scene.sends_trains()
    scene.run(4)
    assert scene.sends_trains()
    assert not scene.reports


def test_on_a_suspect_kernel_one_bad_round_suffices() -> None:
    scene = Scene(no_trains, doubts=True)
    scene.run(10)
    assert scene.senders[0].arrived > 10 * SECOND // ROUND_TRIP * 25, "nothing has been lost so far"
    scene.run(12)
    assert scene.reports == [TrainsLost(1)]


def test_on_a_suspect_kernel_later_peers_are_doubted_too() -> None:
    scene = Scene(intact, doubts=True)
    scene.a.engine.remove_peer(1)
    scene.a.engine.add_peer(1)
    scene.a.engine.insert_allowed_ip(1, Prefix.parse(f"{B_INNER}/32"))
    scene.a.engine.set_endpoint(1, B_OUTER)
    scene.a.engine.install_keypair(1, params(50, 51, initiator=True))
    assert not scene.sends_trains()


def random_frame(random: Random) -> bytes:
    """Return one of many kinds: flows that share slots, retransmissions, wrap-around, SYN, fragments, short headers."""
    v6 = random.random() < 0.3
    ports = random.randrange(4000, 4020), 443
    sequence = random.choice((0, 50, 0xFFFF_FFF0)) * SIZE + random.randrange(12) * SIZE
    flags = SYN if random.random() < 0.05 else ACK
    packet = tcp(sequence, bytes(random.choice((0, 1, SIZE, 10 * SIZE))), ports, flags, v6=v6)
    kind = random.random()
    if kind < 0.05:
        return bytes(10) + packet[: random.randrange(20, 80)]
    if kind < 0.1 and not v6:
        return bytes(10) + packet[:6] + b"\x20\x01" + packet[8:]
    return tso(packet, v6=v6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.portable_only
def test_both_engines_reach_the_same_verdicts(seed: int) -> None:
    """The Python original and its Rust twin see the same packets at the same times."""
    seen = []
    for kind in KINDS:
        with chosen(kind):
            random = Random(seed)
            scene = Scene(intact, [])
            trace: list[object] = []
            for _ in range(3000):
                scene.a.now = scene.b.now = scene.a.now + random.choice((1, SECOND // 100, SECOND // 20))
                scene._renew()
                scene.a.engine.note_handshake(1, 92, scene.a.now)
                for _ in range(random.randrange(1, 4)):
                    scene.a.tun.inject(random_frame(random))
                scene.a.engine.turn()
                trace.append(sorted(scene.a.bind.trains))
                trace += [report for report in scene.a.reports() if isinstance(report, TrainsLost)]
                messages(scene.a)
            seen.append(trace)
    assert seen[0] == seen[1]
    assert any(isinstance(it, list) and it and not any(segment for _, segment in it) for it in seen[0])


# A new path


def burst(side: Side) -> list[int]:
    """Send a super-packet, and return the number of datagrams in each send."""
    side.take()
    side.bind.trains.clear()
    side.tun.inject(uso(udp(A_INNER, B_INNER, (1, 2), bytes(4000)), 1000))
    side.engine.turn()
    return [len(message) for message in messages(side)]


def answered() -> tuple[Side, Side]:
    """Return two connected sides, where a has received an authenticated packet from b."""
    a, b = connected()
    b.engine.send_keepalive(1)
    a.network(b.take()[-1], B_OUTER)
    return a, b


def test_a_new_path_gets_single_datagrams_until_an_answer() -> None:
    """nfnetlink_queue drops trains of flows that are not confirmed yet (CVE-2026-45859)."""
    a, b = connected()
    assert burst(a) == [1] * 4
    assert burst(a) == [1] * 4
    b.engine.send_keepalive(1)
    (keepalive,) = b.take()
    a.network(keepalive[:-1] + bytes([keepalive[-1] ^ 1]), B_OUTER)
    assert burst(a) == [1] * 4, "a forged answer proves nothing"
    a.network(keepalive, B_OUTER)
    assert burst(a) == [4]


def test_a_handshake_message_counts_as_an_answer() -> None:
    a, _ = connected()
    a.engine.note_handshake(1, 92, a.now)
    assert burst(a) == [4]


def test_only_a_different_endpoint_is_a_new_path() -> None:
    a, _ = answered()
    a.engine.set_endpoint(1, B_OUTER)
    assert burst(a) == [4]
    a.engine.set_endpoint(1, Endpoint("192.0.2.77", 51820))
    assert burst(a) == [1] * 4


def test_a_roaming_packet_counts_as_an_answer_on_the_new_path() -> None:
    a, b = answered()
    b.engine.send_keepalive(1)
    a.network(b.take()[-1], Endpoint("192.0.2.99", 9))
    assert burst(a) == [4]


def test_another_source_address_is_a_new_path() -> None:
    a, b = connected()
    b.engine.send_keepalive(1)
    a.network(b.take()[-1], B_OUTER, source=b"here")
    assert burst(a) == [4]
    a.engine.clear_source(1)
    assert burst(a) == [1] * 4


def test_a_rejected_source_is_a_new_path_and_not_used_again() -> None:
    a, b = connected()
    b.engine.send_keepalive(1)
    a.network(b.take()[-1], B_OUTER, source=b"here")
    a.bind.outcome = SendOutcome.SOURCE_REJECTED
    assert burst(a) == [4]
    a.bind.outcome = SendOutcome.SENT
    assert burst(a) == [1] * 4


def test_new_sockets_are_new_paths() -> None:
    a, b = answered()
    a.engine.attach_bind(a.bind, 51821)
    assert burst(a) == [1] * 4
    b.engine.send_keepalive(1)
    a.network(b.take()[-1], B_OUTER)
    assert burst(a) == [4]


def test_a_path_is_new_again_after_30_s_of_silence() -> None:
    """Connection tracking forgets a flow after 30 s of silence; the next datagram starts another."""
    a, b = answered()
    a.now = b.now = a.now + 28 * SECOND
    assert burst(a) == [4]
    a.now = b.now = a.now + 29 * SECOND
    assert burst(a) == [1] * 4
    b.engine.send_keepalive(1)
    a.network(b.take()[-1], B_OUTER)
    assert burst(a) == [4]


def test_a_sent_keepalive_does_not_count_as_an_answer() -> None:
    a, _ = answered()
    a.now += 29 * SECOND
    a.engine.send_keepalive(1)
    a.engine.turn()
    assert burst(a) == [1] * 4


def test_single_datagrams_have_the_same_bytes_order_and_drops() -> None:
    a, b = connected()
    packets = [ipv4(A_INNER, B_INNER, bytes([number]) * 100) for number in range(8)]
    before = a.engine.counters(1).tx_bytes
    a.tunnel(*packets)
    datagrams = a.take()
    assert a.engine.counters(1).tx_bytes - before == sum(map(len, datagrams))
    for datagram in datagrams:
        b.network(datagram, A_OUTER)
    assert b.delivered == packets
