"""One simulated machine: an interface, the portable engine without its thread, and the model that watches them.

A host outlives its interface. What it is told to be (`Settings`: the configuration file) survives a crash; keys,
sessions, counters and everything else of a life do not. The device's own loop is asynchronous and reads the clock, so
`drain` is that loop again: take reports in the same batches, feed the interface, fire what is due.

Longer than 500 lines because the model's look at each event stands beside the event.
"""

from __future__ import annotations

import base64
import gc
import random as random_module
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from wyrmhole.datapath.keypair import Keypair
from wyrmhole.engine.contract import EngineFailed, EngineReport, TunChanged
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.net.tun import TunEvent
from wyrmhole.protocol.data_plane import HandshakeDatagram, KeyConfirmed, KeyWanted
from wyrmhole.protocol.events import CAUSED_BY_OTHERS, Event, HandshakeCompleted, HandshakeGaveUp, SessionExpired
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.keys import PresharedKey, PrivateKey, PublicKey
from wyrmhole.protocol.ratelimiter import RateLimiter
from wyrmhole.simulation import packets, probe
from wyrmhole.simulation.clock import SECOND, HostClock
from wyrmhole.simulation.model.audits import LIMITER_SOURCES, Audits
from wyrmhole.simulation.model.checks import Check, Violation, require
from wyrmhole.simulation.model.ledger import Ledger
from wyrmhole.simulation.model.recorder import Recorder
from wyrmhole.simulation.model.shadow import Shadow
from wyrmhole.simulation.model.shadow_peer import NOWHERE, ShadowPeer
from wyrmhole.simulation.world.edges import EdgeCalls, ListBind, ListTun
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.prefix import Prefix

BATCH = 64
"""Reports in one turn, as the device's driver takes them."""
PORT = 51820
PLAIN = bytes(10)
IDENTITIES = 256
"""Public keys of one host, the latest: more than it can have while a packet is under way."""
EVENTS_PER_SECOND = 60
"""Of one class and peer: a peer may complete 50 handshakes a second (rule M15)."""


@dataclass(slots=True)
class PeerSettings:
    """What the configuration says about the peer that is host `number`."""

    number: int
    public: PublicKey
    prefixes: list[Prefix]
    psk: PresharedKey | None = None
    endpoint: Endpoint | None = None
    keepalive: int = 0


@dataclass(slots=True)
class Settings:
    key: PrivateKey
    peers: dict[int, PeerSettings] = field(default_factory=dict)

    def routes(self, known: set[bytes]) -> dict[Prefix, bytes]:
        """Of the peers that are known so far: when a life begins they come one by one."""
        peers = (peer for peer in self.peers.values() if peer.public.raw in known)
        return {prefix: peer.public.raw for peer in peers for prefix in peer.prefixes}


class Host:
    """`transmit(destination, datagram)` carries what it sends; `wake` is told when its next timer may be due, `ended`
    when the interface ended by itself."""

    def __init__(
        self,
        number: int,
        *,
        seed: str,
        ledger: Ledger,
        clock: HostClock,
        calls: EdgeCalls,
        transmit: Callable[[Host, SockAddr, bytes], None],
        wake: Callable[[Host, int], None],
        ended: Callable[[Host], None],
    ) -> None:
        self.number = number
        self.clock = clock
        self.ledger = ledger
        self.address = Endpoint(f"192.0.2.{number}", PORT)
        self.lives = 0
        self.running = False
        self.awake = True
        self.busy_until = 0
        """Boottime until which reports wait, as when the control thread is busy."""
        self.gave_up: set[bytes] = set()
        self._seed = seed
        self._calls = calls
        self._transmit = transmit
        self._wake = wake
        self._ended = ended
        self._events: dict[tuple[str, bytes], list[int]] = {}
        self._unmoved: probe.Fingerprint | None = None
        self._change: tuple[dict[Prefix, bytes], dict[Prefix, bytes]] | None = None
        self.settings = Settings(PrivateKey(random_module.Random(f"{seed}/key/{number}").randbytes(32)))
        self.identities = deque([self.public.raw], maxlen=IDENTITIES)
        ledger.owners[self.public.raw] = number

    @property
    def public(self) -> PublicKey:
        return self.settings.key.public_key()

    @property
    def now(self) -> int:
        return self.clock.boottime()

    # Lives

    def start(self) -> None:
        """Begin a life with what the settings say."""
        assert not self.running
        if self.lives:
            # The former one is a circle of objects with some megabytes, which nothing else may free for a long time.
            gc.collect()
        self.lives += 1
        self.running = self.awake = True
        self._random = random_module.Random(f"{self._seed}/{self.number}/{self.lives}")
        self.shadow = Shadow(self.ledger, (self.number, self.lives))
        self.shadow.now = self.shadow.resumed_at = self.now
        self.shadow.identity = self.public.raw
        self.engine = PortableEngine(self.clock.boottime, threaded=False)
        self.tun = ListTun(self._delivered, calls=self._calls)
        self.bind = self._make_bind()
        self._tun_is_gone = False
        self.plane = Recorder(self.engine, self.shadow, self._check_routes)
        limiter = RateLimiter(LIMITER_SOURCES)
        self.interface = Interface(
            self.plane, random=self._random.randbytes, wall_clock=self.clock.wall, now=self.now, limiter=limiter
        )
        self.plane.interface = self.interface
        self.audits = Audits(self.number, self.interface, self.engine, limiter, self.shadow)
        self.engine.attach_tun(self.tun)
        self.interface.set_private_key(self.settings.key, self.now)
        for peer in self.settings.peers.values():
            self.apply_peer(peer)
        self.up()

    def crash(self) -> None:
        """The process is gone at once: nothing more is sent, nothing is kept."""
        self.running = False
        self.shadow.end()
        self.engine.close()
        self.tun.close()
        self.bind.close()

    def stop(self) -> None:
        """An orderly end. What the engine is asked afterwards must send nothing (I28)."""
        self.down()
        self.shadow.stopped = True
        self.engine.send_to(self.address, None, bytes(64))
        held = [each for each in probe.reachable(self.interface, self.engine) if isinstance(each, Keypair)]
        require(not held, Check.SECRETS_ARE_FORGOTTEN, f"host {self.number} holds {len(held)} keypairs after shutdown")
        self.crash()

    def up(self) -> None:
        """As the device does it: with a socket of its own each time. It stays down when it cannot have the port."""
        self._begin()
        self.bind.close()
        self.bind = self._make_bind()
        try:
            self.bind.open(PORT)
        except OSError:
            return
        self.engine.attach_bind(self.bind, PORT)
        with self._owing():
            self.interface.up(self.now)
        self.settle()

    def _make_bind(self) -> ListBind:
        return ListBind(self._sent, self.address.host.encode(), self._calls)

    def down(self) -> None:
        self._begin()
        for peer in self.shadow.peers.values():
            peer.last_initiation = -(1 << 62)
        self.interface.down()
        self.engine.detach_bind()
        self.bind.close()
        self.settle()

    def suspend(self) -> None:
        self.awake = False

    def resume(self) -> None:
        self.awake = True
        self.shadow.resumed_at = self.now
        self.fire()

    # Configuration

    def apply_peer(self, settings: PeerSettings) -> None:
        """Make the peer what the settings say, as one `set` of the UAPI does."""
        self._begin()
        peer = self.interface.peer(settings.public) or self.interface.add_peer(settings.public)
        assert peer is not None
        self.interface.set_preshared_key(peer, settings.psk)
        if settings.endpoint is not None:
            with self._owing():
                self.interface.set_endpoint(peer, settings.endpoint, self.now)
        with self._routing():
            self.interface.replace_allowed_ips(peer, settings.prefixes)
        self.shadow.peers[peer.id].persistent = settings.keepalive
        with self._owing():
            self.interface.set_persistent_keepalive(peer, settings.keepalive, self.now)
        self.settle()

    def remove_peer(self, number: int) -> None:
        self._begin()
        settings = self.settings.peers.pop(number)
        peer = self.interface.peer(settings.public)
        assert peer is not None
        indices = {*peer.keypair_indices, *([peer.sent.local_index] if peer.sent else [])}
        with self._routing():
            self.interface.remove_peer(peer)
        self.settle()
        state = self.interface.inspect()
        left = indices & (self.engine.inspect().indices | state.indices)
        require(
            not left,
            Check.SECRETS_ARE_FORGOTTEN,
            f"host {self.number}: {len(left)} keys of a removed peer are still there",
        )
        require(peer.id not in state.armed, Check.TIMERS_HAVE_OWNERS, f"host {self.number}: a removed peer has a timer")

    def change_key(self, key: PrivateKey) -> None:
        """Another identity; peers learn of it in their own time."""
        self.settings.key = key
        if len(self.identities) == IDENTITIES:
            del self.ledger.owners[self.identities[0]]
        self.identities.append(key.public_key().raw)
        self.ledger.owners[key.public_key().raw] = self.number
        if not self.running:
            return
        self._begin()
        self.shadow.identity = key.public_key().raw
        for peer in self.shadow.peers.values():
            peer.last_initiation = -(1 << 62)
        self.interface.set_private_key(key, self.now)
        self.settle()

    @contextmanager
    def _owing(self) -> Iterator[None]:
        """Persistent keepalives may leave at once (rule M53)."""
        for peer in self.shadow.peers.values():
            peer.persistent_owed = True
        yield
        for peer in self.shadow.peers.values():
            peer.persistent_owed = False

    @contextmanager
    def _routing(self) -> Iterator[None]:
        """The table changes from what the model has to what the settings say."""
        routes = self.settings.routes({peer.public for peer in self.shadow.peers.values()})
        self._change = (dict(self.shadow.routes), routes)
        yield
        self._change = None
        self.shadow.set_routes(routes)

    def _check_routes(self) -> None:
        """In the middle of a change: each prefix of both tables has its old owner or its new one (I25)."""
        if self._change is None:
            return
        old, new = self._change
        for prefix in old:
            if prefix in new:
                where = prefix.network.to_bytes(prefix.bits // 8, "big")
                found = self.engine.owner_of(where)
                public = None if found is None else self.shadow.peers[found].public
                fine = {packets.longest_prefix(old, where), packets.longest_prefix(new, where)}
                require(
                    public in fine,
                    Check.ROUTES_CHANGE_WITHOUT_A_GAP,
                    f"host {self.number}: {prefix.emit()} has no owner for a while",
                )

    def routes_changed(self) -> None:
        """The kernel's routes, not ours: the engine asks which of its source addresses still hold."""
        if not self.interface.is_up:
            return
        self.bind.address = self.address.host.encode()
        self.bind.stale = True
        self.bind.arrive(b"", NOWHERE)
        self._begin()
        self.engine.turn()

    # Packets

    def _begin(self) -> None:
        self.shadow.now = self.now
        self.shadow.outputs.clear()

    def inject(self, number: int, packet: bytes, destination: bytes) -> None:
        """A program sends this packet, which has this inner destination."""
        self._begin()
        at_once = self.shadow.inject(number, packet, destination)
        self.tun.inject(PLAIN + packet)
        while self.tun.waiting:
            self.engine.turn()
        if at_once and not self.tun.gone:
            sealed = self.ledger.packets[number].sealed
            require(
                sealed,
                Check.PEERS_DO_NOT_BLOCK_EACH_OTHER,
                f"host {self.number}: packet {number} waits though its peer has a key",
            )
        self.shadow.turn_is_over()
        self.settle()

    def receive(self, sockaddr: SockAddr, datagrams: list[bytes]) -> None:
        """Datagrams from one sender; several are a train, equal but for the last."""
        if not self.running or not self.awake or not self.interface.is_up:
            return
        self._begin()
        accepted = [peer for data in datagrams if (peer := self.shadow.arrive(sockaddr, data)) is not None]
        before = None if accepted else self._state()
        segment = len(datagrams[0]) if len(datagrams) > 1 else 0
        self.bind.arrive(b"".join(datagrams), sockaddr, segment)
        while self.bind.waiting:
            self.engine.turn()
        if self.tun.gone:
            # Until the loop hears of it, what arrives has nowhere to go.
            self.shadow.expected.clear()
        self.shadow.turn_is_over()
        if before is None:
            self._check_accepted(accepted[-1])
        else:
            self._check_unmoved(before)
            require(
                not self.shadow.outputs,
                Check.UNPROVEN_SOURCES_GET_NOTHING,
                f"host {self.number} answers a datagram that proves nothing",
            )
        self.settle()

    def receive_garbage(self, datagrams: list[tuple[SockAddr, bytes]]) -> None:
        """A flood: all of it is there before the control thread looks."""
        if not self.running or not self.awake or not self.interface.is_up:
            return
        self._begin()
        before = self._state()
        for sockaddr, data in datagrams:
            self.bind.arrive(data, sockaddr)
        while self.bind.waiting:
            self.engine.turn()
        require(
            not self.shadow.outputs,
            Check.UNPROVEN_SOURCES_GET_NOTHING,
            f"host {self.number} answers a datagram that proves nothing",
        )
        self._check_unmoved(before)
        self.settle()

    def _check_accepted(self, peer: ShadowPeer) -> None:
        state = self.engine.inspect_peer(peer.id)
        found = state.sockaddr
        require(
            found == peer.endpoint,
            Check.ENDPOINTS_FOLLOW_PROOF,
            f"host {self.number}: endpoint {found}, not {peer.endpoint}",
        )
        require(
            state.slots == peer.slots,
            Check.KEYPAIRS_ROTATE_IN_ORDER,
            f"host {self.number}: slots {state.slots}, not {peer.slots}",
        )
        self.audits.counters(peer)

    def _state(self) -> probe.Fingerprint:
        return probe.fingerprint(self.interface, self.engine)

    def _check_unmoved(self, before: probe.Fingerprint) -> None:
        present = self._state()
        if present != before:
            same = present.endpoints == before.endpoints
            require(
                same,
                Check.ENDPOINTS_FOLLOW_PROOF,
                f"host {self.number}: an endpoint moved by input that does not prove itself",
            )
            what = probe.difference(before, present)
            raise Violation(
                Check.UNPROVEN_INPUT_CHANGES_NOTHING,
                f"host {self.number}: input that does not prove itself moved {what}",
            )

    def _sent(self, sockaddr: SockAddr, data: bytes, arrives: bool) -> None:
        self.shadow.sent(sockaddr, data, arrives)
        if arrives:
            self._transmit(self, sockaddr, data)

    def _delivered(self, packet: bytes) -> None:
        self.shadow.delivered(packet, self.identities)
        self.ledger.trace(self.now, self.number, packet)

    # The loop

    def settle(self) -> None:
        """After anything that happened: what the device's driver does."""
        if self.now >= self.busy_until:
            self.drain()
        if self._tun_is_gone:
            self._end()
            return
        deadline = self.interface.poll_timeout()
        if self.busy_until > self.now:
            self._wake(self, self.clock.world_time(self.busy_until))
        elif deadline is not None:
            self._wake(self, self.clock.world_time(deadline))

    def _end(self) -> None:
        """As the device does it when its TUN was deleted."""
        self._tun_is_gone = False
        self.stop()
        self._ended(self)

    def drain(self) -> None:
        while self.engine.has_reports:
            for report in self.engine.poll_reports(BATCH):
                self._handle(report)
            self._unmoved = None
            self.interface.handle_timeout(self.now)
        self._poll_events()

    def fire(self) -> None:
        """Timers may be due."""
        if self.running and self.awake and self.now < self.busy_until:
            self.settle()
        elif self.running and self.awake:
            self._begin()
            self.drain()
            walls = [(peer, peer.last_handshake_wall) for peer in self.interface.peers]
            self.interface.handle_timeout(self.now)
            for peer, wall in walls:
                require(
                    peer.last_handshake_wall == wall,
                    Check.HANDSHAKE_TIMES_ARE_TRUE,
                    f"host {self.number}: a timer is no handshake",
                )
            self.settle()

    def _handle(self, report: EngineReport) -> None:
        if isinstance(report, EngineFailed):
            raise Violation(Check.NO_EXCEPTION_ESCAPES, f"host {self.number}: {report.reason}")
        if isinstance(report, HandshakeDatagram):
            self._handle_handshake(report)
            return
        self._unmoved = None
        if isinstance(report, TunChanged):
            self._tun_is_gone |= report.event is TunEvent.DELETED
        else:
            self.interface.handle_report(report, self.now)
            if isinstance(report, (KeyConfirmed, KeyWanted)):
                self._check_wall(report.peer, completes=isinstance(report, KeyConfirmed))

    def _handle_handshake(self, report: HandshakeDatagram) -> None:
        """One handshake message: either it proves itself, or nothing moves."""
        shadow = self.shadow
        shadow.now = self.now
        shadow.outputs.clear()
        shadow.input, shadow.proved = report.data, None
        if report.queue_depth >= 128:
            shadow.last_deep_queue = self.now
        if report.data[0] == 3:
            shadow.cookie_came(report.data)
        # One after the other in a flood: what was found unmoved is what the next one must not move.
        before = self._unmoved or self._state()
        self.interface.handle_report(report, self.now)
        self._unmoved = None
        if shadow.proved is None:
            self._check_unmoved(before)
            shadow.check_silence(report.endpoint)
            self._unmoved = before
            return
        peer = shadow.peers[shadow.proved]
        moved = peer.endpoint == report.endpoint.sockaddr
        require(moved, Check.ENDPOINTS_FOLLOW_PROOF, f"host {self.number}: a handshake did not move the endpoint")
        self.audits.counters(peer)
        self._check_wall(peer.id, completes=report.data[0] == 2)

    def _check_wall(self, peer_id: int, *, completes: bool) -> None:
        peer, shadow = self.interface.peers.by_id(peer_id), self.shadow.peers.get(peer_id)
        if peer is None or shadow is None or peer.last_handshake_wall == shadow.handshake_wall:
            return
        require(
            completes, Check.HANDSHAKE_TIMES_ARE_TRUE, f"host {self.number}: the latest handshake changes without one"
        )
        require(
            peer.last_handshake_wall == self.clock.wall(),
            Check.HANDSHAKE_TIMES_ARE_TRUE,
            f"host {self.number}: not the time it happened",
        )
        shadow.handshake_wall = peer.last_handshake_wall

    def _poll_events(self) -> None:
        while (event := self.interface.poll_event()) is not None:
            self._check_event(event)
            if isinstance(event, HandshakeCompleted):
                self.ledger.counts["handshakes"] += 1
            elif isinstance(event, HandshakeGaveUp):
                self.gave_up.add(event.peer.raw)
                self.ledger.counts["gave up"] += 1
            elif isinstance(event, SessionExpired):
                self.audits.memory()

    def _check_event(self, event: Event) -> None:
        """No secret in what logs are made of, and few of them (I33)."""
        text = repr(event) + str(event)
        for secret in self._secrets():
            shown = secret.hex() in text or repr(secret) in text or base64.b64encode(secret).decode() in text
            require(not shown, Check.EVENTS_ARE_HARMLESS, f"host {self.number}: {type(event).__name__} shows a key")
        if isinstance(event, CAUSED_BY_OTHERS):
            return
        recent = {what: [at for at in times if at > self.now - SECOND] for what, times in self._events.items()}
        self._events = {what: times for what, times in recent.items() if times}
        times = self._events.setdefault((type(event).__name__, event.peer.raw), [])
        times.append(self.now)
        require(
            len(times) <= EVENTS_PER_SECOND,
            Check.EVENTS_ARE_HARMLESS,
            f"host {self.number}: {len(times)} {type(event).__name__} in a second",
        )

    def _secrets(self) -> Iterator[bytes]:
        yield self.settings.key.raw
        for peer in self.settings.peers.values():
            if peer.psk is not None:
                yield peer.psk.raw
        for session in self.shadow.by_local.values():
            yield bytes(session.params.send_key)
            yield bytes(session.params.receive_key)

    def audit(self) -> None:
        """The invariants about the whole state, between two events."""
        if self.running and self.awake and self.now >= self.busy_until:
            self._begin()
            self.drain()
            if not self._tun_is_gone:
                self.audits.everything(self.now)

    def staged(self) -> set[int]:
        """The numbers of the packets that wait for a key."""
        return {number for peer in self.shadow.peers.values() for number, _ in peer.staged}

    def queued_handshakes(self) -> list[bytes]:
        """What arrived and was not looked at yet, because the control thread is busy or the machine sleeps."""
        return self.engine.queued_handshakes()

    def shadow_of(self, other: Host) -> ShadowPeer:
        found = self.shadow.peer_of(other.public.raw)
        assert found is not None
        return found

    def endpoint_of(self, other: Host) -> SockAddr:
        peer = self.shadow.peer_of(other.public.raw)
        return NOWHERE if peer is None else peer.endpoint
