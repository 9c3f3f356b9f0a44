"""The smallest data plane that obeys the docstrings of `protocol.data_plane`.

One payload is one packet, without IP, and answers are immediate. It seals and opens for real, so that a wrong key,
nonce or index is noticed.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wyrmhole.datapath.keypair import Keypair, Keypairs
from wyrmhole.protocol.constants import MAX_STAGED_PACKETS
from wyrmhole.protocol.data_plane import (
    Active,
    HandshakeDatagram,
    KeyConfirmed,
    KeypairParams,
    KeypairsDropped,
    KeyWanted,
    Marks,
    PeerCounters,
    PeerId,
    Report,
    Roamed,
    SessionLimits,
    Source,
)
from wyrmhole.protocol.primitives import InvalidTag, mac, same
from wyrmhole.wire import messages
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

_HEADER = struct.Struct("<IIQ")


@dataclass
class PlanePeer:
    endpoint: Endpoint | None = None
    source: Source | None = None
    keypairs: Keypairs = field(default_factory=Keypairs)
    staged: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_STAGED_PACKETS))
    marks: Marks = field(default_factory=Marks)
    active_reported: bool = False
    key_wanted_reported: bool = False
    tx: int = 0
    rx: int = 0


class ModelPlane:
    answers_initiations = False

    def __init__(self, clock: Callable[[], int], transmit: Callable[[Endpoint, bytes], None]) -> None:
        self._clock = clock
        self._transmit = transmit
        self.mac1_key: bytes | None = None
        self.peers: dict[PeerId, PlanePeer] = {}
        self.indices: dict[int, tuple[PeerId, Keypair]] = {}
        self.reports: deque[Report] = deque()
        self.delivered: list[tuple[PeerId, bytes]] = []
        self.dropped: Counter[str] = Counter()
        self.owned: dict[Prefix, PeerId] = {}
        self.nonces: set[tuple[int, int, int]] = set()
        self.queue_depth = 0
        self.number = 0

    # Calls of the protocol

    def set_mac1_key(self, key: bytes | None) -> None:
        self.mac1_key = key

    def set_cookie_secret(self, secret: bytes | bytearray | None, until: int) -> None: ...

    def answer_initiations(self, private_key: bytes | None, limits: SessionLimits) -> int:
        return 0

    def set_identity(self, peer: PeerId, public_key: bytes, preshared_key: bytes | None) -> None: ...

    def set_peer_cookie(self, peer: PeerId, cookie: bytes, until: int) -> None: ...

    def begin_initiation(self, local_index: int) -> bool:
        return True

    def end_initiation(self, local_index: int) -> None: ...

    def add_peer(self, peer: PeerId) -> None:
        self.peers[peer] = PlanePeer()

    def remove_peer(self, peer: PeerId) -> None:
        self.forget_keypairs(peer)
        del self.peers[peer]

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        self.owned[prefix] = peer

    def remove_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        if self.owned.get(prefix) == peer:
            del self.owned[prefix]

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        self.peers[peer].endpoint, self.peers[peer].source = endpoint, source

    def clear_source(self, peer: PeerId) -> None:
        self.peers[peer].source = None

    def install_keypair(self, peer: PeerId, params: KeypairParams) -> None:
        it, keypair = self.peers[peer], Keypair(params)
        self.indices[keypair.local_index] = (peer, keypair)
        it.key_wanted_reported = False
        if params.is_initiator:
            self._dropped(peer, it.keypairs.install_initiator(keypair))
            self._send_staged(peer, or_keepalive=True)
        else:
            self._dropped(peer, it.keypairs.install_responder(keypair))

    def forget_keypairs(self, peer: PeerId) -> None:
        self._dropped(peer, self.peers[peer].keypairs.clear())

    def expire_sending_keys(self, peer: PeerId) -> None:
        self.peers[peer].keypairs.expire_sending()

    def expect_key(self, peer: PeerId) -> None:
        self.peers[peer].key_wanted_reported = False

    def flush_staged(self, peer: PeerId) -> None:
        self.dropped["gave_up"] += len(self.peers[peer].staged)
        self.peers[peer].staged.clear()
        self.peers[peer].key_wanted_reported = False

    def send_to_peer(self, peer: PeerId, datagram: bytes) -> None:
        it = self.peers[peer]
        if it.endpoint is not None:
            self._sent(it, len(datagram))
            self._transmit(it.endpoint, datagram)

    def send_to(self, endpoint: Endpoint, source: Source | None, datagram: bytes) -> None:
        self._transmit(endpoint, datagram)

    def send_keepalive(self, peer: PeerId) -> None:
        if not self.peers[peer].staged:
            self._send(peer, b"")

    def note_handshake(self, peer: PeerId, rx_bytes: int, now: int) -> None:
        self._received(self.peers[peer], rx_bytes)

    def marks(self, peer: PeerId) -> Marks:
        return replace(self.peers[peer].marks)

    def release_activity(self, peer: PeerId) -> Marks:
        self.peers[peer].active_reported = False
        return self.marks(peer)

    def forget_unanswered(self, peer: PeerId, since: int) -> None:
        if self.peers[peer].marks.data_sent_since == since:
            self.peers[peer].marks.data_sent_since = 0

    def forget_received(self, peer: PeerId, since: int) -> None:
        if self.peers[peer].marks.data_received_since == since:
            self.peers[peer].marks.data_received_since = 0

    def counters(self, peer: PeerId) -> PeerCounters:
        return PeerCounters(self.peers[peer].tx, self.peers[peer].rx)

    # Packets

    def send_packet(self, peer: PeerId, payload: bytes) -> None:
        """Handle a packet from the TUN."""
        it = self.peers[peer]
        if it.endpoint is None:
            self.dropped["no_endpoint"] += 1
            return
        if it.staged or not self._usable(it):
            self.dropped["staging_full"] += len(it.staged) == MAX_STAGED_PACKETS
            it.staged.append(payload)
            self._want_key(peer)
        else:
            self._send(peer, payload)

    def receive(self, datagram: bytes, endpoint: Endpoint) -> None:
        try:
            kind = messages.classify(datagram)
        except messages.MessageError:
            self.dropped["malformed"] += 1
            return
        if kind == messages.MESSAGE_TRANSPORT:
            self._receive_transport(datagram, endpoint)
        elif kind == messages.MESSAGE_COOKIE_REPLY or self._mac1_is_valid(datagram):
            self.reports.append(HandshakeDatagram(datagram, endpoint, b"source", self.queue_depth))
        else:
            self.dropped["bad_mac1"] += 1

    def _mac1_is_valid(self, datagram: bytes) -> bool:
        key = self.mac1_key
        return key is not None and same(mac(key, messages.before_mac1(datagram)), messages.mac1_of(datagram))

    def _receive_transport(self, datagram: bytes, endpoint: Endpoint) -> None:
        _, index, counter = _HEADER.unpack_from(datagram)
        peer, keypair = self.indices.get(index, (0, None))
        if keypair is None or self._clock() >= keypair.reject_at:
            self.dropped["no_key"] += 1
            return
        opened = bytearray(len(datagram) - 32)
        try:
            keypair.receive.open(bytes(4) + counter.to_bytes(8, "little"), datagram[16:], None, opened)
        except InvalidTag:
            self.dropped["bad_tag"] += 1
            return
        if not keypair.window.accept(counter):
            self.dropped["replayed"] += 1
            return
        self._authenticated(peer, keypair, bytes(opened), len(datagram), endpoint)

    def _authenticated(self, peer: PeerId, keypair: Keypair, payload: bytes, size: int, endpoint: Endpoint) -> None:
        it = self.peers[peer]
        if it.endpoint != endpoint:
            it.endpoint = endpoint
            self.reports.append(Roamed(peer, endpoint))
        if it.keypairs.next is keypair:
            self._dropped(peer, it.keypairs.confirm())
            self.reports.append(KeyConfirmed(peer, keypair.local_index))
            it.key_wanted_reported = False
            self._send_staged(peer, or_keepalive=False)
        self._received(it, size)
        if payload:
            now = self._clock()
            self.delivered.append((peer, payload))
            it.marks.last_data_received = now
            if not it.marks.data_received_since:
                it.marks.data_received_since = now
                self._active(peer)
        current = it.keypairs.current
        if current is not None and self._clock() >= current.rekey_receive_at:
            self._ask_rekey(peer, current)

    def _send(self, peer: PeerId, payload: bytes) -> None:
        it = self.peers[peer]
        if not self._usable(it):
            self._want_key(peer)
            return
        keypair = it.keypairs.current
        assert keypair is not None
        assert it.endpoint is not None
        nonce = bytes(4) + keypair.send_counter.to_bytes(8, "little")
        used = (keypair.local_index, keypair.remote_index, keypair.send_counter)
        assert used not in self.nonces, "a nonce was used twice"
        self.nonces.add(used)
        sealed = bytearray(len(payload) + 16)
        keypair.send.seal(nonce, payload, None, sealed)
        header = _HEADER.pack(messages.MESSAGE_TRANSPORT, keypair.remote_index, keypair.send_counter)
        keypair.send_counter += 1
        self._sent(it, 32 + len(payload))
        now = self._clock()
        if payload and not it.marks.data_sent_since:
            it.marks.data_sent_since = now
            self._active(peer)
        if keypair.wants_rekey(now):
            self._ask_rekey(peer, keypair)
        self._transmit(it.endpoint, header + bytes(sealed))

    def _send_staged(self, peer: PeerId, *, or_keepalive: bool) -> None:
        it = self.peers[peer]
        if not it.staged and or_keepalive:
            self._send(peer, b"")
        while it.staged and self._usable(it):
            self._send(peer, it.staged.popleft())

    def _usable(self, it: PlanePeer) -> bool:
        return it.keypairs.current is not None and it.keypairs.current.can_send(self._clock())

    def _want_key(self, peer: PeerId) -> None:
        it = self.peers[peer]
        if not it.key_wanted_reported and it.endpoint is not None:
            it.key_wanted_reported = True
            self.reports.append(KeyWanted(peer))

    def _ask_rekey(self, peer: PeerId, keypair: Keypair) -> None:
        if not keypair.rekey_asked:
            keypair.rekey_asked = True
            self.reports.append(KeyWanted(peer, keypair.local_index))

    def _active(self, peer: PeerId) -> None:
        if not self.peers[peer].active_reported:
            self.peers[peer].active_reported = True
            self.reports.append(Active(peer))

    def _sent(self, it: PlanePeer, size: int) -> None:
        it.tx += size
        it.marks.data_received_since = 0
        it.marks.last_traversal = self._clock()

    def _received(self, it: PlanePeer, size: int) -> None:
        it.rx += size
        it.marks.data_sent_since = 0
        it.marks.last_traversal = self._clock()

    def _dropped(self, peer: PeerId, keypairs: list[Keypair]) -> None:
        for keypair in keypairs:
            self.indices.pop(keypair.local_index, None)
        if keypairs:
            self.reports.append(KeypairsDropped(peer, tuple(gone.local_index for gone in keypairs)))
