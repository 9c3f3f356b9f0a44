"""Checks around an interface at each report, timer and change of routes.

A `Watch` stands in for the interface in the driver's turn (`device.turn.Core`): it forwards each call and compares the
result with the shadow. Input that does not authenticate must leave the whole state unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from wyrmhole.engine.portable import PortableEngine
from wyrmhole.protocol.data_plane import HandshakeDatagram, KeyConfirmed, KeyWanted, PeerId, Report
from wyrmhole.protocol.events import Event
from wyrmhole.protocol.interface import Interface
from wyrmhole.simulation import packets
from wyrmhole.simulation.clock import HostClock
from wyrmhole.simulation.model import probe
from wyrmhole.simulation.model.audits import Audits
from wyrmhole.simulation.model.checks import Check, Violation, require
from wyrmhole.simulation.model.shadow import Shadow
from wyrmhole.simulation.model.shadow_peer import ShadowPeer
from wyrmhole.wire.prefix import Prefix

DEEP_QUEUE = 128
"""The number of waiting handshake messages at which load begins."""


class Watch:
    """Watches one life of host `number`. Every method may raise Violation."""

    def __init__(
        self,
        number: int,
        interface: Interface,
        engine: PortableEngine,
        shadow: Shadow,
        audits: Audits,
        clock: HostClock,
    ) -> None:
        self._where = f"host {number}"
        self._interface = interface
        self._engine = engine
        self._shadow = shadow
        self._audits = audits
        self._clock = clock
        self._unmoved: probe.Fingerprint | None = None
        self._change: tuple[dict[Prefix, bytes], dict[Prefix, bytes]] | None = None

    def begin(self) -> None:
        """Prepare the shadow for the next event."""
        self._shadow.now = self._clock.boottime()
        self._shadow.outputs.clear()

    # The interface, as a turn of the driver calls it

    def handle_report(self, report: Report, now: int) -> None:
        if isinstance(report, HandshakeDatagram):
            self._handle_handshake(report, now)
            return
        self._unmoved = None
        self._interface.handle_report(report, now)
        if isinstance(report, (KeyConfirmed, KeyWanted)):
            self._check_wall(report.peer, completes=isinstance(report, KeyConfirmed))

    def handle_timeout(self, now: int) -> None:
        self._unmoved = None
        walls = [(peer, peer.last_handshake_wall) for peer in self._interface.peers]
        self._interface.handle_timeout(now)
        for peer, wall in walls:
            same = peer.last_handshake_wall == wall
            require(
                same, Check.HANDSHAKE_TIMES_ARE_TRUE, f"{self._where}: a timer changed the time of the latest handshake"
            )

    def poll_event(self) -> Event | None:
        return self._interface.poll_event()

    def poll_timeout(self) -> int | None:
        return self._interface.poll_timeout()

    def _handle_handshake(self, report: HandshakeDatagram, now: int) -> None:
        """Check that a handshake message that does not authenticate changes nothing."""
        shadow = self._shadow
        shadow.now = now
        shadow.outputs.clear()
        shadow.input, shadow.proved = report.data, None
        if report.queue_depth >= DEEP_QUEUE:
            shadow.last_deep_queue = now
        if report.data[0] == 3:
            shadow.cookie_arrived(report.data)
        # In a flood, the state after one message is the state before the next.
        before = self._unmoved or self.state()
        self._interface.handle_report(report, now)
        self._unmoved = None
        if shadow.proved is None:
            self.check_unmoved(before)
            shadow.check_silence(report.endpoint)
            self._unmoved = before
            return
        peer = shadow.peers[shadow.proved]
        moved = peer.endpoint == report.endpoint.sockaddr
        require(moved, Check.ENDPOINTS_FOLLOW_PROOF, f"{self._where}: a handshake did not move the endpoint")
        self._audits.counters(peer)
        self._check_wall(peer.id, completes=report.data[0] == 2)

    def _check_wall(self, peer_id: PeerId, *, completes: bool) -> None:
        peer, shadow = self._interface.peers.by_id(peer_id), self._shadow.peers.get(peer_id)
        if peer is None or shadow is None or peer.last_handshake_wall == shadow.handshake_wall:
            return
        check, is_now = Check.HANDSHAKE_TIMES_ARE_TRUE, peer.last_handshake_wall == self._clock.wall()
        require(completes, check, f"{self._where}: the time of the latest handshake changed without a handshake")
        require(is_now, check, f"{self._where}: the time of the latest handshake is not the present time")
        shadow.handshake_wall = peer.last_handshake_wall

    # Datagrams

    def state(self) -> probe.Fingerprint:
        return probe.fingerprint(self._interface, self._engine)

    def check_accepted(self, peer: ShadowPeer) -> None:
        """Check endpoint, slots and counters after authentic data from this peer."""
        state = self._engine.inspect_peer(peer.id)
        same = state.sockaddr == peer.endpoint
        text = f"{self._where}: endpoint {state.sockaddr}, not {peer.endpoint}"
        require(same, Check.ENDPOINTS_FOLLOW_PROOF, text)
        same = state.slots == peer.slots
        text = f"{self._where}: slots {state.slots}, not {peer.slots}"
        require(same, Check.KEYPAIRS_ROTATE_IN_ORDER, text)
        self._audits.counters(peer)

    def check_refused(self, before: probe.Fingerprint) -> None:
        """Check that datagrams that do not authenticate changed nothing and got no answer."""
        self.check_unmoved(before)
        text = f"{self._where} answered a datagram that does not authenticate"
        require(not self._shadow.outputs, Check.UNPROVEN_SOURCES_GET_NOTHING, text)

    def check_unmoved(self, before: probe.Fingerprint) -> None:
        present = self.state()
        if present != before:
            same = present.endpoints == before.endpoints
            text = f"{self._where}: input that does not authenticate moved an endpoint"
            require(same, Check.ENDPOINTS_FOLLOW_PROOF, text)
            change = probe.difference(before, present)
            text = f"{self._where}: input that does not authenticate changed {change}"
            raise Violation(Check.UNPROVEN_INPUT_CHANGES_NOTHING, text)

    # Configuration

    @contextmanager
    def owing(self) -> Iterator[None]:
        """Allow persistent keepalives to leave at once inside the block (rule M53)."""
        for peer in self._shadow.peers.values():
            peer.persistent_owed = True
        yield
        for peer in self._shadow.peers.values():
            peer.persistent_owed = False

    @contextmanager
    def routing(self, routes: dict[Prefix, bytes]) -> Iterator[None]:
        """Expect the table to change to these routes inside the block."""
        self._change = (dict(self._shadow.routes), routes)
        yield
        self._change = None
        self._shadow.set_routes(routes)

    def check_routes(self) -> None:
        """Check, during a change, that each prefix of both tables has its old owner or its new one."""
        if self._change is None:
            return
        old, new = self._change
        for prefix in old:
            if prefix in new:
                address = prefix.network.to_bytes(prefix.bits // 8, "big")
                found = self._engine.owner_of(address)
                public = None if found is None else self._shadow.peers[found].public
                is_owned = public in {packets.longest_prefix(old, address), packets.longest_prefix(new, address)}
                text = f"{self._where}: {prefix.emit()} has a wrong owner or none during a change"
                require(is_owned, Check.ROUTES_CHANGE_WITHOUT_A_GAP, text)

    def check_removed(self, peer_id: PeerId, indices: set[int]) -> None:
        """Check that a removed peer left no key and no timer. `indices` are those that it had before."""
        state = self._interface.inspect()
        left = indices & (self._engine.inspect().indices | state.indices)
        text = f"{self._where}: {len(left)} indices of a removed peer remain"
        require(not left, Check.SECRETS_ARE_FORGOTTEN, text)
        require(peer_id not in state.armed, Check.TIMERS_HAVE_OWNERS, f"{self._where}: a removed peer has a timer")
