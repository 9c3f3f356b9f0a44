"""Device: a running tunnel interface. The only module that connects the pure core, an engine and the edges.

The state follows the TUN. While the TUN is up, the bind is open and the interface runs. When it goes down, the bind is
closed and all sessions are forgotten, but the configuration is kept. When it is deleted, the device closes.

    created --begin()--> down <--TUN up / TUN down--> up
                           \\-------- close(), TUN deleted, engine failed --------> closed (final)

No code above the device calls the engine or the protocol directly; `device/assemble.py` puts the parts together. All
methods must be called on one asyncio loop, except `close_now` and `drain`. A change is checked completely before
`configure` applies any of it.
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
"""Seconds that a device may take to follow an interface that is up."""
_DRAIN_STEP = 0.001
"""Seconds between two polls of the TUN, which cannot report that it is empty."""
MORE_FILES = "raise the limit of open files (ulimit -n)"
OTHER_PORT = "choose another listen port, or 0 for any"


class Device:
    """A running tunnel interface. `bind_factory` creates a closed Bind; a change of the port opens a second one before
    it closes the first. The device closes the tun, the binds and the engine."""

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
        """The reason for the choice of the engine, for the log."""
        self._bind: Bind | None = None
        self._tun_is_up = False
        self._port = 0
        self._mark = 0
        self._reports_refusals = False
        self._closed = asyncio.Event()
        self._decided = asyncio.Event()
        """Set once the interface is up, cannot come up, or is closed; `start` waits for it."""
        self.on_closed: Callable[[], None] = lambda: None
        """Called once, on the thread that closes the device."""
        self.obstacle: ConfigError | None = None
        """The reason why the device stays down although its interface is up."""
        self.failure: str | None = None
        """The reason why the device closed itself after a failure."""
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

    # Life cycle

    def begin(self) -> None:
        """Begin to follow the TUN. Returns before the interface is up, for programs that do not bring it up."""
        self._driver.start()
        self._engine.set_mtu(self._tun.mtu)
        self._engine.attach_tun(self._tun)

    async def start(self, change: DeviceChange, limit: float = START_PATIENCE) -> None:
        """Configure, begin, and return when the interface is up and the engine has applied the whole change.

        The TUN must be up already. Raises ConfigError if the change or its port is refused, and DeviceError with the
        reason if the device does not come up. The caller must close the device in either case.
        """
        self.configure(change)
        self.begin()
        try:
            async with asyncio.timeout(limit):
                await self._decided.wait()
                await self.applied()
        except TimeoutError:
            raise DeviceError("the tunnel did not come up: the engine does not report its interface as up") from None
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
        """Whether the device is closed permanently; a device that is down may come up again."""
        return self._closed.is_set()

    def close_now(self) -> None:
        """Close without a loop. The device's loop must not be running in another thread."""
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
        """Apply the whole change. Raises ConfigError, with the errno for the UAPI's answer; then nothing is applied."""
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
            # The device could not come up because of its port, which this change may have replaced.
            self._go_up()
        self._driver.settle()

    def _follow_log_level(self) -> None:
        """Let the engine report refusals only while the log writes them."""
        wanted = self._log.isEnabledFor(logging.DEBUG)
        if wanted != self._reports_refusals:
            self._reports_refusals = wanted
            self._engine.report_refusals(wanted)

    def request_handshake(self, key: PublicKey) -> bool:
        """Begin a new handshake with the peer, also if there is a session. Return false if there is no such peer."""
        peer = self._interface.peer(key)
        if peer is None:
            return False
        self._interface.request_handshake(peer, self._clock.boottime())
        self._driver.settle()
        return True

    def ensure_session(self, key: PublicKey) -> bool:
        """Send the peer an empty packet, which first establishes a session. Return false if there is no such peer."""
        peer = self._interface.peer(key)
        if peer is None:
            return False
        self._engine.send_keepalive(peer.id)
        self._driver.settle()
        return True

    def when_applied(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on any thread, when the engine has applied the whole configuration."""
        self._engine.when_applied(callback)

    async def applied(self) -> None:
        """Wait until the engine has applied the whole configuration; a large change takes several batches."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def set_done() -> None:
            # The loop may have ended meanwhile; then no task waits.
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
        """Block until the engine has read all packets that wait in the TUN, at most `limit` seconds.

        This blocks and may be called from any thread, because it is needed at the end of a program: its loop may have
        ended already, or would cancel a task.
        """
        try:
            own = os.dup(self._tun.fileno())
        except OSError:
            # The TUN is already closed.
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
        """Refuse a change that exceeds the limit on peers at any point: its sections apply in order."""
        peers = self._interface.peers
        # Adding one peer must not cost a pass over all peers.
        if (0 if change.replace_peers else len(peers)) + len(change.peers) <= peers.max_peers:
            return
        present = set() if change.replace_peers else {peer.public_key.raw for peer in peers}
        for section in change.peers:
            if section.remove:
                present.discard(section.public_key.raw)
            elif not section.update_only:
                present.add(section.public_key.raw)
            if len(present) > peers.max_peers:
                raise ConfigError(errno.EINVAL, f"a device has at most {peers.max_peers} peers: remove some first")

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
            reason = f"cannot set fwmark {mark}: {error.strerror} (grant CAP_NET_ADMIN)"
            raise ConfigError(errno.EADDRINUSE, reason) from None
        if mark != self._mark:
            self._interface.forget_sources()
        self._mark = mark

    def _set_port(self, port: int) -> None:
        """Change the port. Sessions survive, because only the socket changes. If the new one cannot be opened, the
        former one is kept."""
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
        """Check that the port is free. A device that is down has no socket, but a used port is refused at once."""
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
            raise ConfigError(errno.EADDRINUSE, f"cannot open UDP port {port}: {error.strerror} ({remedy})") from None
        return bind

    def _attach_bind(self, bind: Bind) -> None:
        """Give the bind to the engine. Raises ConfigError if no descriptor is available; then the bind is closed."""
        try:
            self._engine.attach_bind(bind, self._port)
        except OSError as error:
            bind.close()
            reason = f"cannot open UDP port {self._port}: {error.strerror} ({MORE_FILES})"
            raise ConfigError(errno.EADDRINUSE, reason) from None
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
        """Return the status of one peer, or None if there is no such peer."""
        peer = self._interface.peer(key)
        return None if peer is None else self._peer_status(peer)

    def has_peer(self, key: PublicKey) -> bool:
        return self._interface.peer(key) is not None

    def owner(self, prefix: Prefix) -> PublicKey | None:
        """Return the peer whose allowed ips include exactly this prefix."""
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
        """Return the numbers of packets dropped since the start, by reason."""
        return dict(Counter(self._engine.drops()) + self._interface.exchange.drops)

    def peer_drops(self, key: PublicKey) -> dict[DropReason, int]:
        """Return the numbers of one peer's dropped packets, by reason; empty if there is no such peer."""
        peer = self._interface.peer(key)
        if peer is None:
            return {}
        return dict(Counter(self._engine.peer_drops(peer.id)) + Counter(peer.drops))

    def drop_counts(self) -> DropCounts:
        """Return all drops, and those of each peer that has any."""
        peers = {key: drops for key in self.peer_keys() if (drops := by_name(self.peer_drops(key)))}
        return DropCounts(by_name(self.drops()), peers)

    def oddities(self) -> dict[Oddity, int]:
        """Return the numbers of odd packets that were delivered nevertheless since the start, by oddity."""
        return dict(self._engine.oddities())

    @property
    def private_key(self) -> PrivateKey | None:
        return self._interface.private_key

    def peer_keys(self) -> list[PublicKey]:
        return [peer.public_key for peer in self._interface.peers]

    # Reports and events

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
            self._log.info("Interface is gone, closing")
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
        """Return the reason why this host cannot reach a peer, if it is known."""
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
