"""Device: a tunnel interface that lives. The only place where the pure core, an engine and the edges meet.

States follow the TUN: while it is up the bind is open and the interface runs; when it goes down the socket is closed
and all sessions are forgotten, configuration stays. When it is deleted the device closes.

    created --begin()--> down <--TUN up / TUN down--> up
                           \\-------- close(), TUN deleted, engine failed --------> closed (final)

It is the only way to what is below it: nobody else calls the engine or the protocol, and `device/assemble.py` puts the
parts together. Everything is called on one asyncio loop, except `close_now` and `drain`. `configure` is checked whole
before any of it is applied.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import time
from collections import Counter
from collections.abc import Callable

from wyrmhole.device.clock import Clock, SystemClock
from wyrmhole.device.config import DeviceChange, PeerChange
from wyrmhole.device.driver import Driver
from wyrmhole.device.event_log import WARNINGS, describe, peer_text
from wyrmhole.device.send_errors import explain
from wyrmhole.device.status import DeviceStatus, DropCounts, PeerStatus, peer_status
from wyrmhole.engine.contract import Engine, TunChanged
from wyrmhole.errors import ConfigError, DeviceError
from wyrmhole.net.bind import Bind
from wyrmhole.net.tun import Tun, TunEvent
from wyrmhole.net.udp_route import why_unreachable
from wyrmhole.protocol.constants import Timings
from wyrmhole.protocol.drops import DropReason, Oddity, by_name
from wyrmhole.protocol.events import Event, PeerSilent, SendRefused
from wyrmhole.protocol.interface import Interface
from wyrmhole.protocol.keys import PrivateKey, PublicKey
from wyrmhole.protocol.peer import Peer
from wyrmhole.wire.prefix import Prefix

START_PATIENCE = 5.0
"""Seconds for a device to follow an interface that is up."""
_DRAIN_STEP = 0.001
"""Seconds between two looks at the TUN, which cannot report that it is empty."""
MORE_FILES = "raise the limit of open files (ulimit -n)"
OTHER_PORT = "choose another listen port, or 0 for any"


class Device:
    """`bind_factory` makes a closed Bind; a port change opens a second one before the first is closed.
    The device closes the tun, the binds and the engine that it was given."""

    def __init__(
        self,
        tun: Tun,
        bind_factory: Callable[[], Bind],
        engine: Engine,
        *,
        engine_reason: str = "",
        clock: Clock | None = None,
        logger: logging.Logger | None = None,
        timings: Timings | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._tun = tun
        self._bind_factory = bind_factory
        self._engine = engine
        self._clock = clock or SystemClock()
        self._log = logger or logging.getLogger("wyrmhole")
        self._on_event = on_event
        self.engine_name = str(engine.kind.value)
        self.engine_reason = engine_reason
        """Why it is this engine, for the log."""
        self._bind: Bind | None = None
        self._tun_is_up = False
        self._port = 0
        self._mark = 0
        self._reports_refusals = False
        self._closed = asyncio.Event()
        self._decided = asyncio.Event()
        """Set once the interface is up, cannot come up, or is closed: what `start` waits for."""
        self.on_closed: Callable[[], None] = lambda: None
        """Called once, on whatever thread closes it."""
        self.obstacle: ConfigError | None = None
        """Why it stays down although its interface is up."""
        self.failure: str | None = None
        """Why it closed itself, if that was not in order."""
        self._interface = Interface(
            engine,
            random=self._clock.random,
            wall_clock=self._clock.wall,
            now=self._clock.boottime(),
            timings=timings,
        )
        self._driver = Driver(
            self._interface,
            engine,
            self._clock,
            on_tun=self._handle_tun,
            on_failure=self._handle_failure,
            on_event=self._handle_event,
        )

    # Life

    def begin(self) -> None:
        """Follow the TUN. Returns before the interface is up, for programs that do not decide when that happens."""
        self._driver.start()
        self._engine.set_mtu(self._tun.mtu)
        self._engine.attach_tun(self._tun)

    async def start(self, change: DeviceChange, limit: float = START_PATIENCE) -> None:
        """Configure, begin, and return when the interface is up and the engine works by the whole change.

        For a TUN that is up already. Raises ConfigError for the change or its port, DeviceError with the reason why the
        interface does not come up. The caller closes the device either way.
        """
        self.configure(change)
        self.begin()
        try:
            async with asyncio.timeout(limit):
                await self._decided.wait()
                await self.applied()
        except TimeoutError:
            raise DeviceError("the tunnel did not come up: the engine does not see its interface up") from None
        if self.obstacle is not None:
            raise self.obstacle
        if self.is_closed:
            raise DeviceError(f"the tunnel did not come up: {self.failure or 'its interface is gone'}")

    async def close(self) -> None:
        """Forget all sessions and release everything. Idempotent."""
        self.close_now()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    @property
    def is_up(self) -> bool:
        return self._interface.is_up

    @property
    def is_closed(self) -> bool:
        """For good; a device that is down may come up again."""
        return self._closed.is_set()

    def close_now(self) -> None:
        """`close` for those who cannot wait: it never does. The loop must not be running elsewhere."""
        if self._closed.is_set():
            return
        self._go_down()
        self._driver.stop()
        self._engine.close()
        self._tun.close()
        try:
            self._decided.set()
            self._closed.set()
        finally:
            self.on_closed()

    # Configuration

    def configure(self, change: DeviceChange) -> None:
        """Apply the whole change, or none of it. Raises ConfigError with the errno that the UAPI answers."""
        self._check_peer_count(change)
        self._apply_socket(change)
        self._follow_log_level()
        now = self._clock.boottime()
        if change.private_key is not None:
            self._interface.set_private_key(change.private_key, now)
        if change.replace_peers:
            for peer in self._interface.peers:
                self._remove_peer(peer)
        for section in change.peers:
            self._apply_peer(section, now)
        if self._tun_is_up and self._bind is None:
            # It could not come up for its port; this change may have given it another.
            self._go_up()
        self._driver.settle()

    def _follow_log_level(self) -> None:
        """Ask the engine for refusals while somebody reads them."""
        wanted = self._log.isEnabledFor(logging.DEBUG)
        if wanted != self._reports_refusals:
            self._reports_refusals = wanted
            self._engine.report_refusals(wanted)

    def request_handshake(self, key: PublicKey) -> bool:
        """Ask for a new session with the peer, whether or not there is one. False: there is no such peer."""
        peer = self._interface.peer(key)
        if peer is None:
            return False
        self._interface.request_handshake(peer, self._clock.boottime())
        self._driver.settle()
        return True

    def ensure_session(self, key: PublicKey) -> bool:
        """Send the peer an empty packet, for which a session is needed first. False: there is no such peer."""
        peer = self._interface.peer(key)
        if peer is None:
            return False
        self._engine.send_keepalive(peer.id)
        self._driver.settle()
        return True

    def when_applied(self, call: Callable[[], None]) -> None:
        """Call once, on any thread, when the engine works by everything that was configured."""
        self._engine.when_applied(call)

    async def applied(self) -> None:
        """Wait until the engine works by everything that was configured: a large change takes it several batches."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def set_done() -> None:
            # The loop may have ended by then, and nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        self.when_applied(set_done)
        waits = [asyncio.ensure_future(event.wait()) for event in (done, self._closed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def drain(self, limit: float) -> None:
        """Block until the engine has read every packet that waits in the TUN, at most `limit` seconds.

        It blocks and may be called from any thread, because programs need it at their end: their loop may not run any
        more, and would cancel a task of theirs.
        """
        try:
            own = os.dup(self._tun.fileno())
        except OSError:
            # The TUN is closed already.
            return
        try:
            waiting = select.poll()
            waiting.register(own, select.POLLIN)
            for _ in range(round(limit / _DRAIN_STEP)):
                if waiting.poll(0) != [(own, select.POLLIN)]:
                    return
                time.sleep(_DRAIN_STEP)
        finally:
            os.close(own)

    def _check_peer_count(self, change: DeviceChange) -> None:
        """Sections apply in their order, so the most there ever are on the way counts."""
        peers = self._interface.peers
        # One peer more must not cost a look at all of them.
        if (0 if change.replace_peers else len(peers)) + len(change.peers) <= peers.max_peers:
            return
        present = set() if change.replace_peers else {peer.public_key.raw for peer in peers}
        for section in change.peers:
            if section.remove:
                present.discard(section.public_key.raw)
            elif not section.update_only:
                present.add(section.public_key.raw)
            if len(present) > peers.max_peers:
                raise ConfigError(errno.EINVAL, f"a device holds at most {peers.max_peers} peers: remove some first")

    def _apply_socket(self, change: DeviceChange) -> None:
        former_mark = self._mark
        if change.fwmark is not None and change.fwmark != self._mark:
            self._set_mark(change.fwmark)
        if change.listen_port is not None and (change.listen_port != self._port or change.listen_port == 0):
            try:
                self._set_port(change.listen_port)
            except ConfigError:
                self._set_mark(former_mark)
                raise

    def _set_mark(self, mark: int) -> None:
        try:
            if self._bind is not None:
                self._bind.set_mark(mark)
        except OSError as error:
            raise ConfigError(errno.EADDRINUSE, f"fwmark {mark}: {error.strerror}; it needs CAP_NET_ADMIN") from None
        if mark != self._mark:
            self._interface.forget_sources()
        self._mark = mark

    def _set_port(self, port: int) -> None:
        """Sessions survive: only the socket changes, and the former one stays if the other cannot be had."""
        if self._bind is None:
            self._probe_port(port)
            return
        former, former_port = self._bind, self._port
        fresh = self._open_bind(port)
        try:
            self._attach_bind(fresh)
        except ConfigError:
            self._port = former_port
            raise
        former.close()

    def _probe_port(self, port: int) -> None:
        """While down no socket is held, but a port that is taken is refused by the command that asks for it."""
        if port:
            self._open_bind(port).close()
        self._port = port

    def _open_bind(self, port: int) -> Bind:
        bind = self._bind_factory()
        try:
            bind.set_mark(self._mark)
            self._port = bind.open(port)
        except OSError as error:
            bind.close()
            remedy = MORE_FILES if error.errno in (errno.EMFILE, errno.ENFILE) else OTHER_PORT
            raise ConfigError(errno.EADDRINUSE, f"UDP port {port}: {error.strerror}; {remedy}") from None
        return bind

    def _attach_bind(self, bind: Bind) -> None:
        """Raises ConfigError when the engine has no descriptors left for it; the bind is closed then."""
        try:
            self._engine.attach_bind(bind, self._port)
        except OSError as error:
            bind.close()
            raise ConfigError(
                errno.EADDRINUSE,
                f"UDP port {self._port}: {error.strerror}; {MORE_FILES}",
            ) from None
        self._bind = bind
        self._log.debug("UDP bind has been updated, listening on port %d", self._port)

    def _apply_peer(self, section: PeerChange, now: int) -> None:
        peer = self._interface.peer(section.public_key)
        if section.remove or (section.update_only and peer is None):
            if section.remove and peer is not None:
                self._remove_peer(peer)
            return
        if peer is None:
            peer = self._interface.add_peer(section.public_key)
            if peer is None:
                return
            self._log_of(peer, "Starting")
        if section.preshared_key is not None:
            self._interface.set_preshared_key(peer, section.preshared_key)
        if section.endpoint is not None:
            self._interface.set_endpoint(peer, section.endpoint, now)
        self._apply_allowed_ips(peer, section)
        if section.persistent_keepalive is not None:
            self._interface.set_persistent_keepalive(peer, section.persistent_keepalive, now)

    def _remove_peer(self, peer: Peer) -> None:
        self._log_of(peer, "Stopping")
        self._interface.remove_peer(peer)

    def _log_of(self, peer: Peer, text: str) -> None:
        if self._log.isEnabledFor(logging.DEBUG):
            self._log.debug("%s - %s", peer_text(peer.public_key), text)

    def _apply_allowed_ips(self, peer: Peer, section: PeerChange) -> None:
        if section.replace_allowed_ips:
            wanted: dict[Prefix, None] = {}
            for change in section.allowed_ips:
                if change.remove:
                    wanted.pop(change.prefix, None)
                else:
                    wanted[change.prefix] = None
            self._interface.replace_allowed_ips(peer, wanted)
            return
        for change in section.allowed_ips:
            if change.remove:
                self._interface.remove_allowed_ip(peer, change.prefix)
            else:
                self._interface.insert_allowed_ip(peer, change.prefix)

    # Status

    def status(self) -> DeviceStatus:
        return DeviceStatus(
            name=self._tun.name,
            private_key=self._interface.private_key,
            listen_port=self._port,
            fwmark=self._mark,
            mtu=self._tun.mtu,
            peers=tuple(self._peer_status(peer) for peer in self._interface.peers),
        )

    def peer(self, key: PublicKey) -> PeerStatus | None:
        """The state of one peer. None: there is no such peer."""
        peer = self._interface.peer(key)
        return None if peer is None else self._peer_status(peer)

    def has_peer(self, key: PublicKey) -> bool:
        return self._interface.peer(key) is not None

    def owner(self, prefix: Prefix) -> PublicKey | None:
        """The peer among whose allowed ips is exactly this prefix."""
        peer = self._interface.owner(prefix)
        return None if peer is None else peer.public_key

    def _peer_status(self, peer: Peer) -> PeerStatus:
        return peer_status(
            peer,
            self._engine.counters(peer.id),
            reject_after=self._interface.timings.reject_after,
            now=self._clock.boottime(),
            wall=self._clock.wall(),
        )

    def drops(self) -> dict[DropReason, int]:
        """Packets that died since the start, by cause."""
        return dict(Counter(self._engine.drops()) + self._interface.exchange.drops)

    def peer_drops(self, key: PublicKey) -> dict[DropReason, int]:
        """The same for one peer: those that are known to be its packets. Empty if there is no such peer."""
        peer = self._interface.peer(key)
        if peer is None:
            return {}
        return dict(Counter(self._engine.peer_drops(peer.id)) + Counter(peer.drops))

    def drop_counts(self) -> DropCounts:
        """All drops, and those of each peer that has any."""
        peers = {key: drops for key in self.peer_keys() if (drops := by_name(self.peer_drops(key)))}
        return DropCounts(by_name(self.drops()), peers)

    def oddities(self) -> dict[Oddity, int]:
        """Packets that were odd and went their way since the start, by cause."""
        return dict(self._engine.oddities())

    @property
    def private_key(self) -> PrivateKey | None:
        return self._interface.private_key

    def peer_keys(self) -> list[PublicKey]:
        return [peer.public_key for peer in self._interface.peers]

    # What happens to it

    def _handle_tun(self, report: TunChanged) -> None:
        if report.event is TunEvent.UP:
            self._tun_is_up = True
            self._go_up()
        elif report.event is TunEvent.DOWN:
            self._tun_is_up = False
            self._go_down()
        elif report.event is TunEvent.MTU:
            self._engine.set_mtu(self._tun.mtu)
        else:
            self._log.info("Interface is gone, ending")
            self.close_now()

    def _go_up(self) -> None:
        if self._bind is not None:
            return
        self._log.debug("Interface up requested")
        self._follow_log_level()
        try:
            self._attach_bind(self._open_bind(self._port))
        except ConfigError as error:
            self._log.error("Interface stays down: %s", error)
            self.obstacle = error
            self._decided.set()
            return
        self.obstacle = None
        self._interface.up(self._clock.boottime())
        self._decided.set()
        self._log.debug("Interface up, listening on port %d", self._port)

    def _go_down(self) -> None:
        if self._bind is not None:
            self._log.debug("Interface down requested")
        self._interface.down()
        if self._bind is not None:
            self._engine.detach_bind()
            self._bind.close()
            self._bind = None
            self._log.debug("Interface down")

    def _handle_failure(self, reason: str) -> None:
        self.failure = reason
        self._log.error("Data path stopped: %s", reason)
        self.close_now()

    def _hint(self, event: Event) -> str | None:
        """What this host knows about a peer that cannot be reached."""
        if isinstance(event, PeerSilent) and event.endpoint is not None:
            return why_unreachable(event.endpoint)
        if isinstance(event, SendRefused):
            peer = self._interface.peer(event.peer)
            return explain(event.errno, None if peer is None else peer.endpoint)
        return None

    def _handle_event(self, event: Event) -> None:
        if self._log.isEnabledFor(logging.DEBUG) or isinstance(event, WARNINGS):
            for line in describe(event, self._hint(event)):
                self._log.log(line.level, "%s", line.text, extra={"rate_class": line.rate_class})
        if self._on_event is not None:
            self._on_event(event)
