"""Outbound: turns frames from the TUN into sealed datagrams, and gathers these into one train per peer.

A pure step: no socket, no clock. The engine passes frames (`handle_frame`), then has the trains sent (`flush`). In
between, only full trains are sent, so many small packets that are read together share one system call per peer.

A train consists of datagrams of equal size, back to back in one wire buffer; the last one may be shorter. A datagram is
16 bytes of header, the padded packet, and 16 bytes of tag. Packets to one peer keep their order: a packet that does not
have the train's size, or follows a shorter one, begins the next train.

The cost is the Python code that runs per packet. A super-packet (many packets of one size to one peer) therefore takes
one loop with all look-ups outside of it, and the offsets of the datagrams in the buffer are computed once per size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from wyrmhole.datapath.aead import nonce
from wyrmhole.datapath.keypair import Keypair
from wyrmhole.datapath.peer import NO_SOCKADDR, EnginePeer
from wyrmhole.datapath.tables import Tables
from wyrmhole.datapath.train import Train, TrainPool
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire import ip
from wyrmhole.wire.messages import MESSAGE_TRANSPORT, TRANSPORT_HEADER, TRANSPORT_OVERHEAD
from wyrmhole.wire.split import complete, split
from wyrmhole.wire.virtio import F_NEEDS_CSUM, GSO_NONE, VIRTIO_HEADER_SIZE, OffloadError

_PADDINGS = tuple(bytes(count) for count in range(16))
_CHECKSUM_PLACE = struct.Struct("=HH")
"""csum_start and csum_offset at offset 6 of a virtio header."""

SendTrain = Callable[[EnginePeer, memoryview, int, int], object]
"""(peer, datagrams, segment size or 0, type of service)."""


class Outbound:
    """The outbound step. `send` is called for each train, and may use the train's memory only during the call. `answer`
    receives packets that have no destination."""

    def __init__(self, tables: Tables, send: SendTrain, answer: Callable[[bytes], None]) -> None:
        self._tables = tables
        self._send = send
        self._answer = answer
        self._pool = TrainPool()
        self._train = Train()
        # Trains of peers other than that of the latest packet.
        self._parked: dict[EnginePeer, Train] = {}

    def handle_frame(self, frame: memoryview, now: int) -> None:
        """Handle one frame from the TUN: a 10-byte virtio header and a packet or super-packet."""
        if len(frame) <= VIRTIO_HEADER_SIZE:
            self._tables.drop(DropReason.MALFORMED_FRAME)
            return
        try:
            if frame[1] != GSO_NONE:
                packets = split(frame)
            else:
                packet = bytes(frame[VIRTIO_HEADER_SIZE:])
                packets = [
                    complete(packet, *_CHECKSUM_PLACE.unpack_from(frame, 6)) if frame[0] & F_NEEDS_CSUM else packet
                ]
        except OffloadError:
            self._tables.drop(DropReason.MALFORMED_FRAME)
        else:
            self._handle_packets(packets, now)

    def _handle_packets(self, packets: list[bytes], now: int) -> None:
        """Handle the packets of one frame. Those headers that this step reads are the same in all of them."""
        tables = self._tables
        head = packets[0]
        outline = ip.outline_of(head)
        if outline is None:
            tables.drop(DropReason.MALFORMED_FRAME, len(packets))
            return
        destination, protocol, ecn = outline
        peer = tables.route(destination)
        if peer is None or peer.sockaddr is NO_SOCKADDR or tables.gate.mac1_key is None:
            self._refuse(head, peer, len(packets))
        elif protocol == ip.PROTOCOL_UDP and self._is_loop(head, destination, peer):
            tables.drop(DropReason.ROUTE_LOOP, len(packets), peer=peer)
        else:
            self._send_packets(peer, packets, protocol, ecn, now)

    def _send_packets(self, peer: EnginePeer, packets: list[bytes], protocol: int, ecn: int, now: int) -> None:
        """Seal the packets for which there are nonces, in order, and stage the others."""
        tables = self._tables
        keypair = peer.keypairs.current
        if peer.staged or keypair is None or not keypair.can_send(now):
            for packet in packets:
                tables.stage(peer, packet, now)
            return
        first, taken = keypair.take_nonces(len(packets))
        tables.note_sent(peer, now)
        tables.note_data_sent(peer, now)
        if protocol == ip.PROTOCOL_TCP:
            tables.note_departure(peer, packets, now)
        if taken < len(packets):
            for packet in packets[taken:]:
                tables.stage(peer, packet, now)
            packets = packets[:taken]
        if keypair.wants_rekey(now):
            tables.ask_rekey(peer, keypair)
        self._seal_all(peer, keypair, packets, ecn, first)

    def send_staged(self, peer: EnginePeer, now: int) -> None:
        """Send the staged packets in order, because there is a keypair now."""
        for packet in self._tables.unstage(peer):
            _, protocol, ecn = ip.outline_of(packet) or (b"", 0, 0)
            self._send_packets(peer, [packet], protocol, ecn, now)

    def send_keepalive(self, peer: EnginePeer, now: int) -> None:
        """Send an empty packet, which renews a session like data does. Without a usable keypair, ask for one. Do
        nothing if packets are staged, because they have the same effect."""
        if peer.sockaddr is NO_SOCKADDR or peer.staged:
            return
        keypair = peer.keypairs.current
        if keypair is None or not keypair.can_send(now):
            self._tables.want_key(peer)
            return
        counter, _ = keypair.take_nonces(1)
        self._tables.note_sent(peer, now)
        if keypair.wants_rekey(now):
            self._tables.ask_rekey(peer, keypair)
        self._seal_all(peer, keypair, [b""], 0, counter)

    def flush(self) -> None:
        """Send the gathered trains."""
        while self._parked:
            _, train = self._parked.popitem()
            try:
                self._send_train(train)
            finally:
                self._pool.give_back(train)
        if self._train.count:
            self._send_train(self._train)

    def _send_train(self, train: Train) -> None:
        peer, count = train.peer, train.count
        assert peer is not None
        # Emptied first, so that an exception while sending does not leave it full.
        train.peer, train.count = None, 0
        self._send(peer, train.wire[: train.length], train.size if count > 1 else 0, train.tos)

    def _seal_all(self, peer: EnginePeer, keypair: Keypair, packets: list[bytes], tos: int, counter: int) -> None:
        """Seal the packets, with consecutive nonces that start at `counter`. The inner loop seals packets of one size
        that fit one train."""
        seal, index, mtu = keypair.send.seal, keypair.remote_index, self._tables.mtu
        done = 0
        while done < len(packets):
            size = len(packets[done])
            padding = _PADDINGS[padding_of(size, mtu)]
            sealed = size + len(padding) + TRANSPORT_OVERHEAD
            train = self._train_for(peer, sealed, tos)
            wire, start = train.wire, done
            for offset, place in train.room(sealed, len(packets) - done):
                packet = packets[done]
                if len(packet) != size:
                    break
                TRANSPORT_HEADER.pack_into(wire, offset, MESSAGE_TRANSPORT, index, counter)
                seal(nonce(counter), packet + padding, None, place)
                counter += 1
                done += 1
            train.add(sealed, done - start)

    def _train_for(self, peer: EnginePeer, size: int, tos: int) -> Train:
        """Return the peer's train if it can take one more datagram of this size, otherwise an empty train."""
        train = self._train
        if train.count:
            if train.peer is not peer:
                train = self._switch(train, peer)
            if train.count:
                if train.takes(size, tos):
                    return train
                self._send_train(train)
        train.begin(peer, size, tos)
        return train

    def _switch(self, train: Train, peer: EnginePeer) -> Train:
        """Park the current train and return one for this peer. If the pool is empty, send all trains first."""
        other = self._parked.pop(peer, None) or self._pool.take()
        if other is None:
            self.flush()
            return self._train
        assert train.peer is not None
        self._parked[train.peer] = train
        self._train = other
        return other

    def _refuse(self, packet: bytes, peer: EnginePeer | None, count: int) -> None:
        """Drop packets without a route, an endpoint (rule M46) or a private key, and answer their sender."""
        if peer is None:
            reason = DropReason.NO_ROUTE
        else:
            reason = DropReason.NO_ENDPOINT if peer.sockaddr is NO_SOCKADDR else DropReason.NO_PRIVATE_KEY
        self._tables.drop(reason, count, peer=peer)
        self._answer(packet)

    def _is_loop(self, packet: bytes, destination: bytes, peer: EnginePeer) -> bool:
        """Whether this is our own datagram to this peer's endpoint, routed back into the tunnel: each round would wrap
        it again."""
        if ip.udp_ports(packet) != (self._tables.listen_port, peer.sockaddr[1]):
            return False
        return ip.text_of(destination) == peer.sockaddr[0].partition("%")[0]


def padding_of(size: int, mtu: int) -> int:
    """Return the number of zeros that pad a packet to the next multiple of 16, but never beyond the MTU (rule M22). A
    packet larger than the MTU, which may have changed without our knowledge, is taken modulo the MTU, like in the
    kernel module and wireguard-go."""
    if not mtu:
        return -size % 16
    last = size % mtu if size > mtu else size
    return min(-last % 16, mtu - last)
