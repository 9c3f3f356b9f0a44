"""Checks of the whole state of one life, which are too expensive to run after every event."""

from __future__ import annotations

from wyrmhole.datapath.keypair import Keypair
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.peer import Peer
from wyrmhole.protocol.ratelimiter import CAPACITY, RateLimiter
from wyrmhole.simulation.clock import SECOND
from wyrmhole.simulation.model import probe
from wyrmhole.simulation.model.checks import Check, require
from wyrmhole.simulation.model.shadow import Shadow
from wyrmhole.simulation.model.shadow_peer import REJECT_AFTER, ShadowPeer

LIMITER_SOURCES = 16
"""The rate limiter's cap in a simulation, small enough that a flood reaches it."""


class Audits:
    """Compares the engine and the interface of host `number` with their shadow. Every method raises Violation."""

    def __init__(
        self, number: int, interface: Interface, engine: PortableEngine, limiter: RateLimiter, shadow: Shadow
    ) -> None:
        self.number = number
        self.interface = interface
        self.engine = engine
        self.limiter = limiter
        self.shadow = shadow

    def everything(self, now: int) -> None:
        self.shadow.check_waiting()
        self._indices()
        self._staging()
        self._limiter()
        self._timers(now)
        for peer in self.shadow.peers.values():
            self.counters(peer)

    def counters(self, peer: ShadowPeer) -> None:
        counters = self.engine.counters(peer.id)
        found, right = (counters.tx_bytes, counters.rx_bytes), (peer.tx, peer.rx)
        require(
            found == right, Check.COUNTERS_ARE_SUMS, f"host {self.number}: (tx, rx) is {found}, the sums are {right}"
        )

    def _indices(self) -> None:
        engine, interface = self.engine.inspect(), self.interface.inspect()
        require(
            engine.indices == set(self.shadow.by_local),
            Check.INDICES_ARE_UNIQUE,
            f"host {self.number}: the engine's indices are not those of the model",
        )
        live = [index for peer in interface.peers for index in peer.keypair_indices]
        live += [peer.sent for peer in interface.peers if peer.sent is not None]
        same = sorted(live) == sorted(interface.indices)
        require(
            same and len(live) == len(set(live)),
            Check.INDICES_ARE_UNIQUE,
            f"host {self.number}: an index is stale or used twice",
        )
        most = max((len(peer.keypair_indices) for peer in interface.peers), default=0)
        require(most <= 3, Check.INDICES_ARE_UNIQUE, f"host {self.number}: one peer has {most} keypairs")

    def _staging(self) -> None:
        state = self.engine.inspect()
        waiting = {peer.id: peer.staged for peer in state.peers}
        right = {peer.id: len(peer.staged) for peer in self.shadow.peers.values()}
        require(
            waiting == right,
            Check.STAGED_PACKETS_ARE_ACCOUNTED_FOR,
            f"host {self.number}: {waiting} packets are staged, not {right}",
        )
        total = sum(peer.staged_bytes for peer in state.peers)
        require(
            state.staged_bytes == total,
            Check.STAGED_PACKETS_ARE_ACCOUNTED_FOR,
            f"host {self.number}: {state.staged_bytes} staged bytes, not {total}",
        )
        counted = {reason.value: count for reason, count in self.engine.drops().items()}
        require(
            not counted.get("internal_error"),
            Check.NO_EXCEPTION_ESCAPES,
            f"host {self.number}: the engine dropped a batch after an internal error",
        )
        for cause, count in self.shadow.drops.items():
            require(
                counted.get(cause, 0) == count,
                Check.STAGED_PACKETS_ARE_ACCOUNTED_FOR,
                f"host {self.number}: the count of {cause} is {counted.get(cause, 0)}, not {count}",
            )

    def _limiter(self) -> None:
        buckets = self.limiter.inspect()
        require(
            len(buckets) <= LIMITER_SOURCES,
            Check.RATE_LIMITER_IS_BOUNDED,
            f"host {self.number}: the limiter remembers {len(buckets)} sources",
        )
        within = all(0 <= tokens <= CAPACITY for tokens in buckets)
        require(within, Check.RATE_LIMITER_IS_BOUNDED, f"host {self.number}: a bucket is below empty or above full")

    def _timers(self, now: int) -> None:
        armed = self.interface.inspect().armed
        owners = {peer.id for peer in self.interface.peers}
        require(armed <= owners, Check.TIMERS_HAVE_OWNERS, f"host {self.number}: a timer is armed for a removed peer")
        for peer in self.interface.peers:
            shadow = self.shadow.peers[peer.id]
            quiet = now - max(shadow.last_traversal, shadow.session_at or 0, self.shadow.resumed_at)
            if quiet > 3 * REJECT_AFTER + 120 * SECOND and not shadow.persistent and not shadow.staged:
                self._quiet_peer(peer, shadow, peer.id in armed)

    def _quiet_peer(self, peer: Peer, shadow: ShadowPeer, is_armed: bool) -> None:
        """Check a peer that has been quiet for so long that every timer must have expired."""
        prefix = f"host {self.number}, peer {peer.id}"
        require(not is_armed, Check.TIMERS_HAVE_OWNERS, f"{prefix}: a timer is armed although the peer is quiet")
        is_forgotten = shadow.slots == (None, None, None) and peer.sent is None
        require(is_forgotten, Check.SECRETS_ARE_FORGOTTEN, f"{prefix}: secrets remain after 540 s without a session")

    def memory(self) -> None:
        """Check that memory holds only the keypairs that the model knows (I16)."""
        for each in probe.reachable(self.interface, self.engine):
            if isinstance(each, Keypair):
                known = each.local_index in self.shadow.by_local
                require(known, Check.SECRETS_ARE_FORGOTTEN, f"host {self.number} still holds the dropped {each!r}")

    def stopped(self) -> None:
        """Check that no secret is in memory after a shutdown."""
        held = [each for each in probe.reachable(self.interface, self.engine) if isinstance(each, Keypair)]
        text = f"host {self.number} holds {len(held)} keypairs after a shutdown"
        require(not held, Check.SECRETS_ARE_FORGOTTEN, text)

    def empty(self) -> None:
        """Check that removed peers left nothing behind (L10)."""
        engine, interface = self.engine.inspect(), self.interface.inspect()
        objects = probe.reachable(self.interface, self.engine)
        left = {
            "indices": len(interface.indices),
            "timers": len(interface.armed),
            "routes": interface.prefixes + engine.routes,
            "engine peers": len(engine.peers),
            "engine keys": len(engine.indices),
            "staged bytes": engine.staged_bytes,
            "objects": sum(isinstance(each, (Keypair, Peer)) for each in objects),
        }
        require(
            not any(left.values()),
            Check.REMOVAL_LEAVES_NOTHING,
            f"host {self.number}: after removal there remain {left}",
        )
