"""Packets of one flow are merged exactly when the kernel's GRO would merge them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    ICMP,
    PSH,
    RST,
    SYN,
    TIMESTAMPS,
    UDP,
    URG,
    Packet,
    pattern,
    super_packets,
    train,
)
from wyrmhole.wire.coalesce import Coalescer, Frame
from wyrmhole.wire.split import split
from wyrmhole.wire.virtio import PLAIN_HEADER, VirtioHeader

TCP6, UDP4, UDP6 = Packet(version=6), Packet(protocol=UDP), Packet(protocol=UDP, version=6)


def coalesce(packets: Iterable[bytes], *, tso: bool = True, uso: bool = True) -> list[Frame]:
    coalescer = Coalescer(tso=tso, uso=uso)
    for packet in packets:
        coalescer.add(packet)
    return coalescer.take()


def written(frame: Frame) -> bytes:
    return b"".join(frame.parts)


def emitted(packets: Iterable[Packet]) -> list[bytes]:
    return [packet.emit() for packet in packets]


def counts(packets: Iterable[Packet], *, tso: bool = True, uso: bool = True) -> list[int]:
    """Return the number of packets in each frame."""
    return [len(frame.packets) for frame in coalesce(emitted(packets), tso=tso, uso=uso)]


@pytest.mark.parametrize("first", [Packet(), TCP6, UDP4, UDP6], ids=["tcp4", "tcp6", "udp4", "udp6"])
def test_a_train_becomes_the_super_packet_it_came_from(first: Packet) -> None:
    """45 packets at the usual MTU, with PSH on the last, like the output of the kernel's segmentation."""
    packet = replace(first, payload=pattern(44 * 1368 + 100), flags=ACK | PSH)
    (frame,) = coalesce(split(packet.frame(1368)))
    assert written(frame) == packet.frame(1368)
    assert frame.packets == emitted(packet.segments(1368))


def test_views_are_merged_without_copying_their_payload() -> None:
    buffer = bytearray(b"".join(emitted(train(3))))
    size = len(buffer) // 3
    (frame,) = coalesce([memoryview(buffer)[at : at + size] for at in range(0, len(buffer), size)])  # type: ignore[misc]
    before = written(frame)
    buffer[-1] ^= 0xFF
    assert written(frame)[-1] == before[-1] ^ 0xFF
    assert isinstance(frame.parts[0], bytes)


def test_a_single_packet_is_not_parsed() -> None:
    for packet in (b"", b"\x45", Packet(b"x").emit(), b"\xff" * 3000):
        assert coalesce([packet]) == [Frame([PLAIN_HEADER, packet], [packet])]


def test_take_returns_each_frame_once() -> None:
    coalescer = Coalescer(tso=True, uso=True)
    assert coalescer.take() == []
    first, second, third, fourth = emitted(train(4))
    add = coalescer.add
    add(first)
    add(second)
    assert len(coalescer.take()) == 1
    add(third)
    add(fourth)
    (frame,) = coalescer.take()
    assert frame.packets == [third, fourth]


def test_tcp_and_udp_can_be_switched_off_separately() -> None:
    packets = train(3) + train(3, first=UDP4)
    assert counts(packets) == [3, 3]
    assert counts(packets, tso=False) == [1, 1, 1, 3]
    assert counts(packets, uso=False) == [3, 1, 1, 1]
    assert counts(packets, tso=False, uso=False) == [1] * 6


def test_an_offload_can_be_switched_off_at_run_time() -> None:
    coalescer = Coalescer(tso=True, uso=True)
    coalescer.tso = False
    for packet in emitted(train(2)):
        coalescer.add(packet)
    assert len(coalescer.take()) == 2


def test_a_change_of_size_ends_a_group() -> None:
    a, b, c, d = train(4)
    short = replace(b, payload=b.payload[:50])
    after = replace(c, sequence=short.sequence + 50)
    assert counts([a, short, after, replace(d, sequence=after.sequence + 100)]) == [2, 2]
    longer = replace(b, payload=pattern(101))
    assert counts([a, longer, replace(c, sequence=longer.sequence + 101)]) == [1, 2]
    for kind in (UDP4, UDP6):
        sizes = [100, 100, 50, 50, 20, 100]
        assert counts([replace(kind, payload=pattern(size)) for size in sizes]) == [3, 2, 1]


def test_psh_ends_a_group_and_is_kept() -> None:
    packets = train(5)
    packets[2] = replace(packets[2], flags=ACK | PSH)
    frames = coalesce(emitted(packets))
    assert [len(frame.packets) for frame in frames] == [3, 2]
    assert [written(frame)[10 + 33] for frame in frames] == [ACK | PSH, ACK]
    packets[0] = replace(packets[0], flags=ACK | PSH)
    assert counts(packets[:2]) == [1, 1]


def test_interleaved_flows_with_short_packets_are_merged() -> None:
    """The packets of two flows alternate, and each flow becomes one frame."""
    other = Packet(ports=(443, 50001), sequence=5)
    turns = [packet for pair in zip(train(6), train(6, first=other), strict=True) for packet in pair]
    assert counts(turns) == [6, 6]


CHANGES: dict[str, tuple[Packet, dict[str, object]]] = {
    "TCP sequence number": (Packet(), {"sequence": 999}),
    "TCP acknowledgment number": (Packet(), {"acknowledgment": 78}),
    "TCP window": (Packet(), {"window": 513}),
    "TCP options with another value": (Packet(), {"options": TIMESTAMPS[:-1] + b"\3"}),
    "TCP options with another length": (Packet(), {"options": b""}),
    "TCP source port": (Packet(), {"ports": (444, 50000)}),
    "IPv4 source": (Packet(), {"source": 3}),
    "IPv4 destination": (Packet(), {"destination": 3}),
    "IPv4 TOS": (Packet(), {"tos": 1}),
    "IPv4 TTL": (Packet(), {"ttl": 63}),
    "IPv4 without DF": (Packet(), {"fragment": 0}),
    "IPv4 identification without DF": (Packet(fragment=0), {"identification": 12}),
    "IPv4 identification of UDP without DF": (replace(UDP4, fragment=0), {"identification": 7}),
    "IPv4 reserved bit": (Packet(), {"fragment": 0xC000}),
    "IPv4 options": (Packet(), {"ip_options": bytes([1] * 4)}),
    "IPv6 traffic class": (TCP6, {"tos": 1}),
    "IPv6 hop limit": (TCP6, {"ttl": 63}),
    "IPv6 source": (TCP6, {"source": 3}),
    "UDP port": (UDP4, {"ports": (443, 1)}),
    "UDP TTL": (UDP4, {"ttl": 63}),
    "UDP hop limit": (UDP6, {"ttl": 63}),
    "SYN": (Packet(), {"flags": ACK | SYN}),
    "FIN": (Packet(), {"flags": ACK | FIN}),
    "RST": (Packet(), {"flags": ACK | RST}),
    "URG": (Packet(), {"flags": ACK | URG}),
    "ECE": (Packet(), {"flags": ACK | ECE}),
    "CWR": (Packet(), {"flags": ACK | CWR}),
    "no ACK": (Packet(), {"flags": 0}),
    "no payload": (Packet(), {"payload": b""}),
}


@pytest.mark.parametrize(("first", "change"), CHANGES.values(), ids=CHANGES)
def test_packets_with_different_headers_are_not_merged(first: Packet, change: dict[str, object]) -> None:
    """The changed packet comes second (to open a group) or third (on the fast path)."""
    packets = train(3, first=first)
    assert counts(packets) == [3]
    assert counts([packets[0], replace(packets[1], **change)]) == [1, 1]  # type: ignore[arg-type]
    assert counts([*packets[:2], replace(packets[2], **change)]) == [2, 1]  # type: ignore[arg-type]


def test_the_identification_may_differ_with_df() -> None:
    """It has no meaning in a packet that must not be fragmented (RFC 6864)."""
    a, b, c = train(3)
    assert counts([a, replace(b, identification=500), replace(c, identification=0)]) == [3]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("first", [Packet(), TCP6, UDP4, UDP6], ids=["tcp4", "tcp6", "udp4", "udp6"])
def test_a_corrupt_packet_keeps_its_wrong_checksum(first: Packet, index: int) -> None:
    """The receiver must be able to detect the corruption."""
    packets = emitted(train(3, first=first))
    bad = bytearray(packets[index])
    bad[-1] ^= 1
    packets[index] = bytes(bad)
    frames = coalesce(packets)
    assert [PLAIN_HEADER, bytes(bad)] in [frame.parts for frame in frames]
    assert [packet for frame in frames for packet in split(written(frame))] == packets


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("first", [Packet(), UDP4], ids=["tcp4", "udp4"])
def test_a_corrupt_ipv4_header_keeps_its_wrong_checksum(first: Packet, index: int) -> None:
    """This holds even if an error in the transport part compensates for the error in the header."""
    packets = [bytearray(packet) for packet in emitted(train(3, first=first))]
    packets[index][10:12] = (int.from_bytes(packets[index][10:12], "big") ^ 1).to_bytes(2, "big")
    frames = coalesce(map(bytes, packets))
    assert [PLAIN_HEADER, packets[index]] in [frame.parts for frame in frames]
    packets[index][-1] ^= 1
    frames = coalesce(map(bytes, packets))
    assert [PLAIN_HEADER, packets[index]] in [frame.parts for frame in frames]


def without_checksum(packet: bytes) -> bytes:
    at = 26 if packet[0] >> 4 == 4 else 46
    return packet[:at] + bytes(2) + packet[at + 2 :]


@pytest.mark.parametrize("first", [UDP4, UDP6], ids=["udp4", "udp6"])
def test_udp_without_checksum_is_not_merged(first: Packet) -> None:
    packets = emitted(train(3, first=first))
    assert len(coalesce(map(without_checksum, packets))) == 3
    assert len(coalesce([*packets[:2], without_checksum(packets[2])])) == 2


def test_a_udp_checksum_of_zero_is_never_taken_as_correct() -> None:
    """A computed sum of 0 is sent as 0xFFFF; a field of 0 means that there is no checksum."""
    good = train(3, size=102, first=UDP4)
    rest = int.from_bytes(replace(good[2], payload=good[2].payload[:100] + bytes(2)).emit()[26:28], "big")
    lucky = replace(good[2], payload=good[2].payload[:100] + rest.to_bytes(2, "big")).emit()
    assert lucky[26:28] == b"\xff\xff"
    packets = emitted(good[:2])
    assert len(coalesce([*packets, lucky])) == 1
    assert len(coalesce([*packets, without_checksum(lucky)])) == 2


LENGTH_LIES: dict[str, tuple[Packet, Callable[[bytearray], None]]] = {
    "IPv4 longer": (Packet(), lambda packet: packet.__setitem__(3, packet[3] + 1)),
    "IPv4 shorter": (Packet(), lambda packet: packet.__setitem__(3, packet[3] - 1)),
    "IPv6 longer": (TCP6, lambda packet: packet.__setitem__(5, packet[5] + 1)),
    "UDP longer": (UDP4, lambda packet: packet.__setitem__(25, packet[25] + 1)),
    "UDP6 shorter": (UDP6, lambda packet: packet.__setitem__(45, packet[45] - 1)),
    "TCP header below 20": (Packet(), lambda packet: packet.__setitem__(32, 0x40)),
    "TCP header beyond the packet": (replace(Packet(), options=b""), lambda packet: packet.__setitem__(32, 0xF0)),
    "trailing padding": (Packet(), lambda packet: packet.append(0)),
}


@pytest.mark.parametrize(("first", "change"), LENGTH_LIES.values(), ids=LENGTH_LIES)
def test_packets_with_wrong_lengths_are_not_merged(first: Packet, change: Callable[[bytearray], None]) -> None:
    packets = list(map(bytearray, emitted(train(3, size=20, first=first))))
    for packet in packets:
        change(packet)
    assert [frame.packets for frame in coalesce(map(bytes, packets))] == [[packet] for packet in packets]


def test_order_is_kept_around_a_packet_that_cannot_be_merged() -> None:
    """A retransmission in the middle ends the group, and later packets do not overtake it."""
    packets = train(6)
    mixed = [*packets[:3], packets[1], *packets[3:]]
    frames = coalesce(emitted(mixed))
    assert [packet for frame in frames for packet in frame.packets] == emitted(mixed)
    fin = replace(packets[3], flags=ACK | FIN, payload=b"")
    assert counts([*packets[:3], fin, *packets[3:]]) == [3, 1, 3]


def fragment_of(packet: Packet) -> Packet:
    return replace(packet, fragment=3)


def test_a_fragment_ends_all_groups() -> None:
    """A fragment has no ports, so it could belong to any flow."""
    for barrier in (fragment_of(Packet(b"x" * 90)), Packet(b"x", ip_options=bytes([1] * 4))):
        assert counts([*train(2), barrier, *train(4)[2:]]) == [2, 1, 2]
    extended = bytearray(Packet(b"x" * 30, version=6).emit())
    extended[6] = 0
    packets = emitted(train(4, first=TCP6))
    assert len(coalesce([*packets[:2], bytes(extended), *packets[2:]])) == 3


def test_packets_of_other_protocols_do_not_end_groups() -> None:
    """A ping in the middle of a transfer does not reduce merging."""
    ping = replace(Packet(b"\x08" + bytes(40)), protocol=ICMP)
    ping6 = replace(ping, protocol=58, version=6)
    packets = train(6)
    assert counts([*packets[:2], ping, *packets[2:4], ping6, *packets[4:]]) == [6, 1, 1]


def test_a_super_packet_is_at_most_65535_bytes() -> None:
    for first in (Packet(), TCP6, replace(Packet(), options=b"")):
        frames = coalesce(emitted(train(60, size=1368, first=first)))
        largest = (65_535 - first.header) // 1368
        assert [len(frame.packets) for frame in frames] == [largest, 60 - largest]
        assert len(written(frames[0])) <= 10 + 65_535


def test_a_tail_that_does_not_fit_starts_a_new_frame() -> None:
    first = replace(Packet(), options=b"")
    packets = train(6, size=13_099, first=first)
    assert 40 + 5 * 13_099 == 65_535
    tail = replace(packets[5], payload=b"x")
    assert counts([*packets[:5], tail]) == [5, 1]


def test_a_frame_has_at_most_64_udp_or_1023_tcp_packets() -> None:
    assert counts(train(130, size=10, first=UDP4)) == [64, 64, 2]
    assert counts(train(1500, size=1)) == [1023, 477]


def test_a_sequence_number_or_identification_may_not_wrap() -> None:
    packets = train(5, first=Packet(sequence=2**32 - 250))
    assert [packet.sequence for packet in packets][2:4] == [2**32 - 50, 50]
    assert counts(packets) == [3, 2]
    assert counts(train(5, first=Packet(fragment=0, identification=0xFFFE))) == [2, 3]


def test_a_wrapped_sequence_number_does_not_match_the_next_port() -> None:
    """If headers are compared as one integer, the wrap carries into the port and matches the flow to the next port."""
    packets = train(3, first=Packet(sequence=2**32 - 200))
    neighbour = replace(packets[2], ports=(443, 50001))
    assert packets[2].sequence == 0
    assert counts([*packets[:2], neighbour]) == [2, 1]


@given(super_packets())
def test_coalescing_undoes_splitting(drawn: tuple[Packet, int]) -> None:
    packet, size = drawn
    segments = emitted(packet.segments(size))
    frames = coalesce(segments)
    assert [inner for frame in frames for inner in frame.packets] == segments
    wraps = packet.sequence + len(packet.payload) > 2**32 or packet.identification + len(segments) > 2**16
    if packet.flags & ~PSH == ACK and not wraps and not packet.ip_options and len(segments) > 1:
        assert [written(frame) for frame in frames] == [packet.frame(size)]
    for frame in frames:
        if len(frame.packets) == 1 or not packet.fragment:
            assert split(written(frame)) == frame.packets


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    """Draw packets of two flows of each kind in any order, some missing, duplicated, changed or damaged."""
    flows = [
        Packet(fragment=0),
        Packet(fragment=0, ports=(443, 50001), options=b""),
        TCP6,
        replace(UDP4, fragment=0),
        UDP6,
    ]
    size = draw(st.sampled_from([1, 10, 101]))
    packets: list[bytes] = []
    for _ in range(draw(st.integers(1, 6))):
        flow = draw(st.sampled_from(flows))
        run = emitted(train(draw(st.integers(1, 6)), size=size, first=flow))
        packets += run
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(packets) - 1))
        damaged = bytearray(packets[at])
        damaged[draw(st.integers(0, len(damaged) - 1))] ^= 1 << draw(st.integers(0, 7))
        packets[at] = bytes(damaged)
    return draw(st.permutations(packets)) if draw(st.booleans()) else packets


def flow_of(packet: bytes) -> bytes:
    # The version is part of the flow: damage can change it, and the packet then belongs to another flow.
    version = bytes((packet[0] >> 4,))
    return version + (packet[9:10] + packet[12:24] if version == b"\4" else packet[6:7] + packet[8:44])


def by_flow(packets: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        flows.setdefault(flow_of(packet), []).append(packet)
    return flows


@given(batches())
def test_coalescing_keeps_every_byte_and_the_order_of_each_flow(packets: list[bytes]) -> None:
    """Splitting the frames returns the original packets, even the damaged ones."""
    frames = coalesce(packets)
    assert by_flow(inner for frame in frames for inner in split(written(frame))) == by_flow(packets)
    assert by_flow(bytes(inner) for frame in frames for inner in frame.packets) == by_flow(packets)


@given(st.lists(st.binary(max_size=90), min_size=2, max_size=8), st.booleans(), st.booleans())
def test_any_bytes_are_accepted(packets: list[bytes], tso: bool, uso: bool) -> None:
    frames = coalesce(packets, tso=tso, uso=uso)
    assert sorted(bytes(inner) for frame in frames for inner in frame.packets) == sorted(packets)


def test_the_virtio_header_of_a_merged_frame() -> None:
    for first, kind, start, offset in ((Packet(), 1, 20, 16), (TCP6, 4, 40, 16), (UDP4, 5, 20, 6), (UDP6, 5, 40, 6)):
        (frame,) = coalesce(emitted(train(3, first=first)))
        assert VirtioHeader.parse(written(frame)) == VirtioHeader(1, kind, first.header, 100, start, offset)
