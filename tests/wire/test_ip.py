"""The fields of IP packets that a tunnel reads, and the ICMP errors that it sends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.packets import ICMP, UDP, Packet, word_sum
from wyrmhole.wire import ip

V4 = Packet(b"payload", protocol=UDP, source=0x0A000001, destination=0x0A000002)
V6 = Packet(b"payload", protocol=UDP, version=6, source=0xFC << 120 | 1, destination=0xFC << 120 | 2)
ICMPV6 = 58


def patched(packet: bytes, at: int, value: bytes) -> bytes:
    return packet[:at] + value + packet[at + len(value) :]


def test_addresses() -> None:
    assert ip.source_of(V4.emit()) == bytes([10, 0, 0, 1])
    assert ip.destination_of(memoryview(V4.emit())) == bytes([10, 0, 0, 2])
    assert ip.source_of(V6.emit()) == b"\xfc" + bytes(14) + b"\1"
    assert ip.destination_of(bytearray(V6.emit())) == b"\xfc" + bytes(14) + b"\2"
    assert ip.text_of(ip.destination_of(V6.emit())) == "fc00::2"
    assert ip.text_of(None) == ""


@pytest.mark.parametrize("packet", [b"", b"\x45", V4.emit()[:19], V6.emit()[:39], b"\x55" + bytes(60), bytes(60)])
def test_invalid_packets_have_no_addresses(packet: bytes) -> None:
    assert ip.source_of(packet) is None
    assert ip.destination_of(packet) is None
    assert ip.length_of(packet) == 0
    assert ip.unreachable(packet, no_route=True) is None


@pytest.mark.parametrize("packet", [V4.emit(), V6.emit(), replace(V4, ip_options=bytes([1] * 8)).emit()])
def test_the_length_field_excludes_padding(packet: bytes) -> None:
    """The header's length decides where the packet ends (M47)."""
    assert ip.length_of(packet) == len(packet)
    assert ip.length_of(packet + bytes(15)) == len(packet)
    assert ip.length_of(packet[:-1]) == 0


@pytest.mark.parametrize("total", [0, 1, 19, 36, 65535])
def test_an_impossible_ipv4_length_is_refused(total: int) -> None:
    """It is below the header's length or above the packet's (M47)."""
    assert ip.length_of(patched(V4.emit(), 2, total.to_bytes(2, "big"))) == 0


def test_an_ipv4_length_below_a_header_with_options_is_refused() -> None:
    packet = replace(V4, ip_options=bytes([1] * 8)).emit()
    assert ip.length_of(patched(packet, 2, (27).to_bytes(2, "big"))) == 0
    assert ip.length_of(patched(packet, 2, (28).to_bytes(2, "big"))) == 28
    assert ip.length_of(patched(packet, 0, b"\x44")) == 0


def test_an_ipv6_length_that_would_wrap_is_refused() -> None:
    """In 16 bits, 65,535 + 40 is 39."""
    for payload in (65_496, 65_535):
        assert ip.length_of(patched(V6.emit(), 4, payload.to_bytes(2, "big"))) == 0


def test_a_jumbogram_is_refused() -> None:
    """Its length field is 0, and the length is in a hop-by-hop option."""
    packet = patched(V6.emit(), 4, b"\0\0")
    assert ip.length_of(patched(packet, 6, b"\0")) == 0
    assert ip.length_of(patched(packet, 6, b"\x3b")) == 40


def test_udp_ports_are_read() -> None:
    assert ip.udp_ports(V4.emit()) == ip.udp_ports(V6.emit()) == (443, 50000)
    assert ip.udp_ports(replace(V4, ip_options=bytes([1] * 8)).emit()) == (443, 50000)
    for packet in (
        Packet(b"x").emit(),
        Packet(b"x", version=6).emit(),
        replace(V4, fragment=1).emit(),
        V4.emit()[:23],
        V6.emit()[:43],
        b"",
    ):
        assert ip.udp_ports(packet) is None


@pytest.mark.parametrize("packet", [V4, V6], ids=["v4", "v6"])
def test_ecn_bits_are_read_and_replaced(packet: Packet) -> None:
    for before in range(4):
        for after in range(4):
            marked = replace(packet, tos=0xB8 | before)
            assert ip.ecn_of(marked.emit()) == before
            assert ip.with_ecn(marked.emit(), after) == replace(packet, tos=0xB8 | after).emit()


def test_an_invalid_packet_has_no_ecn() -> None:
    for packet in (b"", V4.emit()[:10], b"\x5f\xff" + bytes(60)):
        assert ip.ecn_of(packet) == 0


def test_setting_ecn_does_not_repair_a_wrong_header_checksum() -> None:
    packet = patched(V4.emit(), 10, b"\0\0")
    assert word_sum(ip.with_ecn(packet, 3)[:20]) != 0xFFFF


def test_decapsulation_of_ecn_follows_rfc_6040() -> None:
    """Figure 4 of the RFC, except for its one drop, which the kernel does not do either. Rows are the inner field,
    columns the outer one (M48)."""
    not_ect, ect1, ect0, ce = ip.ECN_NOT_ECT, ip.ECN_ECT1, ip.ECN_ECT0, ip.ECN_CE
    columns = (not_ect, ect0, ect1, ce)
    figure = {
        not_ect: (not_ect, not_ect, not_ect, not_ect),
        ect0: (ect0, ect0, ect1, ce),
        ect1: (ect1, ect1, ect1, ce),
        ce: (ce, ce, ce, ce),
    }
    for inner, row in figure.items():
        assert tuple(ip.decapsulate_ecn(outer, inner) for outer in columns) == row
        assert [ip.is_unheeded(outer, inner) for outer in columns] == [False, False, False, inner == not_ect]


def test_an_icmp_error_comes_from_the_unreachable_address() -> None:
    """It quotes the beginning of the packet, as RFC 792 requires (M46)."""
    packet = V4.emit()
    for no_route in (False, True):
        error = ip.unreachable(packet + bytes(13), no_route=no_route)
        assert error is not None
        assert ip.length_of(error) == len(error) == 28 + len(packet)
        assert (error[9], error[20:22]) == (ICMP, b"\x03\x01")
        assert (error[12:16], error[16:20]) == (packet[16:20], packet[12:16])
        assert error[28:] == packet
        assert word_sum(error[:20]) == word_sum(error[20:]) == 0xFFFF


def test_an_icmp_error_has_at_most_576_bytes() -> None:
    """RFC 1812, section 4.3.2.3."""
    packet = replace(V4, payload=bytes(range(256)) * 4).emit()
    error = ip.unreachable(packet, no_route=False)
    assert error is not None
    assert len(error) == 576
    assert error[28:] == packet[:548]


@pytest.mark.parametrize(("no_route", "code"), [(True, 0), (False, 3)])
def test_an_icmpv6_error_has_the_code_of_its_cause(no_route: bool, code: int) -> None:
    """RFC 4443, section 3.1 (M46)."""
    packet = V6.emit()
    error = ip.unreachable(packet, no_route=no_route)
    assert error is not None
    assert ip.length_of(error) == len(error) == 48 + len(packet)
    assert (error[6], error[40:42]) == (ICMPV6, bytes([1, code]))
    assert (error[8:24], error[24:40]) == (packet[24:40], packet[8:24])
    assert error[48:] == packet
    pseudo_header = error[8:40] + (len(error) - 40).to_bytes(4, "big") + bytes([0, 0, 0, ICMPV6])
    assert word_sum(pseudo_header + error[40:]) == 0xFFFF


def test_an_icmpv6_error_has_at_most_1280_bytes() -> None:
    """RFC 4443, section 2.4 (c): the minimum MTU."""
    packet = replace(V6, payload=bytes(1400)).emit()
    error = ip.unreachable(packet, no_route=False)
    assert error is not None
    assert len(error) == 1280


def icmp(kind: int, packet: Packet = V4) -> bytes:
    protocol = ICMP if packet.version == 4 else ICMPV6
    return patched(replace(packet, protocol=protocol).emit(), packet.start, bytes((kind,)))


UNANSWERED = {
    "destination unreachable": icmp(3),
    "source quench": icmp(4),
    "redirect": icmp(5),
    "time exceeded": icmp(11),
    "parameter problem": icmp(12),
    "unknown ICMP type": icmp(200),
    "ICMP error behind IP options": icmp(3, replace(V4, ip_options=bytes([1] * 8))),
    "ICMP without a type": patched(V4.emit(), 9, b"\x01")[:2] + b"\x00\x14" + patched(V4.emit(), 9, b"\x01")[4:],
    "later fragment": replace(V4, fragment=1).emit(),
    "last fragment": replace(V4, fragment=0x1FFF).emit(),
    "to a multicast group": replace(V4, destination=0xE0000001).emit(),
    "to broadcast": replace(V4, destination=0xFFFFFFFF).emit(),
    "from the unspecified address": replace(V4, source=0).emit(),
    "from this network": replace(V4, source=5).emit(),
    "from a multicast group": replace(V4, source=0xE0000001).emit(),
    "from broadcast": replace(V4, source=0xFFFFFFFF).emit(),
    "from loopback": replace(V4, source=0x7F000001).emit(),
    "truncated": V4.emit()[:-1],
    "ICMPv6 error": icmp(1, V6),
    "ICMPv6 packet too big": icmp(2, V6),
    "ICMPv6 redirect": icmp(137, V6),
    "IPv6 to a multicast group": replace(V6, destination=0xFF02 << 112 | 1).emit(),
    "IPv6 from a multicast group": replace(V6, source=0xFF02 << 112 | 1).emit(),
    "IPv6 from the unspecified address": replace(V6, source=0).emit(),
    "IPv6 from loopback": replace(V6, source=1).emit(),
}


@pytest.mark.parametrize("packet", UNANSWERED.values(), ids=UNANSWERED)
def test_no_icmp_error_is_sent_for_errors_fragments_and_groups(packet: bytes) -> None:
    """RFC 1122, section 3.2.2, and RFC 4443, section 2.4 (e)."""
    assert ip.unreachable(packet, no_route=False) is None


def test_queries_and_first_fragments_get_an_icmp_error() -> None:
    packets = [icmp(8), icmp(13), icmp(128, V6), icmp(135, V6), replace(V4, fragment=0x2000).emit()]
    for packet in [*packets, icmp(8, replace(V4, ip_options=bytes([1] * 8)))]:
        assert ip.unreachable(packet, no_route=False) is not None


def extended(next_header: int, extension: bytes, rest: bytes) -> bytes:
    packet = replace(V6, payload=extension + rest).emit()
    return (
        packet[:4] + len(extension + rest).to_bytes(2, "big") + bytes((next_header,)) + packet[7:40] + extension + rest
    )


def test_ipv6_extension_headers_are_walked() -> None:
    echo, error = b"\x80" + bytes(7), b"\x01" + bytes(7)
    options = bytes([ICMPV6, 0]) + bytes(6)
    first, later = bytes([ICMPV6, 0, 0, 1]) + bytes(4), bytes([ICMPV6, 0, 0, 8]) + bytes(4)
    far = bytes([ICMPV6, 0, 1, 0]) + bytes(4)
    assert ip.unreachable(extended(60, options, echo), no_route=False) is not None
    assert ip.unreachable(extended(60, options, error), no_route=False) is None
    assert ip.unreachable(extended(44, first, echo), no_route=False) is not None
    assert ip.unreachable(extended(44, first, error), no_route=False) is None
    assert ip.unreachable(extended(44, later, echo), no_route=False) is None
    assert ip.unreachable(extended(44, far, echo), no_route=False) is None
    assert ip.unreachable(extended(60, bytes([60, 255]) + bytes(6), echo), no_route=False) is None
    assert ip.unreachable(extended(60, b"", b"\x3a"), no_route=False) is None


@given(
    st.binary(max_size=100)
    | st.builds(lambda first, rest: first + rest, st.sampled_from([b"\x45", b"\x60"]), st.binary(max_size=90))
)
def test_every_function_accepts_any_bytes(packet: bytes) -> None:
    length = ip.length_of(packet)
    assert 0 <= length <= len(packet)
    assert (ip.source_of(packet) is None) == (ip.destination_of(packet) is None)
    assert ip.version_of(packet) in range(16)
    assert ip.ecn_of(packet) in range(4)
    ip.udp_ports(packet)
    error = ip.unreachable(packet, no_route=False)
    assert error is None or ip.length_of(error) == len(error)
    assert error is None or ip.unreachable(error, no_route=False) is None, "an error was answered by an error"
