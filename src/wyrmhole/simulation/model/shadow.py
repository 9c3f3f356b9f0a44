"""The reference model of one life of a host: what state the host must be in, by the rules of the protocol.

The shadow sees the input and output of an interface and its engine (data-plane calls, datagrams, inner packets). From
these it derives the expected state by the simplest means: sessions in three slots, replay windows as sets of numbers,
routes by examining every prefix, staged packets as a list. It opens every datagram that leaves with its own copies of
the keys. Where engine and model differ, a named check fails.

`now` is always the host's own boottime.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container, Iterator
from dataclasses import replace

from wyrmhole.protocol.cookie import cookie_key, mac1_key
from wyrmhole.protocol.data_plane import KeypairParams, PeerId
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.protocol.primitives import InvalidTag, mac, xopen
from wyrmhole.simulation import packets
from wyrmhole.simulation.model.checks import Check, Violation, require
from wyrmhole.simulation.model.ledger import Genuine, Ledger, LifeId
from wyrmhole.simulation.model.shadow_peer import (
    COOKIE_LIFETIME,
    KEEPALIVE,
    LOAD_HOLD,
    MAX_STAGED,
    MAX_WAIT,
    MESSAGE_LIMIT,
    NOWHERE,
    REJECT_AFTER,
    REKEY_TIMEOUT,
    SECOND,
    Session,
    ShadowPeer,
)
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.messages import CookieReply, before_mac1, before_mac2, mac1_of, mac2_of
from wyrmhole.wire.prefix import Prefix


class Shadow:
    """The model of one life. It must learn of each input before the engine does: it checks output against new state."""

    def __init__(self, ledger: Ledger, life: LifeId) -> None:
        self.ledger = ledger
        self.life = life
        self.now = 0
        self.resumed_at = 0
        self.identity = b""
        self.stopped = False
        self.routes: dict[Prefix, bytes] = {}
        self.peers: dict[PeerId, ShadowPeer] = {}
        self.by_local: dict[int, Session] = {}
        self.by_remote: dict[int, list[Session]] = {}
        self.drops: Counter[str] = Counter()
        self.outputs: list[tuple[SockAddr, bytes]] = []
        """The datagrams that left since the host last cleared this list."""
        self.expected: deque[bytes] = deque()
        """Inner packets that the engine must write to the TUN in this turn."""
        self.refusal = Check.REPLAY_WINDOW_IS_A_SET
        """The check that fails if the engine delivers the datagram that the model refused last."""
        self.injecting: int | None = None
        self.installing = False
        self.last_deep_queue = -LOAD_HOLD - 1
        self.input: bytes = b""
        """The handshake message that the protocol is handling."""
        self.input_from: SockAddr = NOWHERE
        self.proved: PeerId | None = None
        """The peer that this message was accepted from."""
        self._owners: dict[bytes, bytes | None] = {}

    # Configuration

    def set_routes(self, routes: dict[Prefix, bytes]) -> None:
        self.routes = dict(routes)
        self._owners.clear()

    def owner(self, destination: bytes) -> bytes | None:
        if destination not in self._owners:
            self._owners[destination] = packets.longest_prefix(self.routes, destination)
        return self._owners[destination]

    def peer_of(self, public: bytes | None) -> ShadowPeer | None:
        return next((peer for peer in self.peers.values() if peer.public == public), None)

    def add_peer(self, peer: PeerId, public: bytes) -> None:
        self.peers[peer] = ShadowPeer(peer, public)

    def remove_peer(self, peer: PeerId) -> None:
        removed = self.peers[peer]
        self.clear_slots(removed)
        self.drop_staged(removed, "peer_removed")
        del self.peers[peer]

    # Sessions

    def install(self, peer: ShadowPeer, params: KeypairParams) -> None:
        require(
            params.local_index not in self.by_local,
            Check.INDICES_ARE_UNIQUE,
            f"index {params.local_index:#x} was drawn while in use",
        )
        # Copy the keys, because the caller wipes its buffers after installing them.
        params = replace(params, send_key=bytes(params.send_key), receive_key=bytes(params.receive_key))
        self.ledger.new_key(bytes(params.send_key), self.life)
        session = Session(params, peer.id, self.now, self.identity, confirmed=params.is_initiator)
        self.by_local[params.local_index] = session
        self.by_remote.setdefault(params.remote_index, []).append(session)
        peer.session_at = self.now
        self.ledger.counts["sessions"] += 1
        if params.is_initiator:
            self._install_initiator(peer, session)
        else:
            self._drop(peer.next)
            self._drop(peer.previous)
            peer.previous, peer.next = None, session

    def _install_initiator(self, peer: ShadowPeer, session: Session) -> None:
        self._drop(peer.previous)
        if peer.next is not None:
            self._drop(peer.current)
            peer.previous, peer.next = peer.next, None
        else:
            peer.previous = peer.current
        peer.current = session

    def _confirm(self, peer: ShadowPeer, session: Session) -> None:
        self._drop(peer.previous)
        peer.previous, peer.current, peer.next = peer.current, session, None
        session.confirmed = True

    def clear_slots(self, peer: ShadowPeer) -> None:
        for session in (peer.previous, peer.current, peer.next):
            self._drop(session)
        peer.previous = peer.current = peer.next = None

    def end(self) -> None:
        """End the life: none of its keys may be used again."""
        self.stopped = True
        for peer in self.peers.values():
            self.clear_slots(peer)

    def secrets(self) -> Iterator[bytes]:
        """Yield the keys of every session that is in a slot."""
        for session in self.by_local.values():
            yield bytes(session.params.send_key)
            yield bytes(session.params.receive_key)

    def expire_sending(self, peer: ShadowPeer) -> None:
        for session in (peer.current, peer.next):
            if session is not None:
                session.expired = True

    def _drop(self, session: Session | None) -> None:
        if session is not None:
            del self.by_local[session.params.local_index]
            self.ledger.retire_key(bytes(session.params.send_key))
            same = self.by_remote[session.params.remote_index]
            same.remove(session)
            if not same:
                del self.by_remote[session.params.remote_index]

    # Packets from the TUN

    def inject(self, number: int, packet: bytes, destination: bytes) -> bool:
        """Note a packet that is about to come from the TUN. Return whether it must leave in this turn."""
        owner = self.owner(destination)
        self.ledger.packets[number] = packets.PacketRecord(packet, self.life[0], owner, self.ledger.now)
        self.injecting = number
        peer = self.peer_of(owner)
        if peer is None:
            self.drops["no_route"] += 1
        elif peer.endpoint is NOWHERE:
            self.drops["no_endpoint"] += 1
        elif not peer.staged and peer.usable(self.now):
            return True
        else:
            self._stage(peer, number)
        return False

    def _stage(self, peer: ShadowPeer, number: int) -> None:
        if len(peer.staged) == MAX_STAGED:
            peer.staged.popleft()
            self.drops["staging_full"] += 1
        peer.staged.append((number, self.now))

    def drop_staged(self, peer: ShadowPeer, cause: str) -> None:
        for _, since in peer.staged:
            self._check_wait(since)
        self.drops[cause] += len(peer.staged)
        peer.staged.clear()

    def _check_wait(self, since: int) -> None:
        waited = self.now - max(since, self.resumed_at)
        require(
            waited <= MAX_WAIT,
            Check.STAGED_PACKETS_HAVE_AN_END,
            f"host {self.life[0]}: a packet waited {waited / SECOND:.1f} s for a keypair",
        )

    def check_waiting(self) -> None:
        for peer in self.peers.values():
            if peer.staged:
                self._check_wait(peer.staged[0][1])

    # What leaves

    def sent(self, sockaddr: SockAddr, data: bytes, arrives: bool) -> None:
        """Check a datagram that is given to the socket. `arrives` is false if the socket refuses it."""
        require(
            not self.stopped, Check.STOPPED_MEANS_SILENT, f"host {self.life[0]} sent a datagram after it was stopped"
        )
        self.outputs.append((sockaddr, data))
        if data[0] == 4:
            self._sealed(sockaddr, data, arrives)

    def _sealed(self, sockaddr: SockAddr, data: bytes, arrives: bool) -> None:
        counter = int.from_bytes(data[8:16], "little")
        session, plain = self._open_sent(int.from_bytes(data[4:8], "little"), counter, data)
        peer = self.peers[session.peer]
        self._check_session(peer, session, counter)
        self.ledger.seal(bytes(session.params.send_key), counter)
        require(
            sockaddr == peer.endpoint,
            Check.ENDPOINTS_FOLLOW_PROOF,
            f"host {self.life[0]} sent to {sockaddr}, not to {peer.endpoint}",
        )
        if plain:
            self._packet_left(peer, plain)
        else:
            self._keepalive_left(peer)
        peer.tx += len(data) * arrives
        self.mark_sent(peer)

    def _open_sent(self, index: int, counter: int, data: bytes) -> tuple[Session, bytes]:
        nonce = bytes(4) + counter.to_bytes(8, "little")
        for session in reversed(self.by_remote.get(index, [])):
            try:
                return session, session.sealing.open_copy(nonce, data[16:], None)
            except InvalidTag:
                continue
        raise Violation(
            Check.KEYPAIRS_ROTATE_IN_ORDER, f"host {self.life[0]} sealed under a key that is not in any slot"
        )

    def _check_session(self, peer: ShadowPeer, session: Session, counter: int) -> None:
        text = f"host {self.life[0]}, session {session.params.local_index:#x}"
        age = self.now - session.birth
        require(
            session.confirmed,
            Check.RESPONDERS_WAIT_FOR_CONFIRMATION,
            f"{text}: a responder sent before confirmation",
        )
        require(
            session is peer.current, Check.KEYPAIRS_ROTATE_IN_ORDER, f"{text}: sent under a key that is not current"
        )
        require(age < REJECT_AFTER, Check.KEYPAIRS_EXPIRE, f"{text}: sent at age {age / SECOND:.3f} s")
        require(counter < MESSAGE_LIMIT, Check.KEYPAIRS_EXPIRE, f"{text}: counter {counter} is beyond the limit")
        require(
            session.identity == self.identity,
            Check.SECRETS_ARE_NOT_MIXED,
            f"{text}: sent in a session of the former private key",
        )

    def _packet_left(self, peer: ShadowPeer, plain: bytes) -> None:
        number = packets.number_of(plain)
        record = self.ledger.packets.get(-1 if number is None else number)
        if number is None or record is None or plain[: packets.length_of(plain)] != record.data:
            raise Violation(
                Check.PACKETS_ARRIVE_INTACT, f"host {self.life[0]} sealed a packet that was not read from its TUN"
            )
        require(
            record.owner == peer.public,
            Check.PACKETS_GO_TO_THEIR_OWNER,
            f"host {self.life[0]}: packet {number} went to another peer than its owner",
        )
        require(
            not record.sealed,
            Check.STAGED_PACKETS_ARE_ACCOUNTED_FOR,
            f"host {self.life[0]}: packet {number} left twice",
        )
        record.sealed, record.at = True, self.ledger.now
        self.ledger.counts["packets sent"] += 1
        if peer.staged:
            first, since = peer.staged.popleft()
            require(
                number == first,
                Check.STAGED_PACKETS_ARE_ACCOUNTED_FOR,
                f"host {self.life[0]}: packet {number} left before {first}",
            )
            self._check_wait(since)
        else:
            require(
                number == self.injecting,
                Check.STAGED_PACKETS_ARE_ACCOUNTED_FOR,
                f"host {self.life[0]}: packet {number} left after its turn without being staged",
            )

    def _keepalive_left(self, peer: ShadowPeer) -> None:
        if self.installing:
            return
        quiet = self.now - peer.last_traversal
        if peer.persistent and (peer.persistent_owed or quiet >= peer.persistent * SECOND):
            peer.persistent_owed = False
            return
        host = f"host {self.life[0]}"
        require(
            bool(peer.data_received_since),
            Check.KEEPALIVES_CAUSE_NO_KEEPALIVE,
            f"{host}: a keepalive left although no received data was unanswered",
        )
        since = self.now - peer.data_received_since
        require(
            since >= KEEPALIVE,
            Check.KEEPALIVES_ARE_SPACED,
            f"{host}: a keepalive left {since / SECOND:.3f} s after data was received",
        )
        require(
            self.now - peer.last_passive >= KEEPALIVE,
            Check.KEEPALIVES_ARE_SPACED,
            f"{host}: two keepalives left within 10 s",
        )
        peer.last_passive = self.now

    def mark_sent(self, peer: ShadowPeer) -> None:
        peer.last_traversal = self.now
        peer.data_received_since = 0

    # What arrives

    def arrive(self, sockaddr: SockAddr, data: bytes) -> ShadowPeer | None:
        """Note a datagram that is about to be given to the engine.

        Return the peer if it is authentic transport data.
        """
        if len(data) < 32 or data[:4] != b"\4\0\0\0":
            return None
        session = self.by_local.get(int.from_bytes(data[4:8], "little"))
        counter = int.from_bytes(data[8:16], "little")
        self.refusal = Check.REPLAY_WINDOW_IS_A_SET
        if session is None:
            return None
        try:
            plain = session.opening.open_copy(bytes(4) + data[8:16], data[16:], None)
        except InvalidTag:
            return None
        if self.now >= session.birth + REJECT_AFTER or counter >= MESSAGE_LIMIT:
            self.refusal = Check.KEYPAIRS_EXPIRE
            return None
        return self._accept(session, counter, plain, sockaddr, len(data)) if session.accepts(counter) else None

    def _accept(self, session: Session, counter: int, plain: bytes, sockaddr: SockAddr, size: int) -> ShadowPeer:
        peer = self.peers[session.peer]
        peer.endpoint = sockaddr
        peer.rx += size
        peer.last_traversal = self.now
        if peer.next is session:
            self._confirm(peer, session)
        if plain:
            peer.data_received_since = peer.data_received_since or self.now
            inner = plain[: packets.length_of(plain)]
            if self.owner(packets.source_of(inner)) == peer.public:
                self.expected.append(inner)
        return peer

    def delivered(self, packet: bytes, identities: Container[bytes]) -> None:
        """Check a packet that was written to the TUN of a host with these public keys, past and present."""
        number = packets.number_of(packet)
        if number is None:
            return
        text = f"host {self.life[0]}: packet {number}"
        record = self.ledger.packets.get(number)
        if record is None or record.data != packet:
            raise Violation(Check.PACKETS_ARRIVE_INTACT, f"{text} differs from what was sent")
        owner = self.ledger.owners.get(self.owner(packets.source_of(packet)) or b"")
        require(
            owner == record.sender, Check.PACKETS_ARRIVE_INTACT, f"{text} has a source that belongs to another peer"
        )
        require(record.owner in identities, Check.PACKETS_GO_TO_THEIR_OWNER, f"{text} was sent to another host")
        require(not record.delivered, Check.PACKETS_ARRIVE_ONCE, f"{text} was delivered twice")
        if not self.expected or self.expected.popleft() != packet:
            raise Violation(self.refusal, f"{text} was delivered but should have been refused")
        record.delivered = True
        self.ledger.counts["packets delivered"] += 1

    def turn_is_over(self) -> None:
        self.injecting = None
        if self.expected:
            number = packets.number_of(self.expected[0])
            self.expected.clear()
            raise Violation(
                Check.REPLAY_WINDOW_IS_A_SET,
                f"host {self.life[0]}: packet {number} was refused but should have been delivered",
            )

    # Handshakes

    def initiation_left(self, peer: ShadowPeer, data: bytes, stamp: bytes) -> None:
        gap = self.now - peer.last_initiation
        require(
            gap >= REKEY_TIMEOUT,
            Check.INITIATIONS_ARE_SPACED,
            f"host {self.life[0]}: two initiations left within {gap / SECOND:.3f} s",
        )
        require(
            stamp > peer.stamp_sent, Check.TIMESTAMPS_RISE, f"host {self.life[0]} repeated or lowered its timestamp"
        )
        peer.last_initiation, peer.stamp_sent = self.now, stamp
        peer.initiations += 1
        self.ledger.counts["initiations"] += 1
        self._handshake_left(peer, data, Genuine(1, self.identity, peer.public, stamp=stamp))

    def response_left(self, peer: ShadowPeer, data: bytes, secret: bytes) -> None:
        self._handshake_left(peer, data, Genuine(2, self.identity, peer.public, secret=secret))

    def _handshake_left(self, peer: ShadowPeer, data: bytes, genuine: Genuine) -> None:
        self.ledger.made(data, genuine)
        if any(mac2_of(data)):
            fresh = [cookie for at, cookie in peer.cookies if self.now - at <= COOKIE_LIFETIME]
            valid = any(mac(cookie, before_mac2(data)) == mac2_of(data) for cookie in fresh)
            require(
                valid,
                Check.COOKIES_ARE_FRESH,
                f"host {self.life[0]}: a mac2 was made without a fresh cookie of that peer",
            )
        self.mark_sent(peer)

    def cookie_left(self, data: bytes) -> None:
        quiet = self.now - self.last_deep_queue
        require(
            quiet < LOAD_HOLD,
            Check.LOAD_ENDS,
            f"host {self.life[0]}: a cookie reply left {quiet / SECOND:.3f} s after the load",
        )
        reply = CookieReply.parse(data)
        cookie = xopen(cookie_key(PublicKey(self.identity)), reply.nonce, reply.encrypted_cookie, mac1_of(self.input))
        self.ledger.made(data, Genuine(3, self.identity, None, cookie=cookie))
        self.ledger.counts["cookie replies"] += 1

    def cookie_arrived(self, data: bytes) -> None:
        genuine = self.ledger.genuine(data)
        peer = None if genuine is None else self.peer_of(genuine.sender)
        if peer is not None and genuine is not None:
            peer.cookies = [each for each in peer.cookies if self.now - each[0] <= COOKIE_LIFETIME]
            peer.cookies.append((self.now, genuine.cookie))

    def handshake_proved(self, peer: ShadowPeer, size: int, secret: bytes) -> None:
        """Check that the protocol was right to accept `input`. `secret` is our preshared key for the peer."""
        host = f"host {self.life[0]}"
        genuine = self.ledger.genuine(self.input)
        if genuine is None or genuine.to != self.identity or genuine.sender != peer.public:
            raise Violation(
                Check.UNPROVEN_INPUT_CHANGES_NOTHING,
                f"{host} accepted a handshake message that this peer did not send to it",
            )
        if genuine.kind == 1:
            require(
                genuine.stamp > peer.stamp_accepted,
                Check.TIMESTAMPS_RISE,
                f"{host} accepted an old timestamp",
            )
            peer.stamp_accepted = genuine.stamp
        else:
            require(
                genuine.secret == secret,
                Check.SECRETS_ARE_NOT_MIXED,
                f"{host} completed a handshake with another preshared key",
            )
        require(
            size == len(self.input),
            Check.COUNTERS_ARE_SUMS,
            f"{host} counted {size} bytes for a handshake message of {len(self.input)}",
        )
        self.proved = peer.id
        peer.rx += size
        peer.last_traversal = self.now

    def mac1_is_valid(self, data: bytes) -> bool:
        return mac(mac1_key(PublicKey(self.identity)), before_mac1(data)) == mac1_of(data)

    def check_silence(self, source: Endpoint) -> None:
        """Check that unproven input caused at most one cookie reply to its source (I13)."""
        for sockaddr, data in self.outputs:
            is_cookie = data[0] == 3 and len(data) == 64
            require(
                is_cookie and sockaddr == source.sockaddr and self.mac1_is_valid(self.input),
                Check.UNPROVEN_SOURCES_GET_NOTHING,
                f"host {self.life[0]} answered unproven input with a message of type {data[0]}",
            )
        require(
            len(self.outputs) <= 1,
            Check.UNPROVEN_SOURCES_GET_NOTHING,
            f"host {self.life[0]} answered one message twice",
        )
