"""Out: frames from the TUN become sealed datagrams, gathered into one train per peer.

A pure step: no socket, no clock. The engine feeds frames (`handle_frame`), then has the trains sent (`flush`). Between
the two nothing leaves, so many small packets read in one go share one system call per peer.

A train is equal datagrams back to back in one wire buffer, the last one maybe shorter. Each datagram is 16 bytes of
header, the padded packet, 16 bytes of tag. Packets of one peer keep their order: a packet that does not fit the train's
size, or follows the short one, begins the next train.

What costs is Python per packet. So the path of a super-packet (many packets of one size to one peer) is one loop with
its lookups outside: where each datagram lies in the buffer is computed once for each size and kept.
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
    """`send` is called for each full train; the memory is the step's own and only lent for the call. `answer` gets the
    packets that have nowhere to go."""

    def __init__(self, tables: Tables, send: SendTrain, answer: Callable[[bytes], None]) -> None:
        self._tables = tables
        self._send = send
        self._answer = answer
        self._pool = TrainPool()
        self._train = Train()
        # Trains of other peers than that of the latest packet.
        self._parked: dict[EnginePeer, Train] = {}

    def handle_frame(self, frame: memoryview, now: int) -> None:
        """One frame from the TUN: a 10-byte virtio header and a packet or super-packet."""
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
        """The packets of one frame. Their headers are the same, so the first one stands for all."""
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
        """Seal the packets for which there are nonces, in order, and stage the rest."""
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
        """A key is there: what waited leaves, in order."""
        for packet in self._tables.unstage(peer):
            _, protocol, ecn = ip.outline_of(packet) or (b"", 0, 0)
            self._send_packets(peer, [packet], protocol, ecn, now)

    def send_keepalive(self, peer: EnginePeer, now: int) -> None:
        """An empty packet, which renews a session as data does; without a usable key one is asked for."""
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
        """Send what was gathered."""
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
        # Empty from here on, also if sending raises.
        train.peer, train.count = None, 0
        self._send(peer, train.wire[: train.length], train.size if count > 1 else 0, train.tos)

    def _seal_all(self, peer: EnginePeer, keypair: Keypair, packets: list[bytes], tos: int, counter: int) -> None:
        """Seal the packets under nonces from `counter` on. Those of one size that fit one train are one loop."""
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
        """The peer's train if one more datagram of this size may join it, else a fresh one."""
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
        """Put the train of another peer aside for this peer's; there are only so many."""
        other = self._parked.pop(peer, None) or self._pool.take()
        if other is None:
            self.flush()
            return self._train
        assert train.peer is not None
        self._parked[train.peer] = train
        self._train = other
        return other

    def _refuse(self, packet: bytes, peer: EnginePeer | None, count: int) -> None:
        """No peer, none whose address is known (rule M46), or no key of our own: the sender is told."""
        if peer is None:
            reason = DropReason.NO_ROUTE
        else:
            reason = DropReason.NO_ENDPOINT if peer.sockaddr is NO_SOCKADDR else DropReason.NO_PRIVATE_KEY
        self._tables.drop(reason, count, peer=peer)
        self._answer(packet)

    def _is_loop(self, packet: bytes, destination: bytes, peer: EnginePeer) -> bool:
        """Our own datagram to this peer's endpoint, routed back into the tunnel: it would grow without end."""
        if ip.udp_ports(packet) != (self._tables.listen_port, peer.sockaddr[1]):
            return False
        return ip.text_of(destination) == peer.sockaddr[0].partition("%")[0]


def padding_of(size: int, mtu: int) -> int:
    """Zeros to the next multiple of 16, never beyond the MTU (rule M22). A packet above the MTU (it was changed where
    we could not see it) is taken modulo the MTU, as the kernel module and wireguard-go do."""
    if not mtu:
        return -size % 16
    last = size % mtu if size > mtu else size
    return min(-last % 16, mtu - last)
