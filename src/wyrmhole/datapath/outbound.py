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
from wyrmhole.datapath.train import Layout, Train, TrainPool
from wyrmhole.protocol.drops import DropReason
from wyrmhole.wire import ip
from wyrmhole.wire.messages import MESSAGE_TRANSPORT, TRANSPORT_HEADER, TRANSPORT_OVERHEAD
from wyrmhole.wire.split import complete, split
from wyrmhole.wire.virtio import F_NEEDS_CSUM, GSO_NONE, VIRTIO_HEADER_SIZE, OffloadError

_ZEROS = bytes(16)
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
        tables = self._tables
        if len(frame) <= VIRTIO_HEADER_SIZE:
            tables.drop(DropReason.MALFORMED_FRAME)
            return
        try:
            if frame[1] == GSO_NONE:
                packet = bytes(frame[VIRTIO_HEADER_SIZE:])
                if frame[0] & F_NEEDS_CSUM:
                    packet = complete(packet, *_CHECKSUM_PLACE.unpack_from(frame, 6))
                self._handle_plain(packet, now)
                return
            packets = split(frame)
        except OffloadError:
            tables.drop(DropReason.MALFORMED_FRAME)
            return
        self._handle_split(packets, now)

    def _handle_split(self, packets: list[bytes], now: int) -> None:
        """The packets of one super-packet: one destination, so one look-up."""
        tables = self._tables
        destination = ip.destination_bytes(packets[0])
        if destination is None:
            tables.drop(DropReason.MALFORMED_FRAME, len(packets))
            return
        peer = tables.route(destination)
        if peer is None or peer.sockaddr is NO_SOCKADDR or tables.gate.mac1_key is None:
            self._refuse(packets[0], peer, len(packets))
        elif self._is_loop(packets[0], peer):
            tables.drop(DropReason.ROUTE_LOOP, len(packets), peer=peer)
        else:
            self.send_packets(peer, packets, now)

    def _handle_plain(self, packet: bytes, now: int) -> None:
        """One packet by itself: what a ping is, so its way is short. The same steps as for many."""
        tables = self._tables
        length = len(packet)
        first = packet[0]
        if 0x45 <= first <= 0x4F and length >= 20:
            destination, protocol = packet[16:20], packet[9]
        elif first >> 4 == 6 and length >= 40:
            destination, protocol = packet[24:40], packet[6]
        else:
            tables.drop(DropReason.MALFORMED_FRAME)
            return
        peer = tables.routes.get(destination) or tables.route(destination)
        if peer is None or peer.sockaddr is NO_SOCKADDR or tables.gate.mac1_key is None:
            self._refuse(packet, peer, 1)
            return
        if protocol == ip.PROTOCOL_UDP and self._is_loop(packet, peer):
            tables.drop(DropReason.ROUTE_LOOP, peer=peer)
            return
        self._send_packet(peer, packet, now)

    def _send_packet(self, peer: EnginePeer, packet: bytes, now: int) -> None:
        tables = self._tables
        keypair = peer.keypairs.current
        if peer.staged or keypair is None or not keypair.can_send(now):
            tables.stage(peer, packet, now)
            return
        length = len(packet)
        padding = padding_of(length, tables.mtu)
        tos = packet[1] & 3 if packet[0] < 0x50 else packet[1] >> 4 & 3
        tables.note_sent(peer, now)
        if (packet[9] if packet[0] < 0x50 else packet[6]) == ip.PROTOCOL_TCP:
            tables.note_departure(peer, packet, length, 1, now)
        self._seal_one(peer, keypair, packet + _ZEROS[:padding] if padding else packet, tos)
        if not peer.data_sent_since:
            tables.note_data_sent(peer, now)
        if keypair.wants_rekey(now):
            tables.ask_rekey(peer, keypair)

    def send_packets(self, peer: EnginePeer, packets: list[bytes], now: int) -> None:
        """Seal the packets of one super-packet in order, or stage those for which there is no key."""
        keypair = peer.keypairs.current
        if peer.staged or keypair is None or not keypair.can_send(now):
            for packet in packets:
                self._tables.stage(peer, packet, now)
            return
        self._tables.note_sent(peer, now)
        self._tables.note_departure(peer, packets[0], sum(map(len, packets)), len(packets), now)
        fits = keypair.reject_after_messages - keypair.send_counter
        self._seal_all(peer, keypair, packets[:fits], now)
        for packet in packets[fits:]:
            self._tables.stage(peer, packet, now)
        if keypair.wants_rekey(now):
            self._tables.ask_rekey(peer, keypair)

    def send_staged(self, peer: EnginePeer, now: int) -> None:
        """A key is there: what waited leaves, in order."""
        for packet in self._tables.unstage(peer):
            self._send_packet(peer, packet, now)

    def send_keepalive(self, peer: EnginePeer, now: int) -> None:
        """An empty packet, which renews a session as data does; without a usable key one is asked for."""
        if peer.sockaddr is NO_SOCKADDR or peer.staged:
            return
        keypair = peer.keypairs.current
        if keypair is None or not keypair.can_send(now):
            self._tables.want_key(peer)
            return
        self._tables.note_sent(peer, now)
        self._seal_one(peer, keypair, b"", 0)
        if keypair.wants_rekey(now):
            self._tables.ask_rekey(peer, keypair)

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

    def _seal_all(self, peer: EnginePeer, keypair: Keypair, packets: list[bytes], now: int) -> None:
        """Runs of packets of one size are sealed together."""
        start = 0
        while start < len(packets):
            size = len(packets[start])
            end = start + 1
            while end < len(packets) and len(packets[end]) == size:
                end += 1
            padding = padding_of(size, self._tables.mtu)
            run = packets[start:end]
            if padding:
                run = [packet + _ZEROS[:padding] for packet in run]
            self._seal_run(peer, keypair, run, ip.ecn_of(run[0]))
            start = end
        self._tables.note_data_sent(peer, now)

    def _seal_one(self, peer: EnginePeer, keypair: Keypair, packet: bytes, tos: int) -> None:
        """Seal one padded packet into the peer's train, or begin the next."""
        size = len(packet) + TRANSPORT_OVERHEAD
        train = self._train_for(peer, size, tos)
        start = train.length
        wire = train.wire
        counter = keypair.send_counter
        keypair.send_counter = counter + 1
        TRANSPORT_HEADER.pack_into(wire, start, MESSAGE_TRANSPORT, keypair.remote_index, counter)
        keypair.send.seal(nonce(counter), packet, None, wire[start + 16 : start + size])
        train.count += 1
        train.length = start + size
        if size < train.size:
            train.closed = True

    def _seal_run(self, peer: EnginePeer, keypair: Keypair, run: list[bytes], tos: int) -> None:
        """Seal packets of one padded size into trains."""
        size = len(run[0]) + TRANSPORT_OVERHEAD
        done = 0
        while done < len(run):
            train = self._train_for(peer, size, tos)
            if train.size != size:
                self._seal_one(peer, keypair, run[done], tos)
                done += 1
                continue
            places = train.layout(size)[train.count :][: len(run) - done]
            part = run[done : done + len(places)]
            self._seal_into(train, keypair, part, places)
            train.count += len(part)
            train.length += size * len(part)
            done += len(part)

    def _seal_into(self, train: Train, keypair: Keypair, part: list[bytes], places: Layout) -> None:
        seal = keypair.send.seal
        pack_header = TRANSPORT_HEADER.pack_into
        wire = train.wire
        index = keypair.remote_index
        counter = keypair.send_counter
        keypair.send_counter = counter + len(part)
        for packet, (offset, place) in zip(part, places, strict=True):
            pack_header(wire, offset, MESSAGE_TRANSPORT, index, counter)
            seal(nonce(counter), packet, None, place)
            counter += 1

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

    def _is_loop(self, packet: bytes, peer: EnginePeer) -> bool:
        """Our own datagram to this peer's endpoint, routed back into the tunnel: it would grow without end."""
        ports = ip.udp_ports(packet)
        if ports != (self._tables.listen_port, peer.sockaddr[1]):
            return False
        return ip.text_of(ip.destination_bytes(packet)) == peer.sockaddr[0].partition("%")[0]


def padding_of(size: int, mtu: int) -> int:
    """Zeros to the next multiple of 16, never beyond the MTU (rule M22). A packet above the MTU (it was changed where
    we could not see it) is taken modulo the MTU, as the kernel module and wireguard-go do."""
    if not mtu:
        return -size % 16
    last = size % mtu if size > mtu else size
    return min(-last % 16, mtu - last)
