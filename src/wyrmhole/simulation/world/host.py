"""One simulated machine: an interface, the portable engine without its thread, and the model that checks them.

A host has several lives. Its settings survive a crash; keys, sessions, counters and all other state do not. The control
thread is the real driver's turn (`device.turn`), called whenever reports wait or a timer is due.
"""

from __future__ import annotations

import gc
import itertools
import random as random_module
from collections import deque
from collections.abc import Callable

from wyrmhole.device import turn
from wyrmhole.device.turn import Calls
from wyrmhole.engine.contract import TunChanged
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.net.tun import TunEvent
from wyrmhole.protocol.events import Event, HandshakeCompleted, HandshakeGaveUp, SessionExpired
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.protocol.ratelimiter import RateLimiter
from wyrmhole.simulation.clock import HostClock
from wyrmhole.simulation.model.audits import LIMITER_SOURCES, Audits
from wyrmhole.simulation.model.checks import Check, Violation, require
from wyrmhole.simulation.model.event_checks import EventChecks
from wyrmhole.simulation.model.ledger import Ledger
from wyrmhole.simulation.model.recorder import Recorder
from wyrmhole.simulation.model.shadow import Shadow
from wyrmhole.simulation.model.shadow_peer import NOWHERE, ShadowPeer
from wyrmhole.simulation.model.watch import Watch
from wyrmhole.simulation.world.edges import EdgeCalls, ListBind, ListTun
from wyrmhole.simulation.world.settings import PeerSettings, Settings
from wyrmhole.wire.endpoint import Endpoint, SockAddr
from wyrmhole.wire.prefix import Prefix

PORT = 51820
PLAIN = bytes(10)
IDENTITIES = 256
"""How many of its latest public keys a host remembers: more than it can have while a packet is in flight."""


class Host:
    """A simulated machine.

    `transmit` carries a datagram of this host to its destination. `wake` is called with the world time at which the
    next timer may be due, and `ended` when the interface has ended by itself.
    """

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
        """The boottime until which the control thread is busy: reports wait until then."""
        self.gave_up: set[bytes] = set()
        self.events = EventChecks(number)
        self._seed = seed
        self._calls = calls
        self._transmit = transmit
        self._wake = wake
        self._ended = ended
        self._driven = Calls(self._handle_tun, self._handle_failure, self._handle_event, lambda: self._tun_is_gone)
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
        """Begin a life, configured by the settings."""
        assert not self.running
        if self.lives:
            # The former life is a reference cycle of several megabytes, which might stay uncollected for long.
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
        self.plane = Recorder(self.engine, self.shadow, lambda: self.watch.check_routes())
        limiter = RateLimiter(LIMITER_SOURCES)
        self.interface = Interface(
            self.plane, random=self._random.randbytes, wall_clock=self.clock.wall, now=self.now, limiter=limiter
        )
        self.plane.interface = self.interface
        self.audits = Audits(self.number, self.interface, self.engine, limiter, self.shadow)
        self.watch = Watch(self.number, self.interface, self.engine, self.shadow, self.audits, self.clock)
        self.engine.attach_tun(self.tun)
        self.interface.set_private_key(self.settings.key, self.now)
        for peer in self.settings.peers.values():
            self.apply_peer(peer)
        self.up()

    def crash(self) -> None:
        """End the process at once: nothing more is sent, and all state is lost."""
        self.running = False
        self.shadow.end()
        self.engine.close()
        self.tun.close()
        self.bind.close()

    def stop(self) -> None:
        """Shut down in order, and check that the engine sends nothing afterwards (I28)."""
        self.down()
        self.shadow.stopped = True
        self.engine.send_to(self.address, None, bytes(64))
        self.audits.stopped()
        self.crash()

    def up(self) -> None:
        """Bring the interface up with a new socket, like the device. It stays down if the port is taken."""
        self.watch.begin()
        self.bind.close()
        self.bind = self._make_bind()
        try:
            self.bind.open(PORT)
        except OSError:
            return
        self.engine.attach_bind(self.bind, PORT)
        with self.watch.owing():
            self.interface.up(self.now)
        self.settle()

    def _make_bind(self) -> ListBind:
        return ListBind(self._sent, self.address.host.encode(), self._calls)

    def down(self) -> None:
        self.watch.begin()
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
        """Configure the peer by these settings, like one `set` operation of the UAPI."""
        self.watch.begin()
        peer = self.interface.peer(settings.public) or self.interface.add_peer(settings.public)
        assert peer is not None
        self.interface.set_preshared_key(peer, settings.psk)
        if settings.endpoint is not None:
            with self.watch.owing():
                self.interface.set_endpoint(peer, settings.endpoint, self.now)
        with self.watch.routing(self._routes()):
            self.interface.replace_allowed_ips(peer, settings.prefixes)
        self.shadow.peers[peer.id].persistent = settings.keepalive
        with self.watch.owing():
            self.interface.set_persistent_keepalive(peer, settings.keepalive, self.now)
        self.settle()

    def remove_peer(self, number: int) -> None:
        self.watch.begin()
        settings = self.settings.peers.pop(number)
        peer = self.interface.peer(settings.public)
        assert peer is not None
        indices = {*peer.keypair_indices, *([peer.sent.local_index] if peer.sent else [])}
        with self.watch.routing(self._routes()):
            self.interface.remove_peer(peer)
        self.settle()
        self.watch.check_removed(peer.id, indices)

    def change_key(self, key: PrivateKey) -> None:
        """Change the host's identity. The settings of its peers are changed elsewhere."""
        self.settings.key = key
        if len(self.identities) == IDENTITIES:
            del self.ledger.owners[self.identities[0]]
        self.identities.append(key.public_key().raw)
        self.ledger.owners[key.public_key().raw] = self.number
        if not self.running:
            return
        self.watch.begin()
        self.shadow.identity = key.public_key().raw
        for peer in self.shadow.peers.values():
            peer.last_initiation = -(1 << 62)
        self.interface.set_private_key(key, self.now)
        self.settle()

    def _routes(self) -> dict[Prefix, bytes]:
        return self.settings.routes({peer.public for peer in self.shadow.peers.values()})

    def routes_changed(self) -> None:
        """Simulate a change of the kernel's routes, which makes the engine verify its source addresses."""
        if not self.interface.is_up:
            return
        self.bind.address = self.address.host.encode()
        self.bind.stale = True
        self.bind.arrive(b"", NOWHERE)
        self.watch.begin()
        self.engine.turn()

    # Packets

    def inject(self, number: int, packet: bytes, destination: bytes) -> None:
        """Let a program send this packet to this inner destination."""
        self.watch.begin()
        at_once = self.shadow.inject(number, packet, destination)
        self.tun.inject(PLAIN + packet)
        while self.tun.waiting:
            self.engine.turn()
        if at_once and not self.tun.gone:
            sealed = self.ledger.packets[number].sealed
            require(
                sealed,
                Check.PEERS_DO_NOT_BLOCK_EACH_OTHER,
                f"host {self.number}: packet {number} waits although its peer has a keypair",
            )
        self.shadow.turn_is_over()
        self.settle()

    def receive(self, sockaddr: SockAddr, datagrams: list[bytes]) -> None:
        """Receive datagrams from one sender; several form a train, equally long except for the last."""
        if not self.running or not self.awake or not self.interface.is_up:
            return
        self.watch.begin()
        accepted = [peer for data in datagrams if (peer := self.shadow.arrive(sockaddr, data)) is not None]
        before = None if accepted else self.watch.state()
        segment = len(datagrams[0]) if len(datagrams) > 1 else 0
        self.bind.arrive(b"".join(datagrams), sockaddr, segment)
        while self.bind.waiting:
            self.engine.turn()
        if self.tun.gone:
            # Until the loop handles the report, no packet can be delivered.
            self.shadow.expected.clear()
        self.shadow.turn_is_over()
        if before is None:
            self.watch.check_accepted(accepted[-1])
        else:
            self.watch.check_refused(before)
        self.settle()

    def receive_garbage(self, datagrams: list[tuple[SockAddr, bytes]]) -> None:
        """Receive a flood, all of it before the control thread runs."""
        if not self.running or not self.awake or not self.interface.is_up:
            return
        self.watch.begin()
        before = self.watch.state()
        for sockaddr, data in datagrams:
            self.bind.arrive(data, sockaddr)
        while self.bind.waiting:
            self.engine.turn()
        self.watch.check_refused(before)
        self.settle()

    def _sent(self, sockaddr: SockAddr, data: bytes, arrives: bool) -> None:
        self.shadow.sent(sockaddr, data, arrives)
        if arrives:
            self._transmit(self, sockaddr, data)

    def _delivered(self, packet: bytes) -> None:
        self.shadow.delivered(packet, self.identities)
        self.ledger.trace(self.now, self.number, packet)

    # The control thread

    def settle(self) -> None:
        """Handle all reports, and plan a wake-up at the next deadline. Called after each event."""
        if self.now < self.busy_until:
            self._wake(self, self.clock.world_time(self.busy_until))
            return
        self.drain()
        if self._tun_is_gone:
            self._end()
            return
        deadline = turn.settle(self.watch, self.engine, self._driven)
        if deadline is not None:
            self._wake(self, self.clock.world_time(deadline))

    def _end(self) -> None:
        """Stop, like the device when its TUN is deleted."""
        self._tun_is_gone = False
        self.stop()
        self._ended(self)

    def drain(self) -> None:
        while self.engine.has_reports and not self._tun_is_gone:
            turn.take_reports(self.watch, self.engine, self.now, self._driven)

    def fire(self) -> None:
        """Run the timers that are due."""
        if not self.running or not self.awake:
            return
        if self.now >= self.busy_until:
            self.watch.begin()
            self.drain()
            if not self._tun_is_gone:
                turn.run_timers(self.watch, self.engine, self.now, self._driven)
        self.settle()

    def _handle_tun(self, report: TunChanged) -> None:
        self._tun_is_gone |= report.event is TunEvent.DELETED

    def _handle_failure(self, reason: str) -> None:
        raise Violation(Check.NO_EXCEPTION_ESCAPES, f"host {self.number}: {reason}")

    def _handle_event(self, event: Event) -> None:
        self.events.check(event, self.now, itertools.chain(self.settings.secrets(), self.shadow.secrets()))
        if isinstance(event, HandshakeCompleted):
            self.ledger.counts["handshakes"] += 1
        elif isinstance(event, HandshakeGaveUp):
            self.gave_up.add(event.peer.raw)
            self.ledger.counts["gave up"] += 1
        elif isinstance(event, SessionExpired):
            self.audits.memory()

    def audit(self) -> None:
        """Check the invariants of the whole state."""
        if self.running and self.awake and self.now >= self.busy_until:
            self.watch.begin()
            self.drain()
            if not self._tun_is_gone:
                self.audits.everything(self.now)

    def staged(self) -> set[int]:
        """Return the numbers of the staged packets."""
        return {number for peer in self.shadow.peers.values() for number, _ in peer.staged}

    def queued_handshakes(self) -> list[bytes]:
        """Return handshake messages that still wait because the control thread is busy or the host sleeps."""
        return self.engine.queued_handshakes()

    def shadow_of(self, other: Host) -> ShadowPeer:
        found = self.shadow.peer_of(other.public.raw)
        assert found is not None
        return found

    def endpoint_of(self, other: Host) -> SockAddr:
        peer = self.shadow.peer_of(other.public.raw)
        return NOWHERE if peer is None else peer.endpoint
