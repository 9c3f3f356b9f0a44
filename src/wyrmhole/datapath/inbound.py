"""Inbound: turns datagrams from the network into frames for the TUN.

A pure step: no socket, no clock. The engine passes the result of one receive (`handle`): a datagram, or a train of
datagrams from one sender. A handshake message is reported if it passes the gate. Data is decrypted, checked, and
coalesced into frames.

The protocol fixes the order of the checks: receiver index, age and limit of the key, tag, and only then the replay
window (rule M23), the inner length (M47) and the inner source against the whole table (M45). A train nearly always has
one sender, one key, consecutive counters and one inner source, so each of these is looked up only when it changes.

Plaintext is decrypted into new `bytes`: in Python this costs the same as decrypting in place, and everything that
follows (slices, sums, the coalescer) is faster on bytes than on views.
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
    """The inbound step. `write` receives each frame for the TUN. `confirmed` is called after a peer's next keypair
    became current, to send the staged packets."""

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
        """Handle the datagrams of one receive."""
        length = len(received.view)
        size = received.segment_size or length
        if not length:
            self._tables.refuse(DropReason.TOO_SHORT, received.sockaddr, now)
        offset = 0
        while offset < length:
            # The sender may change its key within a train; a run has one key.
            offset = self._handle_run(received, offset, size, now)

    def reset(self) -> None:
        """Discard packets that were not yet written, after their turn was abandoned."""
        self.coalescer.take()

    def _marked(self, packet: bytes, outer_ecn: int) -> bytes:
        """Combine the ECN bits of the packet with the outer ones (RFC 6040, rule M48)."""
        inner_ecn = ip.ecn_of(packet)
        if ip.is_unheeded(outer_ecn, inner_ecn):
            self._tables.oddities[Oddity.ECN_UNHEEDED] += 1
        ecn = ip.decapsulate_ecn(outer_ecn, inner_ecn)
        return packet if ecn == inner_ecn else ip.with_ecn(packet, ecn)

    def _handle_run(self, received: Received, offset: int, size: int, now: int) -> int:
        """Handle consecutive data messages with one receiver index, starting at `offset`. Returns where the next run
        begins."""
        view, tables = received.view, self._tables
        end = len(view)
        stop = offset + size if offset + size < end else end
        # Check the length of this datagram, not that of the rest of the train: `_open_run` must consume at least this
        # datagram, otherwise the loop in `handle` would never end.
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
        """Decrypt datagrams as long as they carry the index. Returns the inner packets, the offset of the first
        datagram that does not carry it, and the number of authenticated bytes."""
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
        """Update marks and endpoint, and return whether this confirmed the peer's next keypair. The caller sends the
        staged packets only after the marks for received data are set, which would otherwise clear the mark for sent
        data."""
        tables = self._tables
        tables.note_received(peer, total, now)
        if peer.sockaddr != received.sockaddr or peer.source != received.source:
            tables.roam(peer, received.sockaddr, received.source)
        confirms = peer.keypairs.next is keypair
        if confirms:
            tables.drop_keypairs(peer, peer.keypairs.confirm())
            tables.report(KeyConfirmed(peer.id, keypair.local_index))
            peer.key_wanted_reported = False
        # The age of the current keypair counts, whatever keypair the message used: a late message must not renew a new
        # session.
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
        """Handle a datagram that is not a data message: a handshake message, or an unknown one."""
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
