"""In: datagrams from the network become frames for the TUN.

A pure step: no socket, no clock. The engine feeds what one receive gave (`handle`): a datagram, or a train of them from
one sender. Handshake messages are reported if they pass the gate; data is opened, checked and joined into frames again.

The order of checks is fixed by the protocol: receiver index, age and limit of the key, tag, and only then the replay
window (rule M23), the inner length (M47) and the inner source against the whole table (M45). A train is nearly always
one sender, one key, consecutive counters and one inner source, so each of these is looked up when it changes.

Plaintext is opened into `bytes` of its own: in Python that costs what opening in place does, and everything after it
(slices, sums, the coalescer) is faster on bytes than on views.
"""

from __future__ import annotations

from collections.abc import Callable

from wyrmhole.datapath.aead import nonce
from wyrmhole.datapath.keypair import Keypair
from wyrmhole.datapath.peer import EnginePeer
from wyrmhole.datapath.tables import Tables
from wyrmhole.protocol.data_plane import KeyConfirmed
from wyrmhole.protocol.drops import DropReason, Oddity
from wyrmhole.protocol.primitives import InvalidTag
from wyrmhole.wire import ip, messages
from wyrmhole.wire.coalesce import Coalescer, Frame
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.messages import MESSAGE_TRANSPORT, TRANSPORT_HEADER, TRANSPORT_HEADER_SIZE, TRANSPORT_OVERHEAD


class Inbound:
    """`write` takes each frame for the TUN; `confirmed` is called when a peer's next key became current, so that what
    was staged can leave."""

    def __init__(
        self,
        tables: Tables,
        write: Callable[[Frame], None],
        confirmed: Callable[[EnginePeer], None],
        coalescer: Coalescer,
    ) -> None:
        self._tables = tables
        self._write = write
        self._confirmed = confirmed
        self.coalescer = coalescer

    def handle(self, received: Received, now: int) -> None:
        """Everything that came from one sender at once."""
        length = len(received.view)
        size = received.segment_size or length
        if not length:
            self._tables.refuse(DropReason.TOO_SHORT, received.sockaddr, now)
        offset = 0
        while offset < length:
            # A train from one sender may change its key in the middle; each run has one.
            offset = self._handle_run(received, offset, size, now)

    def reset(self) -> None:
        """Forget what waits to be written: the batch that it belongs to was given up."""
        self.coalescer.take()

    def _marked(self, packet: bytes, outer_ecn: int) -> bytes:
        """The packet with the ECN bits that follow from the outer ones (RFC 6040, rule M48)."""
        inner_ecn = ip.ecn_of(packet)
        if ip.is_unheeded(outer_ecn, inner_ecn):
            self._tables.oddities[Oddity.ECN_UNHEEDED] += 1
        ecn = ip.decapsulate_ecn(outer_ecn, inner_ecn)
        return packet if ecn == inner_ecn else ip.with_ecn(packet, ecn)

    def _handle_run(self, received: Received, offset: int, size: int, now: int) -> int:
        """Data under one receiver index from `offset` on; returns where the next run begins."""
        view, tables = received.view, self._tables
        end = len(view)
        stop = offset + size if offset + size < end else end
        # The whole datagram must be there, not only enough bytes of the train: what is opened below then takes at
        # least this one, or this would never end.
        if stop - offset < TRANSPORT_OVERHEAD:
            self._handle_other(view[offset:stop], received, now)
            return stop
        kind, index, _ = TRANSPORT_HEADER.unpack_from(view, offset)
        if kind != MESSAGE_TRANSPORT:
            self._handle_other(view[offset:stop], received, now)
            return stop
        entry = tables.indices.get(index)
        if entry is None:
            tables.drop(DropReason.UNKNOWN_INDEX)
            return stop
        peer, keypair = entry
        if now >= keypair.reject_at:
            tables.drop(DropReason.KEY_EXPIRED, peer=peer)
            return stop
        opened, stop, total = self._open_run(view, offset, size, index, peer, keypair)
        if total:
            confirmed = self._authenticated(peer, keypair, received, total, now)
            if opened:
                self._deliver(peer, opened, received.tos & ip.ECN_MASK, now)
            if confirmed:
                self._confirmed(peer)
        return stop

    def _open_run(
        self, view: memoryview, offset: int, size: int, index: int, peer: EnginePeer, keypair: Keypair
    ) -> tuple[list[bytes], int, int]:
        """Open datagrams while they carry the index. Returns the inner packets, where it stopped, and the bytes of
        what was authenticated."""
        unpack = TRANSPORT_HEADER.unpack_from
        open_ = keypair.receive.open_copy
        accept = keypair.window.accept
        limit = keypair.reject_after_messages
        drop = self._tables.drop
        end = len(view)
        opened: list[bytes] = []
        total = 0
        while offset < end:
            stop = offset + size if offset + size < end else end
            length = stop - offset
            if length < TRANSPORT_OVERHEAD:
                break
            kind, receiver, counter = unpack(view, offset)
            if kind != MESSAGE_TRANSPORT or receiver != index:
                break
            try:
                packet = open_(nonce(counter), view[offset + TRANSPORT_HEADER_SIZE : stop], None)
            except InvalidTag:
                drop(DropReason.BAD_TAG, peer=peer)
                offset = stop
                continue
            offset = stop
            if counter >= limit:
                drop(DropReason.MESSAGE_LIMIT, peer=peer)
            elif not accept(counter):
                drop(DropReason.REPLAYED, peer=peer)
            else:
                total += length
                if packet:
                    opened.append(packet)
        return opened, offset, total

    def _authenticated(self, peer: EnginePeer, keypair: Keypair, received: Received, total: int, now: int) -> bool:
        """Whether this confirmed the peer's next key. What was staged for it leaves later, after the marks of what
        came were made: else they would take the mark of what is sent away."""
        tables = self._tables
        tables.note_received(peer, total, now)
        if peer.sockaddr != received.sockaddr or peer.source != received.source:
            tables.roam(peer, received.sockaddr, received.source)
        confirms = peer.keypairs.next is keypair
        if confirms:
            tables.drop_keypairs(peer, peer.keypairs.confirm())
            tables.report(KeyConfirmed(peer.id, keypair.local_index))
            peer.key_wanted_said = False
        # The current session is renewed, whatever session the message came under: a late one must not renew a new one.
        current = peer.keypairs.current
        if current is not None and now >= current.rekey_receive_at:
            tables.ask_rekey(peer, current)
        return confirms

    def _deliver(self, peer: EnginePeer, opened: list[bytes], outer_ecn: int, now: int) -> None:
        tables = self._tables
        tables.note_data_received(peer, now)
        route = tables.route
        add = self.coalescer.add
        allowed: bytes | None = None
        for packet in opened:
            total, source = ip.origin_of(packet)
            if not total:
                tables.drop(DropReason.NOT_IP, peer=peer)
                continue
            if source != allowed:
                if route(source) is not peer:
                    tables.refuse(DropReason.BAD_SOURCE, peer.sockaddr, now, peer=peer, inner_source=source)
                    continue
                allowed = source
            inner = packet if total == len(packet) else packet[:total]
            add(self._marked(inner, outer_ecn) if outer_ecn else inner)
        for frame in self.coalescer.take():
            self._write(frame)

    def _handle_other(self, data: memoryview, received: Received, now: int) -> None:
        """Not data: a handshake message, or nothing that we know."""
        refuse = self._tables.refuse
        try:
            kind = messages.classify(data)
        except messages.TooShort:
            refuse(DropReason.TOO_SHORT, received.sockaddr, now)
        except messages.WrongLength:
            refuse(DropReason.WRONG_LENGTH, received.sockaddr, now)
        except messages.MessageError:
            refuse(DropReason.UNKNOWN_TYPE, received.sockaddr, now)
        else:
            self._tables.handshake(kind, bytes(data), received.sockaddr, received.source, now)
