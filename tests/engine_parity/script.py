"""Scripts of data-plane commands, drawn from a seed, for which two engines must give equal traces (see script_run).

A script does not depend on an engine. It has peers and keys to install, allowed IPs, frames from a TUN (plain packets,
super-packets, invalid ones), datagrams from the network (sealed here under the keys of the script, then in order or
reordered, replayed, corrupted, truncated, joined into trains), the passing of time, and sends that fail.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from wyrmhole.datapath.aead import TransportCipher
from wyrmhole.protocol.data_plane import NEVER, KeypairParams, PeerId
from wyrmhole.protocol.primitives import mac
from wyrmhole.wire.checksum import checksum
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.ip import PROTOCOL_TCP, PROTOCOL_UDP
from wyrmhole.wire.prefix import Prefix
from wyrmhole.wire.virtio import F_NEEDS_CSUM, GSO_TCPV4, GSO_UDP_L4

SECOND = 1_000_000_000
START = 1000 * SECOND
MTU = 1420
PEERS = 3
LOCAL_PORT = 51820
_HEADER = struct.Struct("<IIQ")
_VIRTIO = struct.Struct("=BBHHHH")
_OTHER = 253
_INITIATIONS = 3


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `name` is the name of a method of a data plane or a Subject; the arguments are plain values."""

    name: str
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Script:
    seed: int
    commands: tuple[Command, ...]


@dataclass(slots=True)
class _Session:
    """A keypair of the script, used by the other side to seal its datagrams."""

    peer: PeerId
    params: KeypairParams
    counter: int = 0
    sealed: list[bytes] = field(default_factory=list)


class _Drawer:
    """Draws one script. Peer n owns 10.0.n.0/24 and fd00:0:0:n::/64, and sends from 192.0.2.n."""

    def __init__(self, seed: int) -> None:
        self.random = Random(f"{seed}/script")
        self.commands: list[Command] = []
        self.mac1_key = self.random.randbytes(32)
        self.cookie_secret = self.random.randbytes(32)
        self.now = START
        self.sessions: list[_Session] = []
        self._indices = 0

    def add(self, name: str, *arguments: object) -> None:
        self.commands.append(Command(name, arguments))

    def begin(self) -> None:
        self.add("set_mac1_key", self.mac1_key)
        self.add("set_offloads", self.random.random() < 0.5, self.random.random() < 0.5)
        for peer in range(1, PEERS + 1):
            self.add("add_peer", peer)
            self.add("insert_allowed_ip", peer, Prefix(4, 10 << 24 | peer << 8, 24))
            self.add("insert_allowed_ip", peer, Prefix(6, 0xFD << 120 | peer << 64, 64))
            if self.random.random() < 0.9:
                self.add("set_endpoint", peer, self.endpoint(peer))
            if self.random.random() < 0.8:
                self.install(peer)

    def endpoint(self, peer: int) -> Endpoint:
        return Endpoint(f"192.0.2.{peer}", LOCAL_PORT)

    def install(self, peer: int) -> None:
        random, self._indices = self.random, self._indices + 1
        initiator = random.random() < 0.5
        few = random.random() < 0.1
        params = KeypairParams(
            local_index=self._indices << 16 | random.randrange(1, 1 << 16),
            remote_index=random.randrange(1, 1 << 32),
            send_key=random.randbytes(32),
            receive_key=random.randbytes(32),
            is_initiator=initiator,
            birth=self.now,
            rekey_send_at=self.now + 120 * SECOND if initiator else NEVER,
            rekey_receive_at=self.now + 165 * SECOND if initiator else NEVER,
            reject_at=self.now + 180 * SECOND,
            rekey_after_messages=3 if few else 1 << 60,
            reject_after_messages=8 if few else (1 << 64) - (1 << 13) - 1,
            send_until=self.now + 179 * SECOND,
        )
        self.sessions.append(_Session(peer, params))
        self.add("install_keypair", peer, params)

    # Inner packets

    def packet(self, source: int, destination: int, protocol: int = _OTHER) -> bytes:
        """Return a packet with valid checksums from peer `source` (0 for us) to peer `destination`."""
        random = self.random
        size = random.choice((0, 1, 15, 16, 100, 1372, 1392, 1400))
        v6 = random.random() < 0.3
        payload = random.randbytes(size)
        if protocol == PROTOCOL_UDP:
            payload = struct.pack(">HHHH", 1000, random.choice((2000, LOCAL_PORT)), 8 + size, 0) + payload
        elif protocol == PROTOCOL_TCP:
            payload = struct.pack(">HHIIBBHHH", 1000, 80, random.randrange(1 << 20), 0, 0x50, 0x10, 500, 0, 0) + payload
        return self.with_header(source, destination, protocol, payload, v6)

    def with_header(
        self, source: int, destination: int, protocol: int, payload: bytes, v6: bool, ecn: int | None = None
    ) -> bytes:
        """Return the payload in an IP packet, with a valid UDP or TCP checksum. If `ecn` is None it is drawn."""
        ecn = self.random.choice((0, 0, 1, 2, 3)) if ecn is None else ecn
        start, end = _inner(source, v6), _inner(destination, v6)
        if protocol in (PROTOCOL_UDP, PROTOCOL_TCP):
            at = 6 if protocol == PROTOCOL_UDP else 16
            total = checksum(start + end + struct.pack(">II", len(payload), protocol) + payload)
            payload = payload[:at] + total.to_bytes(2, "big") + payload[at + 2 :]
        if v6:
            return struct.pack(">IHBB", 6 << 28 | ecn << 20, len(payload), protocol, 64) + start + end + payload
        header = struct.pack(">BBHHHBBH4s4s", 0x45, ecn, 20 + len(payload), 7, 0x4000, 64, protocol, 0, start, end)
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + payload

    def odd_packet(self) -> bytes:
        """Return an invalid IP packet, or one with a wrong length."""
        random = self.random
        packet = bytearray(self.packet(1, 0))
        choice = random.randrange(4)
        if choice == 0:
            return random.randbytes(random.choice((1, 19, 20, 39, 40, 100)))
        if choice == 1:
            packet[0] = random.choice((0x00, 0x35, 0x44, 0x75, 0xF5))
        elif choice == 2:
            packet[2:4] = random.choice((0, 19, 20, 65535)).to_bytes(2, "big")
        else:
            del packet[random.randrange(1, len(packet)) :]
        return bytes(packet)

    # Commands

    def frame(self) -> None:
        """Inject a plain packet, sometimes an invalid one."""
        random = self.random
        peer = random.randrange(0, PEERS + 2)
        packet = self.packet(0, peer, random.choice((_OTHER, _OTHER, PROTOCOL_UDP, PROTOCOL_TCP)))
        if random.random() < 0.15:
            packet = self.odd_packet()
        self.add("inject", bytes(10) + packet)

    def frame_with_checksum(self) -> None:
        header = 20
        packet = self.with_header(0, self.random.randrange(1, PEERS + 1), PROTOCOL_UDP, bytes(8) + b"data" * 9, False)
        offset = self.random.choice((6, 6, 7, 2000))
        self.add("inject", _VIRTIO.pack(F_NEEDS_CSUM, 0, 0, 0, header, offset) + packet)

    def super_frame(self) -> None:
        """Inject a TCP or UDP super-packet, sometimes with an inconsistent virtio header."""
        random = self.random
        udp = random.random() < 0.5
        transport = 8 if udp else 20
        gso = random.choice((0, 1, 100, 536, 1372, 1400, 65535))
        payload = random.randbytes(random.choice((1, 99, 100, 101, 3000, 20_000, 60_000)))
        if gso in (1, 0):
            payload = payload[:3000]
        if udp:
            inner = struct.pack(">HHHH", 1000, 2000, (8 + len(payload)) & 0xFFFF, 0) + payload
        else:
            flags = random.choice((0x10, 0x18, 0x11, 0x90))
            inner = struct.pack(">HHIIBBHHH", 1000, 80, random.randrange(1 << 32), 1, 0x50, flags, 500, 0, 0) + payload
        packet = self.with_header(
            0, random.randrange(1, PEERS + 1), PROTOCOL_UDP if udp else PROTOCOL_TCP, inner, False
        )
        length = 20 + transport if random.random() < 0.8 else random.choice((0, 20, 27, 39, 41, 65535))
        kind = GSO_UDP_L4 if udp else GSO_TCPV4
        if random.random() < 0.1:
            kind = random.choice((2, 3, 4, 6, 0x81, 0xFF))
        self.add("inject", _VIRTIO.pack(F_NEEDS_CSUM, kind, length, gso, 20, 6 if udp else 16) + packet)

    def short_frame(self) -> None:
        self.add("inject", self.random.randbytes(self.random.randrange(1, 12)))

    def data(self) -> None:
        """Let one datagram of a peer arrive: the next, an old one, or one far ahead, and sometimes a damaged one."""
        session = self._session()
        if session is not None:
            self._arrive(self._spoil(self._datagram(session)), session.peer)

    def train(self) -> None:
        """Let a train of one sender arrive: datagrams of equal size, the last maybe shorter, some of them damaged."""
        session = self._session()
        if session is None:
            return
        made = [self._seal(session, inner) for inner in self._flow(session.peer)]
        if self.random.random() < 0.3:
            self.random.shuffle(made)
        if self.random.random() < 0.3:
            at = self.random.randrange(len(made))
            made[at] = made[at][:-1] + bytes((made[at][-1] ^ 1,))
        if self.random.random() < 0.3:
            made[-1] = made[-1][: self.random.randrange(1, len(made[-1]))]
        if self.random.random() < 0.2:
            other = self._session()
            assert other is not None
            foreign = self._datagram(other)
            made = [each if len(each) != len(foreign) else foreign for each in made[:1]] + made[1:]
        self._arrive(b"".join(made), session.peer, len(made[0]))

    def _flow(self, peer: int) -> list[bytes]:
        """Return consecutive packets of one flow, which offloads merge into one frame, or copies of one packet."""
        random, count = self.random, self.random.randrange(2, 9)
        kind, size, first = (
            random.choice((_OTHER, PROTOCOL_TCP, PROTOCOL_UDP)),
            random.choice((16, 100, 1000)),
            random.randrange(1 << 32),
        )
        if kind == _OTHER:
            return [self.packet(peer, 0)] * count
        flow = []
        for number in range(count):
            head = struct.pack(">HHHH", 1000, 2000, 8 + size, 0)
            if kind == PROTOCOL_TCP:
                sequence = first + number * size & 0xFFFFFFFF
                head = struct.pack(">HHIIBBHHH", 1000, 80, sequence, 1, 0x50, 0x10, 500, 0, 0)
            flow.append(self.with_header(peer, 0, kind, head + random.randbytes(size), False, ecn=0))
        return flow

    def _session(self) -> _Session | None:
        recent = self.sessions[-5:]
        return self.random.choice(recent) if recent else None

    def _datagram(self, session: _Session) -> bytes:
        random = self.random
        if session.sealed and random.random() < 0.2:
            return random.choice(session.sealed)
        if random.random() < 0.1:
            session.counter += random.choice((1, 63, 64, 8127, 8128, 10_000))
        inner = b"" if random.random() < 0.1 else self._inner_of(session.peer)
        return self._seal(session, inner)

    def _inner_of(self, peer: int) -> bytes:
        if self.random.random() < 0.1:
            return self.odd_packet()
        source = peer if self.random.random() < 0.9 else self.random.randrange(PEERS + 2)
        return self.packet(source, 0, self.random.choice((_OTHER, PROTOCOL_UDP, PROTOCOL_TCP)))

    def _seal(self, session: _Session, inner: bytes) -> bytes:
        padded = inner + bytes(-len(inner) % 16)
        out = bytearray(len(padded) + 16)
        nonce = bytes(4) + session.counter.to_bytes(8, "little")
        TransportCipher(session.params.receive_key).seal(nonce, padded, None, out)
        made = _HEADER.pack(4, session.params.local_index, session.counter) + bytes(out)
        session.counter += 1
        session.sealed.append(made)
        return made

    def _spoil(self, data: bytes) -> bytes:
        choice = self.random.randrange(12)
        if choice == 0:
            at = self.random.randrange(len(data))
            return data[:at] + bytes((data[at] ^ 1 << self.random.randrange(8),)) + data[at + 1 :]
        return data[: self.random.randrange(1, len(data))] if choice == 1 else data

    def _arrive(self, data: bytes, peer: int, segment: int = 0) -> None:
        random = self.random
        sender = self.endpoint(peer) if random.random() < 0.9 else Endpoint("2001:db8::9", random.randrange(1, 9))
        source = random.choice((b"local", b"local", b"other"))
        self.add("arrive", data, sender, segment, source, random.choice((0, 0, 0, 1, 2, 3)))

    def garbage(self) -> None:
        if self.random.random() < 0.3:
            self._handshake()
            return
        kind = bytes((self.random.choice((0, 1, 2, 3, 4, 5)), 0, 0, self.random.choice((0, 0, 1))))
        data = kind + self.random.randbytes(self.random.choice((0, 1, 28, 60, 88, 144, 145)))
        self._arrive(data[: self.random.choice((3, 4, 32, 64, 92, 148, 200))], 1)

    def _handshake(self) -> None:
        """Let a message of type 1, 2 or 3 arrive, mostly with a valid mac1, sometimes with a valid mac2.

        Replies are to one of a few initiations, which may or may not be pending.
        """
        random = self.random
        index = random.randrange(_INITIATIONS).to_bytes(4, "little")
        kind = random.randrange(1, 4)
        if kind == 3:
            self._arrive(b"\3\0\0\0" + index + random.randbytes(56), 1)
            return
        body = b"\1\0\0\0" + random.randbytes(112)
        if kind == 2:
            body = b"\2\0\0\0" + random.randbytes(4) + index + random.randbytes(48)
        body += mac(self.mac1_key if random.random() < 0.9 else random.randbytes(32), body)
        address = self.endpoint(1).address_bytes + LOCAL_PORT.to_bytes(2, "big")
        mac2 = mac(mac(self.cookie_secret, address), body) if random.random() < 0.5 else bytes(16)
        self._arrive(body + mac2, 1)

    def gate(self) -> None:
        """Add a call by which the protocol controls the gate for handshake messages."""
        random = self.random
        choice = random.randrange(4)
        if choice < 2:
            self.add("begin_initiation", random.randrange(_INITIATIONS))
        elif choice == 2:
            self.add("end_initiation", random.randrange(_INITIATIONS))
        else:
            secret = None if random.random() < 0.2 else self.cookie_secret
            self.add("set_cookie_secret", secret, self.now + random.choice((0, 120)) * SECOND)

    def new_key(self) -> None:
        self.install(self.random.randrange(1, PEERS + 1))

    def call(self) -> None:
        """Add a call whose only argument is a peer."""
        peer = self.random.randrange(1, PEERS + 2)
        self.add(self.random.choice(_CALLS), peer)

    def message(self) -> None:
        """Send a handshake message to a peer or to an address, or note one that arrived."""
        peer, random = self.random.randrange(1, PEERS + 2), self.random
        choice = random.randrange(3)
        if choice == 0:
            self.add("send_to_peer", peer, random.randbytes(148))
        elif choice == 1:
            self.add("send_to", Endpoint("198.51.100.1", 1), random.choice((None, b"local")), random.randbytes(64))
        else:
            self.add("note_handshake", peer, random.choice((92, 148)), self.now)

    def route(self) -> None:
        peer = self.random.randrange(1, PEERS + 1)
        prefix = Prefix(4, 10 << 24 | self.random.randrange(PEERS + 2) << 8 | 128, 25)
        self.add(self.random.choice(("insert_allowed_ip", "remove_allowed_ip")), peer, prefix)

    def readd(self) -> None:
        peer = self.random.randrange(1, PEERS + 1)
        self.add("remove_peer", peer)
        if self.random.random() < 0.7:
            self.add("add_peer", peer)
            self.add("insert_allowed_ip", peer, Prefix(4, 10 << 24 | peer << 8, 24))
            self.add("set_endpoint", peer, self.endpoint(peer))

    def time(self) -> None:
        self.now += int(SECOND * self.random.choice((0.001, 1, 10, 60, 121, 179, 400)))
        self.add("set_time", self.now)

    def trouble(self) -> None:
        choice = self.random.randrange(4)
        if choice == 0:
            self.add("fail_sends", self.random.randrange(1, 4))
        elif choice == 1:
            self.add("fail_writes", self.random.randrange(1, 4))
        elif choice == 2:
            self.add("set_mtu", self.random.choice((0, 576, 1280, MTU, 9000)))
        else:
            self.add("set_mac1_key", None if self.random.random() < 0.3 else self.mac1_key)


def _inner(peer: int, v6: bool) -> bytes:
    return bytes((0xFD, *bytes(6), peer, *bytes(7), 200)) if v6 else bytes((10, 0, peer, 200))


_CALLS = (
    "send_keepalive",
    "flush_staged",
    "expect_key",
    "expire_sending_keys",
    "clear_source",
    "release_activity",
    "forget_keypairs",
)
_KINDS: dict[str, int] = {
    "frame": 20,
    "frame_with_checksum": 2,
    "super_frame": 6,
    "short_frame": 1,
    "data": 25,
    "train": 8,
    "garbage": 6,
    "gate": 3,
    "new_key": 4,
    "call": 8,
    "message": 3,
    "route": 3,
    "readd": 1,
    "time": 4,
    "trouble": 3,
}


def draw(seed: int, length: int = 40) -> Script:
    """Return the script of a seed: a setup, then `length` commands or a few more."""
    drawer = _Drawer(seed)
    drawer.begin()
    for kind in drawer.random.choices(list(_KINDS), list(_KINDS.values()), k=length):
        step: Callable[[], None] = getattr(drawer, kind)
        step()
    return Script(seed, tuple(drawer.commands))
