"""The state that both directions share: peers, keypairs by receiver index, routes, counters, reports.

`Tables` implements the half of the protocol's `DataPlane` that sends nothing. Its methods change the state directly, so
only the thread that moves packets may call them (or a test without threads). The engine adds the half that sends.
"""

from __future__ import annotations

from collections import Counter, deque

from wyrmhole.datapath.allowed_ips import AllowedIPs
from wyrmhole.datapath.gate import Gate
from wyrmhole.datapath.keypair import Keypair
from wyrmhole.datapath.peer import NO_SOCKADDR, EnginePeer
from wyrmhole.datapath.refusals import Refusals
from wyrmhole.datapath.reports import Reports
from wyrmhole.datapath.train_health import PATH_QUIET, TrainHealth
from wyrmhole.protocol.constants import MAX_STAGED_BYTES, MAX_STAGED_PACKETS, STAGED_SHARE
from wyrmhole.protocol.data_plane import (
    Active,
    KeypairParams,
    KeypairsDropped,
    KeyWanted,
    Marks,
    PeerCounters,
    PeerId,
    Refused,
    Report,
    Source,
    TrainsLost,
)
from wyrmhole.protocol.drops import DropReason, Oddity
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.messages import DEFAULT_MTU
from wyrmhole.wire.prefix import Prefix

MAX_CACHED_ROUTES = 4096
"""Destinations in the route cache: enough for the flows of a busy gateway, at half a megabyte."""

HANDSHAKE_TOS = 0x88
"""Initiations and responses are marked AF41, like the kernel's: they are few, and a late one costs a session. Cookie
replies are not marked, because a flood can cause any number of them."""


class Tables:
    """The shared state; see the module."""

    def __init__(self) -> None:
        self.peers: dict[PeerId, EnginePeer] = {}
        self.indices: dict[int, tuple[EnginePeer, Keypair]] = {}
        self.allowed_ips: AllowedIPs[EnginePeer] = AllowedIPs()
        self.routes: dict[bytes, EnginePeer | None] = {}
        self.drops: Counter[DropReason] = Counter()
        self.oddities: Counter[Oddity] = Counter()
        self.gate = Gate()
        self.refusals = Refusals()
        self.reports = Reports()
        self.mtu = DEFAULT_MTU
        self.listen_port = 0
        self.staged_bytes = 0
        self.doubts_trains = False
        # Grows when the sockets are replaced: datagrams to every peer then belong to a new flow.
        self.paths = 1

    # Drops

    def drop(self, reason: DropReason, count: int = 1, *, peer: EnginePeer | None = None) -> None:
        """Count dropped packets, also for the peer that they came from or were sent to, if known."""
        if not count:
            return
        self.drops[reason] += count
        if peer is not None:
            if peer.drops is None:
                peer.drops = {}
            peer.drops[reason] = peer.drops.get(reason, 0) + count

    def refuse(
        self,
        reason: DropReason,
        sockaddr: SockAddr,
        now: int,
        *,
        peer: EnginePeer | None = None,
        inner_source: bytes | None = None,
    ) -> None:
        """Count one refused message, and report it if refusals are to be reported."""
        self.drop(reason, peer=peer)
        if self.refusals.allows(is_peer=peer is not None, now=now):
            sender = None if peer is None else peer.id
            self.report(Refused(reason, Endpoint.from_sockaddr(sockaddr), sender, inner_source))

    # Reports

    def report(self, report: Report | EnginePeer) -> bool:
        """Queue a report. Return false if the queue is full; the caller may try again later."""
        if self.reports.push(report):
            return True
        self.drops[DropReason.REPORT_QUEUE_FULL] += 1
        return False

    def handshake(self, kind: int, message: bytes, sockaddr: SockAddr, source: Source | None, now: int) -> None:
        """Report a message of type 1, 2 or 3 of the right length if it passes the gate, otherwise count its drop."""
        queue = self.gate.admit(kind, message, sockaddr, now)
        if isinstance(queue, DropReason):
            refusal: DropReason | None = queue
        else:
            refusal = self.reports.push_handshake(queue, message, sockaddr, source, now)
        if refusal is not None:
            self.refuse(refusal, sockaddr, now)

    def want_key(self, peer: EnginePeer) -> None:
        """Report that the peer needs a keypair, unless that was reported already."""
        if not peer.key_wanted_reported:
            peer.key_wanted_reported = self.report(KeyWanted(peer.id))

    def ask_rekey(self, peer: EnginePeer, keypair: Keypair) -> None:
        """Report that the keypair should be renewed, once per keypair."""
        if not keypair.rekey_asked:
            keypair.rekey_asked = self.report(KeyWanted(peer.id, keypair.local_index))

    def report_active(self, peer: EnginePeer) -> None:
        if not peer.active_reported:
            # Set before reporting: the control thread may clear it as soon as the report is queued.
            peer.active_reported = True
            if not self.report(Active(peer.id)):
                peer.active_reported = False

    # Trains

    def doubt_trains(self) -> None:
        """Send no trains until each peer's traffic shows that they arrive: this kernel may damage them."""
        if not self.doubts_trains:
            self.doubts_trains = True
            for peer in self.peers.values():
                peer.health = TrainHealth(doubted=True)

    def note_departure(self, peer: EnginePeer, packets: list[bytes], now: int) -> None:
        """Record that the packets of one frame are about to be sent to the peer (see `train_health`)."""
        if peer.health.note(packets, now):
            self.report(TrainsLost(peer.id))

    def sends_singly(self, peer: EnginePeer) -> bool:
        """Whether to send single datagrams to the peer: trains get lost, or nothing was received on this path yet."""
        return peer.health.sends_singly or peer.proven_path != self.paths

    # Marks and counters

    def note_sent(self, peer: EnginePeer, now: int) -> None:
        """Record that an authenticated message is sent to the peer; for data, call `note_data_sent` too. Called before
        the train is gathered, because a flow that was quiet for `PATH_QUIET` counts as new. Bytes are counted when they
        are sent."""
        if now - peer.last_traversal >= PATH_QUIET:
            peer.proven_path = 0
        peer.last_traversal = now
        peer.data_received_since = 0

    def note_data_sent(self, peer: EnginePeer, now: int) -> None:
        if not peer.data_sent_since:
            peer.data_sent_since = now
            self.report_active(peer)

    def note_received(self, peer: EnginePeer, size: int, now: int) -> None:
        """Record authenticated bytes from the peer; for data, call `note_data_received` too."""
        peer.rx_bytes += size
        peer.proven_path = self.paths
        peer.last_traversal = now
        peer.data_sent_since = 0

    def note_data_received(self, peer: EnginePeer, now: int) -> None:
        peer.last_data_received = now
        if not peer.data_received_since:
            peer.data_received_since = now
            self.report_active(peer)

    # Routes

    def route(self, destination: bytes) -> EnginePeer | None:
        """Return the owner of a 4- or 16-byte address. A bounded cache stands in front of the trie."""
        try:
            return self.routes[destination]
        except KeyError:
            pass
        peer = self.allowed_ips.lookup(destination)
        if len(self.routes) >= MAX_CACHED_ROUTES:
            self.routes.clear()
        self.routes[destination] = peer
        return peer

    # Staging

    def stage(self, peer: EnginePeer, packet: bytes, now: int) -> None:
        """Keep a packet until there is a keypair (rule M49). A peer may stage 128 packets, and no more bytes than its
        share of what the device has left. Beyond that its oldest packets are dropped."""
        staged = peer.staged
        if staged is None:
            staged = peer.staged = deque()
        if len(staged) >= MAX_STAGED_PACKETS:
            self.staged_bytes -= len(staged.popleft())
            self.drop(DropReason.STAGING_FULL, peer=peer)
        own = sum(map(len, staged)) + len(packet)
        while own > (MAX_STAGED_BYTES - self.staged_bytes) // STAGED_SHARE and staged:
            oldest = len(staged.popleft())
            own -= oldest
            self.staged_bytes -= oldest
            self.drop(DropReason.STAGING_CAP, peer=peer)
        if own > (MAX_STAGED_BYTES - self.staged_bytes) // STAGED_SHARE:
            self.drop(DropReason.STAGING_CAP, peer=peer)
        else:
            staged.append(packet)
            self.staged_bytes += len(packet)
        if peer.keypairs.current is None or not peer.keypairs.current.can_send(now):
            self.want_key(peer)

    def unstage(self, peer: EnginePeer) -> list[bytes]:
        """Take all staged packets, in order."""
        staged, peer.staged = peer.staged, None
        if not staged:
            return []
        self.staged_bytes -= sum(map(len, staged))
        return list(staged)

    # Keypairs

    def install(self, peer: EnginePeer, params: KeypairParams) -> None:
        keypair = Keypair(params)
        self.indices[keypair.local_index] = (peer, keypair)
        peer.key_wanted_reported = False
        if params.is_initiator:
            self.drop_keypairs(peer, peer.keypairs.install_initiator(keypair))
        else:
            self.drop_keypairs(peer, peer.keypairs.install_responder(keypair))

    def drop_keypairs(self, peer: EnginePeer, keypairs: list[Keypair]) -> None:
        if keypairs:
            for keypair in keypairs:
                self.indices.pop(keypair.local_index, None)
            self.report(KeypairsDropped(peer.id, tuple(keypair.local_index for keypair in keypairs)))

    # The half of DataPlane that sends nothing

    def add_peer(self, peer: PeerId) -> None:
        self.peers[peer] = EnginePeer(peer, doubted=self.doubts_trains)

    def remove_peer(self, peer: PeerId) -> None:
        known = self.peers.pop(peer, None)
        if known is None:
            return
        self.drops[DropReason.PEER_REMOVED] += len(self.unstage(known))
        for keypair in known.keypairs.clear():
            self.indices.pop(keypair.local_index, None)
        self.allowed_ips.remove_owner(known)
        self.routes.clear()

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        known = self.peers.get(peer)
        if known is not None:
            self.allowed_ips.insert(prefix, known)
            self.routes.clear()

    def remove_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        known = self.peers.get(peer)
        if known is not None and self.allowed_ips.remove(prefix, known):
            self.routes.clear()

    def set_mtu(self, mtu: int) -> None:
        self.mtu = mtu

    def set_mac1_key(self, key: bytes | None) -> None:
        self.gate.mac1_key = key

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        known = self.peers.get(peer)
        if known is not None:
            sockaddr = NO_SOCKADDR if endpoint is None else endpoint.sockaddr
            if sockaddr != known.sockaddr or source != known.source:
                known.proven_path = 0
            known.sockaddr = sockaddr
            known.source = source

    def clear_source(self, peer: PeerId) -> None:
        known = self.peers.get(peer)
        if known is not None:
            self.forget_source(known)

    def forget_source(self, peer: EnginePeer) -> None:
        """Forget the source address. Datagrams from another source belong to another flow."""
        if peer.source is not None:
            peer.source = None
            peer.proven_path = 0

    def forget_keypairs(self, peer: PeerId) -> None:
        known = self.peers.get(peer)
        if known is not None:
            self.drop_keypairs(known, known.keypairs.clear())

    def expire_sending_keys(self, peer: PeerId) -> None:
        known = self.peers.get(peer)
        if known is not None:
            known.keypairs.expire_sending()

    def expect_key(self, peer: PeerId) -> None:
        known = self.peers.get(peer)
        if known is not None:
            known.key_wanted_reported = False
            if known.keypairs.current is not None:
                known.keypairs.current.rekey_asked = False

    def flush_staged(self, peer: PeerId) -> None:
        known = self.peers.get(peer)
        if known is not None:
            self.drop(DropReason.HANDSHAKE_GAVE_UP, len(self.unstage(known)), peer=known)
            known.key_wanted_reported = False

    def note_handshake(self, peer: PeerId, rx_bytes: int, now: int) -> None:
        known = self.peers.get(peer)
        if known is not None:
            self.note_received(known, rx_bytes, now)

    def forget_unanswered(self, peer: PeerId, since: int) -> None:
        known = self.peers.get(peer)
        if known is not None and known.data_sent_since == since:
            known.data_sent_since = 0

    def forget_received(self, peer: PeerId, since: int) -> None:
        known = self.peers.get(peer)
        if known is not None and known.data_received_since == since:
            known.data_received_since = 0

    def marks(self, peer: PeerId) -> Marks:
        known = self.peers.get(peer)
        return Marks() if known is None else known.marks()

    def release_activity(self, peer: PeerId) -> Marks:
        known = self.peers.get(peer)
        if known is None:
            return Marks()
        known.active_reported = False
        return known.marks()

    def counters(self, peer: PeerId) -> PeerCounters:
        known = self.peers.get(peer)
        return PeerCounters(0, 0) if known is None else PeerCounters(known.tx_bytes, known.rx_bytes)

    def peer_drops(self, peer: PeerId) -> dict[DropReason, int]:
        known = self.peers.get(peer)
        return {} if known is None or known.drops is None else dict(known.drops)

    def roam(self, peer: EnginePeer, sockaddr: SockAddr, source: Source | None) -> None:
        """Record the addresses of an authenticated packet, if they differ from the known ones (rule M44)."""
        if peer.sockaddr != sockaddr:
            peer.sockaddr = sockaddr
            if not peer.roamed_reported:
                peer.roamed_reported = True
                if not self.report(peer):
                    peer.roamed_reported = False
        peer.source = source
