"""Bulk traffic by iperf3, and captures of interfaces."""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.netns.host import Host, end, until

ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
PACKET_OUTGOING = 4
UDP = 17
SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33

_NOT_DATA = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 0),  # the first byte of the IP header,
        (0x54, 0, 0, 0xF0),  # of that the version:
        (0x15, 0, 2, 0x60),
        (0x30, 0, 0, 48),  # 6: the first byte after 40 + 8 bytes of headers,
        (0x05, 0, 0, 1),
        (0x30, 0, 0, 28),  # 4: after 20 + 8;
        (0x15, 0, 1, 4),
        (0x06, 0, 0, 0),  # a message of type 4 is dropped,
        (0x06, 0, 0, 0xFFFFFFFF),  # any other packet is captured whole.
    )
)
"""A classic packet filter (bpf(4)): code, jump if true, jump if false, operand."""


@contextmanager
def iperf_server(host: Host, address: str, port: int = 5201) -> Iterator[None]:
    """Run a server; the body runs once it listens."""
    server = host.spawn("iperf3", "-s", "-B", address, "-p", str(port), output=subprocess.DEVNULL)
    try:
        until(lambda: host.run("ss", "-Htln", f"sport = :{port}"), "iperf3 listens")
        yield
    finally:
        end(server)


def iperf(host: Host, address: str, *options: str, seconds: float | None = None, port: int = 5201) -> dict[str, Any]:
    """Run a client against a listening server, and return the `end` part of its JSON report.

    Without `seconds`, it transfers 16 MB, however long that takes.
    """
    amount = ["-n", "16M"] if seconds is None else ["-t", str(seconds)]
    result = host.try_run("iperf3", "-J", "-c", address, "-p", str(port), *amount, *options)
    report: dict[str, Any] = json.loads(result.stdout or '{"error": "no report"}')
    assert "error" not in report, f"iperf3 to {address}: {report['error']} {result.stderr}"
    done: dict[str, Any] = report["end"]
    return done


def transfer(host: Host, peer: Host, address: str, *options: str, seconds: float | None = None) -> None:
    """Transfer data by TCP from the host to its peer and back. Raises AssertionError unless both directions work."""
    with iperf_server(peer, address):
        for direction in ((), ("-R",)):
            received = iperf(host, address, *direction, *options, seconds=seconds)["sum_received"]["bytes"]
            assert received > 1_000_000, f"only {received} bytes arrived {'back' if direction else 'there'}"


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram as captured on an interface; a train that has not been segmented yet is one datagram."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    payload: bytes
    tos: int
    outgoing: bool

    @property
    def kind(self) -> int:
        """The message type, or 0 if the payload is shorter than a type word."""
        return int.from_bytes(self.payload[:4], "little") if len(self.payload) >= 4 else 0


class Capture:
    """Capture all UDP on an interface after construction, up to a buffer of 16 MB.

    If `data` is false, messages of type 4 are skipped, because bulk would not fit.
    """

    def __init__(self, host: Host, interface: str, *, data: bool = True) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        if not data:
            program = ctypes.create_string_buffer(_NOT_DATA)
            self._socket.setsockopt(
                socket.SOL_SOCKET,
                SO_ATTACH_FILTER,
                struct.pack("HxxxxxxP", len(_NOT_DATA) // 8, ctypes.addressof(program)),
            )
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.setblocking(False)
        self._seen: list[Datagram] = []

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def datagrams(self) -> list[Datagram]:
        """The datagrams captured so far."""
        while True:
            try:
                packet, address = self._socket.recvfrom(0x10000)
            except BlockingIOError:
                return self._seen
            datagram = _parse(packet, address[1], outgoing=address[2] == PACKET_OUTGOING)
            if datagram is not None:
                self._seen.append(datagram)

    def forget(self) -> None:
        """Discard the datagrams captured so far."""
        self._seen = []

    def of(self, kind: int) -> list[Datagram]:
        return [datagram for datagram in self.datagrams if datagram.kind == kind]


def _parse(packet: bytes, ethertype: int, *, outgoing: bool) -> Datagram | None:
    """Return None for a packet that is not a complete UDP datagram."""
    if ethertype == ETH_P_IP and len(packet) >= 28 and packet[9] == UDP and not int.from_bytes(packet[6:8]) & 0x1FFF:
        start, tos = (packet[0] & 15) * 4, packet[1]
        source, destination = (socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16))
    elif ethertype == ETH_P_IPV6 and len(packet) >= 48 and packet[6] == UDP:
        start, tos = 40, int.from_bytes(packet[:2]) >> 4 & 0xFF
        source, destination = (socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24))
    else:
        return None
    source_port, destination_port = struct.unpack_from("!HH", packet, start)
    return Datagram(source, source_port, destination, destination_port, packet[start + 8 :], tos, outgoing)
