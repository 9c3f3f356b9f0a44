"""A data plane between an interface and its engine that shows the shadow each call, then forwards it."""

from __future__ import annotations

from collections.abc import Callable

from wyrmhole.engine.portable import PortableEngine
from wyrmhole.protocol.data_plane import KeypairParams, Marks, PeerCounters, PeerId, SessionLimits, Source
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.peer import Peer
from wyrmhole.simulation.model.checks import Check, require
from wyrmhole.simulation.model.shadow import Shadow
from wyrmhole.simulation.model.shadow_peer import NOWHERE, ShadowPeer
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix


class Recorder:
    """Implements protocol.data_plane.DataPlane.

    `interface` is set after construction. `routes_change` is called after each single change of the table of allowed
    IPs, because a packet could be looked up at that time.
    """

    answers_initiations = False

    def __init__(self, engine: PortableEngine, shadow: Shadow, routes_change: Callable[[], None]) -> None:
        self.interface: Interface
        self._engine = engine
        self._shadow = shadow
        self._routes_change = routes_change

    # Configuration

    def set_mac1_key(self, key: bytes | None) -> None:
        self._engine.set_mac1_key(key)

    def set_cookie_secret(self, secret: bytes | bytearray | None, until: int) -> None:
        self._engine.set_cookie_secret(secret, until)

    def answer_initiations(self, private_key: bytes | None, limits: SessionLimits) -> int:
        return self._engine.answer_initiations(private_key, limits)

    def set_identity(self, peer: PeerId, public_key: bytes, preshared_key: bytes | None) -> None:
        self._engine.set_identity(peer, public_key, preshared_key)

    def set_peer_cookie(self, peer: PeerId, cookie: bytes, until: int) -> None:
        self._engine.set_peer_cookie(peer, cookie, until)

    def begin_initiation(self, local_index: int) -> bool:
        return self._engine.begin_initiation(local_index)

    def end_initiation(self, local_index: int) -> None:
        self._engine.end_initiation(local_index)

    def add_peer(self, peer: PeerId) -> None:
        self._shadow.add_peer(peer, self._peer(peer).public_key.raw)
        self._engine.add_peer(peer)

    def remove_peer(self, peer: PeerId) -> None:
        self._shadow.remove_peer(peer)
        self._engine.remove_peer(peer)

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        self._engine.insert_allowed_ip(peer, prefix)
        self._routes_change()

    def remove_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        self._engine.remove_allowed_ip(peer, prefix)
        self._routes_change()

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        self._shadow.peers[peer].endpoint = NOWHERE if endpoint is None else endpoint.sockaddr
        self._engine.set_endpoint(peer, endpoint, source)

    def clear_source(self, peer: PeerId) -> None:
        self._engine.clear_source(peer)

    # Sessions

    def install_keypair(self, peer: PeerId, params: KeypairParams) -> None:
        shadow_peer = self._shadow.peers[peer]
        self._shadow.install(shadow_peer, params)
        self._shadow.installing = params.is_initiator
        self._engine.install_keypair(peer, params)
        self._shadow.installing = False
        self.check_slots(shadow_peer)

    def forget_keypairs(self, peer: PeerId) -> None:
        self._shadow.clear_slots(self._shadow.peers[peer])
        self._engine.forget_keypairs(peer)
        self.check_slots(self._shadow.peers[peer])

    def expire_sending_keys(self, peer: PeerId) -> None:
        self._shadow.expire_sending(self._shadow.peers[peer])
        self._engine.expire_sending_keys(peer)

    def expect_key(self, peer: PeerId) -> None:
        self._engine.expect_key(peer)

    def flush_staged(self, peer: PeerId) -> None:
        self._shadow.drop_staged(self._shadow.peers[peer], "handshake_gave_up")
        self._engine.flush_staged(peer)

    # Messages

    def send_to_peer(self, peer: PeerId, datagram: bytes) -> None:
        shadow_peer, config = self._shadow.peers[peer], self._peer(peer)
        if datagram[0] == 1:
            self._shadow.initiation_left(shadow_peer, datagram, config.last_stamp_sent or b"")
        else:
            secret = b"" if config.preshared_key is None else config.preshared_key.raw
            self._shadow.response_left(shadow_peer, datagram, secret)
        before = self._engine.counters(peer).tx_bytes
        self._engine.send_to_peer(peer, datagram)
        counted = self._engine.counters(peer).tx_bytes - before
        require(
            counted in (0, len(datagram)),
            Check.COUNTERS_ARE_SUMS,
            f"a handshake message of {len(datagram)} bytes counts as {counted} bytes",
        )
        shadow_peer.tx += counted

    def send_to(self, endpoint: Endpoint, source: Source | None, datagram: bytes) -> None:
        self._shadow.cookie_left(datagram)
        self._engine.send_to(endpoint, source, datagram)

    def send_keepalive(self, peer: PeerId) -> None:
        self._engine.send_keepalive(peer)

    def note_handshake(self, peer: PeerId, rx_bytes: int, now: int) -> None:
        psk = self._peer(peer).preshared_key
        self._shadow.handshake_proved(self._shadow.peers[peer], rx_bytes, b"" if psk is None else psk.raw)
        self._engine.note_handshake(peer, rx_bytes, now)

    # Marks

    def marks(self, peer: PeerId) -> Marks:
        return self._engine.marks(peer)

    def release_activity(self, peer: PeerId) -> Marks:
        return self._engine.release_activity(peer)

    def forget_unanswered(self, peer: PeerId, since: int) -> None:
        self._engine.forget_unanswered(peer, since)

    def forget_received(self, peer: PeerId, since: int) -> None:
        self._engine.forget_received(peer, since)

    def counters(self, peer: PeerId) -> PeerCounters:
        return self._engine.counters(peer)

    def check_slots(self, peer: ShadowPeer) -> None:
        found = self._engine.inspect_peer(peer.id).slots
        require(
            found == peer.slots,
            Check.KEYPAIRS_ROTATE_IN_ORDER,
            f"host {self._shadow.life[0]}: slots {found}, not {peer.slots}",
        )

    def _peer(self, peer: PeerId) -> Peer:
        found = self.interface.peers.by_id(peer)
        assert found is not None
        return found
