"""What both directions share: peers, keys by receiver index, routes, counters and the reports that go up.

`Tables` implements the half of the protocol's `DataPlane` that sends nothing, by plain mutation, for the thread that
moves packets (or a test that has no thread). The engine adds the half that sends.
"""

from __future__ import annotations

from collections import Counter, deque

from wyrmhole.datapath.allowed_ips import AllowedIPs
from wyrmhole.datapath.gate import Gate, Queue
from wyrmhole.datapath.keypair import Keypair, Keypairs
from wyrmhole.datapath.quiet_sources import QuietSources
from wyrmhole.datapath.refusals import Refusals
from wyrmhole.datapath.train_health import PATH_QUIET, TrainHealth
from wyrmhole.protocol.constants import (
    MAX_QUEUED_HANDSHAKES,
    MAX_STAGED_BYTES,
    MAX_STAGED_PACKETS,
    STAGED_SHARE,
    UNDER_LOAD_HOLD,
    UNDER_LOAD_QUEUE_DEPTH,
)
from wyrmhole.protocol.data_plane import (
    Active,
    HandshakeDatagram,
    KeypairParams,
    KeypairsDropped,
    KeyWanted,
    Marks,
    PeerCounters,
    PeerId,
    Refused,
    Report,
    Roamed,
    Source,
    TrainsLost,
)
from wyrmhole.protocol.drops import DropReason, Oddity
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.prefix import Prefix

MAX_REPORTS = 1 << 16
"""Reports about peers are said once until answered, so a few for each of the 65,536 peers is all there can be; this
bound is against a control thread that stopped."""

MAX_CACHED_ROUTES = 4096
"""Destinations looked up lately: enough for a busy gateway's flows, at half a megabyte."""

HANDSHAKE_TOS = 0x88
"""Initiations and responses are marked AF41, like the kernel's: they are few and a late one costs a session. Cookie
replies are not marked: a flood asks for them."""

NO_SOCKADDR: SockAddr = ("", 0)


class EnginePeer:
    """One peer on the packet path. The marks (see data_plane) are attributes, because batches write them."""

    __slots__ = (
        "active_said",
        "data_received_since",
        "data_sent_since",
        "drops",
        "health",
        "id",
        "key_wanted_said",
        "keypairs",
        "last_data_received",
        "last_traversal",
        "proven_path",
        "roamed_said",
        "rx_bytes",
        "sockaddr",
        "source",
        "staged",
        "tx_bytes",
    )

    def __init__(self, peer: PeerId, *, doubted: bool = False) -> None:
        self.id = peer
        self.health = TrainHealth(doubted=doubted)
        self.proven_path = 0
        """`Tables.paths` when something authenticated last came from the present endpoint; 0: not yet."""
        self.sockaddr: SockAddr = NO_SOCKADDR
        self.source: Source | None = None
        self.keypairs = Keypairs()
        self.staged: deque[bytes] | None = None
        self.tx_bytes = 0
        self.rx_bytes = 0
        self.drops: dict[DropReason, int] | None = None
        """Made with the first drop: most peers have none."""
        self.data_sent_since = 0
        self.data_received_since = 0
        self.last_data_received = 0
        self.last_traversal = 0
        self.active_said = False
        self.key_wanted_said = False
        self.roamed_said = False

    def marks(self) -> Marks:
        return Marks(self.data_sent_since, self.data_received_since, self.last_data_received, self.last_traversal)


class Tables:
    def __init__(self) -> None:
        self.peers: dict[PeerId, EnginePeer] = {}
        self.indices: dict[int, tuple[EnginePeer, Keypair]] = {}
        self.allowed_ips: AllowedIPs[EnginePeer] = AllowedIPs()
        self.routes: dict[bytes, EnginePeer | None] = {}
        self.drops: Counter[DropReason] = Counter()
        self.oddities: Counter[Oddity] = Counter()
        self.gate = Gate()
        self.refusals = Refusals()
        self.mtu = 1420
        self.listen_port = 0
        self.staged_bytes = 0
        self.doubts_trains = False
        # Grows when the sockets are replaced: every peer is then reached by a new flow.
        self.paths = 1
        # A peer stands for its own `Roamed`, which is made when it is taken: many changes are one report.
        self._reports: deque[Report | EnginePeer] = deque()
        self._handshakes: dict[Queue, deque[tuple[bytes, SockAddr, Source | None]]] = {it: deque() for it in Queue}
        self._quiet_sources = QuietSources()
        self._selects_until = 0

    # Drops

    def drop(self, reason: DropReason, count: int = 1, *, peer: EnginePeer | None = None) -> None:
        """Count dropped packets. `peer`: whose they were."""
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
        """Drop one message, and report it if that was asked for."""
        self.drop(reason, peer=peer)
        if self.refusals.allows(is_peer=peer is not None, now=now):
            who = None if peer is None else peer.id
            self.report(Refused(reason, Endpoint.from_sockaddr(sockaddr), who, inner_source))

    # Reports

    def report(self, report: Report | EnginePeer) -> bool:
        """False: the queue is full, so it was not said and may be tried again."""
        if len(self._reports) >= MAX_REPORTS:
            self.drops[DropReason.REPORT_QUEUE_FULL] += 1
            return False
        self._reports.append(report)
        return True

    def report_handshake(self, queue: Queue, data: bytes, sockaddr: SockAddr, source: Source | None, now: int) -> None:
        """Under load, a message that has proved nothing about its source is taken only if the source was quiet: a
        flood would leave an honest peer no place. Replies need no bound: there are nine for each initiation."""
        waiting = self._handshakes[queue]
        if queue is Queue.OTHERS and self._is_refused_under_load(sockaddr, now):
            self.refuse(DropReason.RATE_LIMITED, sockaddr, now)
        elif queue is not Queue.REPLIES and len(waiting) >= MAX_QUEUED_HANDSHAKES:
            self.refuse(DropReason.HANDSHAKE_QUEUE_FULL, sockaddr, now)
        else:
            waiting.append((data, sockaddr, source))

    def _is_refused_under_load(self, sockaddr: SockAddr, now: int) -> bool:
        if len(self._handshakes[Queue.OTHERS]) >= UNDER_LOAD_QUEUE_DEPTH:
            self._selects_until = now + UNDER_LOAD_HOLD
        return now < self._selects_until and not self._quiet_sources.was_quiet(_source_key(sockaddr), now)

    @property
    def has_reports(self) -> bool:
        return bool(self._reports or any(self._handshakes.values()))

    def take_reports(self, limit: int) -> list[Report]:
        """Oldest first, handshakes last: they are the work that a flood can make much of. Those that proved more come
        before the others."""
        taken: list[Report] = []
        while self._reports and len(taken) < limit:
            report = self._reports.popleft()
            if isinstance(report, EnginePeer):
                # The flag falls first: a change after the endpoint was read is then said again.
                report.roamed_said = False
                taken.append(Roamed(report.id, Endpoint.from_sockaddr(report.sockaddr)))
            else:
                taken.append(report)
        for queue in self._handshakes.values():
            while queue and len(taken) < limit:
                data, sockaddr, source = queue.popleft()
                endpoint = Endpoint.from_sockaddr(sockaddr)
                taken.append(HandshakeDatagram(data, endpoint, source, queue_depth=self._depth()))
        return taken

    def _depth(self) -> int:
        return len(self._handshakes[Queue.PROVEN]) + len(self._handshakes[Queue.OTHERS])

    def want_key(self, peer: EnginePeer) -> None:
        if not peer.key_wanted_said:
            peer.key_wanted_said = self.report(KeyWanted(peer.id))

    def ask_rekey(self, peer: EnginePeer, keypair: Keypair) -> None:
        """Once for each keypair."""
        if not keypair.rekey_asked:
            keypair.rekey_asked = self.report(KeyWanted(peer.id, keypair.local_index))

    def say_active(self, peer: EnginePeer) -> None:
        if not peer.active_said:
            # Raised before it is said: the control thread may lower it as soon as it was.
            peer.active_said = True
            if not self.report(Active(peer.id)):
                peer.active_said = False

    # Trains

    def doubt_trains(self) -> None:
        """The kernel below may damage trains: each peer has to show that they arrive."""
        if not self.doubts_trains:
            self.doubts_trains = True
            for peer in self.peers.values():
                peer.health = TrainHealth(doubted=True)

    def note_departure(self, peer: EnginePeer, packet: bytes, length: int, segments: int, now: int) -> None:
        """TCP packets are about to leave for the peer (see protocol.train_health)."""
        if peer.health.note(packet, length, segments, now):
            self.report(TrainsLost(peer.id))

    def sends_singly(self, peer: EnginePeer) -> bool:
        """Whether the peer gets no trains: they are lost on the way, or nothing came back yet on this path."""
        return peer.health.sends_singly or peer.proven_path != self.paths

    # Marks and counters

    def note_sent(self, peer: EnginePeer, now: int) -> None:
        """An authenticated message leaves for the peer; data also calls `note_data_sent`. Bytes are counted when they
        were sent. Called before trains are gathered, because a flow that was quiet for long is a new one."""
        if now - peer.last_traversal >= PATH_QUIET:
            peer.proven_path = 0
        peer.last_traversal = now
        peer.data_received_since = 0

    def note_data_sent(self, peer: EnginePeer, now: int) -> None:
        if not peer.data_sent_since:
            peer.data_sent_since = now
            self.say_active(peer)

    def note_received(self, peer: EnginePeer, size: int, now: int) -> None:
        """Authenticated bytes came from the peer; data also calls `note_data_received`."""
        peer.rx_bytes += size
        peer.proven_path = self.paths
        peer.last_traversal = now
        peer.data_sent_since = 0

    def note_data_received(self, peer: EnginePeer, now: int) -> None:
        peer.last_data_received = now
        if not peer.data_received_since:
            peer.data_received_since = now
            self.say_active(peer)

    # Routes

    def route(self, destination: bytes) -> EnginePeer | None:
        """The owner of a 4- or 16-byte address, with a bounded cache in front of the trie."""
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
        """Keep a packet until there is a key (rule M49): 128 per peer, and no more bytes than its share of what is left
        for the device; the oldest goes first."""
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

    # Keys

    def install(self, peer: EnginePeer, params: KeypairParams) -> None:
        keypair = Keypair(params)
        self.indices[keypair.local_index] = (peer, keypair)
        peer.key_wanted_said = False
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
        it = self.peers.pop(peer, None)
        if it is None:
            return
        self.drops[DropReason.PEER_REMOVED] += len(self.unstage(it))
        for keypair in it.keypairs.clear():
            self.indices.pop(keypair.local_index, None)
        self.allowed_ips.remove_owner(it)
        self.routes.clear()

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        it = self.peers.get(peer)
        if it is not None:
            self.allowed_ips.insert(prefix, it)
            self.routes.clear()

    def remove_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        it = self.peers.get(peer)
        if it is not None and self.allowed_ips.remove(prefix, it):
            self.routes.clear()

    def set_mac1_key(self, key: bytes | None) -> None:
        self.gate.mac1_key = key

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        it = self.peers.get(peer)
        if it is not None:
            sockaddr = NO_SOCKADDR if endpoint is None else endpoint.sockaddr
            if sockaddr != it.sockaddr or source != it.source:
                it.proven_path = 0
            it.sockaddr = sockaddr
            it.source = source

    def clear_source(self, peer: PeerId) -> None:
        it = self.peers.get(peer)
        if it is not None:
            self.forget_source(it)

    def forget_source(self, peer: EnginePeer) -> None:
        """Another source address is another flow."""
        if peer.source is not None:
            peer.source = None
            peer.proven_path = 0

    def forget_keypairs(self, peer: PeerId) -> None:
        it = self.peers.get(peer)
        if it is not None:
            self.drop_keypairs(it, it.keypairs.clear())

    def expire_sending_keys(self, peer: PeerId) -> None:
        it = self.peers.get(peer)
        if it is not None:
            it.keypairs.expire_sending()

    def expect_key(self, peer: PeerId) -> None:
        it = self.peers.get(peer)
        if it is not None:
            it.key_wanted_said = False
            if it.keypairs.current is not None:
                it.keypairs.current.rekey_asked = False

    def flush_staged(self, peer: PeerId) -> None:
        it = self.peers.get(peer)
        if it is not None:
            self.drop(DropReason.HANDSHAKE_GAVE_UP, len(self.unstage(it)), peer=it)
            it.key_wanted_said = False

    def note_handshake(self, peer: PeerId, rx_bytes: int, now: int) -> None:
        it = self.peers.get(peer)
        if it is not None:
            self.note_received(it, rx_bytes, now)

    def forget_unanswered(self, peer: PeerId, since: int) -> None:
        it = self.peers.get(peer)
        if it is not None and it.data_sent_since == since:
            it.data_sent_since = 0

    def forget_received(self, peer: PeerId, since: int) -> None:
        it = self.peers.get(peer)
        if it is not None and it.data_received_since == since:
            it.data_received_since = 0

    def marks(self, peer: PeerId) -> Marks:
        it = self.peers.get(peer)
        return Marks() if it is None else it.marks()

    def release_activity(self, peer: PeerId) -> Marks:
        it = self.peers.get(peer)
        if it is None:
            return Marks()
        it.active_said = False
        return it.marks()

    def counters(self, peer: PeerId) -> PeerCounters:
        it = self.peers.get(peer)
        return PeerCounters(0, 0) if it is None else PeerCounters(it.tx_bytes, it.rx_bytes)

    def peer_drops(self, peer: PeerId) -> dict[DropReason, int]:
        it = self.peers.get(peer)
        return {} if it is None or it.drops is None else dict(it.drops)

    def roam(self, peer: EnginePeer, sockaddr: SockAddr, source: Source | None) -> None:
        """An authenticated packet came from elsewhere (rule M44)."""
        if peer.sockaddr != sockaddr:
            peer.sockaddr = sockaddr
            if not peer.roamed_said:
                peer.roamed_said = True
                if not self.report(peer):
                    peer.roamed_said = False
        peer.source = source


def _source_key(sockaddr: SockAddr) -> bytes:
    """An IPv4 address as it is written, the bytes of an IPv6 /64."""
    host = sockaddr[0]
    return host.encode() if len(sockaddr) == 2 else Endpoint.from_sockaddr(sockaddr).address_bytes[:8]
