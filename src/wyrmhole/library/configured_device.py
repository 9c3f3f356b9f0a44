"""A Device that follows a configuration: peers have names, endpoints may be host names, events are the library's.

It does not know the sockets inside the tunnel. All methods must be called on the loop that started it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from wyrmhole.control.config.change import add_change, set_change, sync_change
from wyrmhole.control.config.file import Config, ConfigInterface, ConfigPeer
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.assemble import make_device
from wyrmhole.device.config import DeviceChange, PeerChange
from wyrmhole.device.status import PeerStatus
from wyrmhole.errors import DeviceError, TunnelError
from wyrmhole.library import events
from wyrmhole.library.common.reachability import Reachability
from wyrmhole.library.configuring import check_peer
from wyrmhole.library.endpoints import Answers, EndpointNames
from wyrmhole.library.followers import Followers
from wyrmhole.library.handshakes import Handshakes
from wyrmhole.library.one_key import KeyClaim, claim
from wyrmhole.library.peers import Peer, PeerStats
from wyrmhole.library.stacks.stack import PacketPort
from wyrmhole.net.link_setup import Interface
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import by_name
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

log = logging.getLogger(__name__)


class ConfiguredDevice:
    def __init__(self, port: PacketPort, engine_kind: str) -> None:
        """Make the device. Raises TunnelError if the engine is not installed."""
        self.followers = Followers(self.named)
        try:
            self.device = make_device(port, engine=engine_kind, on_event=self.followers.handle)
        except DeviceError as error:
            raise TunnelError(0, str(error)) from error
        self.endpoints = EndpointNames(self._unanswered, self._endpoint_of, self._move, on_failure=self._unresolved)
        self.addresses: Sequence[Interface] = ()
        """The tunnel's own addresses, for explanations."""
        self.reachability = Reachability(self.device, lambda: self.addresses, lambda key: self._names.get(key))
        self.handshakes = Handshakes(self.device, self.followers, self.reachability, self.handle)
        self._claim: KeyClaim | None = None
        self._names: dict[PublicKey, str | None] = {}

    # Life

    async def start(self, config: Config) -> None:
        """Start the device, and return when packets can flow. Raises ConfigError, socket.gaierror, TunnelError."""
        answers = await self.resolve(config)
        try:
            await self.device.start(set_change(config, first_of(answers)))
        except DeviceError as error:
            raise TunnelError(0, str(error)) from None
        self._note_peers(config, answers)
        self._claim_key()

    def _claim_key(self) -> None:
        if self._claim is not None:
            self._claim.release()
        key = self.device.private_key
        self._claim = None if key is None else claim(key.public_key())

    def end(self) -> None:
        """End everything in one step that nothing can interrupt. Idempotent. The loop may already be closed."""
        if self._claim is not None:
            self._claim.release()
        for step in (self.endpoints.close, self.device.close_now, self.followers.end):
            with contextlib.suppress(RuntimeError):
                step()

    # Peers

    async def resolve(self, config: Config) -> Answers:
        """Resolve the endpoints of all peers. The result is empty for a name without an address.

        Raises socket.gaierror if no peer is usable. A peer is usable if it has no Endpoint (it may connect to us), if
        its endpoint has an address, or if its address is known from earlier.
        """
        answers, failures = await self.endpoints.resolve_some(
            endpoints_of(config.peers), is_enough=lambda found: self._can_talk(config, found)
        )
        if failures and not self._can_talk(config, answers):
            raise next(iter(failures.values()))
        for endpoint, failure in failures.items():
            log.warning("%s; continuing without this peer, the look-up will be repeated", failure.strerror)
            answers[endpoint] = []
        return answers

    def _can_talk(self, config: Config, answers: Answers) -> bool:
        return any(
            peer.endpoint is None or answers.get(peer.endpoint) or self._endpoint_of(peer.public_key) is not None
            for peer in config.peers
        )

    def sync(self, config: Config, answers: Answers) -> None:
        """Apply a configuration. Peers that stay keep their sessions. The port is kept if the configuration has none.

        Raises ConfigError, TunnelError; nothing has changed in this case.
        """
        change = sync_change(config, self.device.status(), first_of(answers))
        if config.interface.listen_port is None:
            change = replace(change, listen_port=None)
        gone = [peer.public_key for peer in change.peers if peer.remove]
        is_new_key = change.private_key is not None and change.private_key != self.device.private_key
        self._configure(change)
        if is_new_key:
            self._claim_key()
        for key in gone:
            self._forget(key)
        self._note_peers(config, answers)

    async def add_peer(self, peer: ConfigPeer) -> Peer:
        """Add or change a peer. Raises ValueError, ConfigError, socket.gaierror."""
        own = self.device.private_key
        check_peer(peer, None if own is None else own.public_key())
        config = Config(ConfigInterface(), [peer])
        answers = await self.endpoints.resolve_all(endpoints_of([peer]))
        self._configure(add_change(config, first_of(answers)))
        self._note_peers(config, answers)
        return self.handle(peer.public_key)

    def remove_peer(self, key: PublicKey) -> None:
        """Remove a peer. Raises KeyError."""
        self.handle(key)
        self._configure(DeviceChange(peers=(PeerChange(key, remove=True),)))
        self._forget(key)

    def handle(self, key: PublicKey) -> Peer:
        """Return a handle of a peer. Raises KeyError if the device does not have it."""
        if not self.device.has_peer(key):
            raise KeyError(f"the tunnel has no peer {key}")
        return self.named(key)

    def named(self, key: PublicKey) -> Peer:
        """Return a handle, whether or not the device has the peer."""
        return Peer(self, key, self._names.get(key))

    def stats_of(self, key: PublicKey) -> PeerStats:
        """Return the state and counters of a peer. Raises KeyError."""
        status = self.device.peer(key)
        if status is None:
            raise KeyError(f"the tunnel has no peer {key}")
        return self.peer_stats(status)

    def peer_stats(self, status: PeerStatus) -> PeerStats:
        seconds, nanoseconds = status.last_handshake
        return PeerStats(
            public_key=status.public_key.base64(),
            name=self._names.get(status.public_key),
            endpoint=None if status.endpoint is None else status.endpoint.emit(),
            allowed_ips=tuple(prefix.emit() for prefix in status.allowed_ips),
            last_handshake=seconds + nanoseconds / SECOND if seconds else None,
            rx_bytes=status.rx_bytes,
            tx_bytes=status.tx_bytes,
            persistent_keepalive=status.persistent_keepalive,
            drops=by_name(self.device.peer_drops(status.public_key)),
        )

    def _configure(self, change: DeviceChange) -> None:
        """Change the device, which may be down. Raises TunnelError if it is closed, ConfigError."""
        if self.device.is_closed:
            raise TunnelError(errno.EBADF, "the tunnel is closed: open a new one")
        self.device.configure(change)

    def _note_peers(self, config: Config, answers: Answers) -> None:
        for peer in config.peers:
            if peer.name is not None or peer.public_key not in self._names:
                self._names[peer.public_key] = peer.name
            if peer.endpoint is not None:
                self.endpoints.watch(peer.public_key, peer.endpoint, answers[peer.endpoint])

    def _forget(self, key: PublicKey) -> None:
        self.endpoints.forget(key)
        removed = events.PeerRemoved(self.named(key))
        self._names.pop(key, None)
        self.followers.publish(removed)

    # Endpoints

    def _unanswered(self, key: PublicKey) -> int:
        peer = self.device.peer(key)
        return 0 if peer is None else peer.attempts

    def _endpoint_of(self, key: PublicKey) -> Endpoint | None:
        peer = self.device.peer(key)
        return None if peer is None else peer.endpoint

    def _move(self, key: PublicKey, endpoint: Endpoint) -> None:
        self._configure(DeviceChange(peers=(PeerChange(key, update_only=True, endpoint=endpoint),)))
        self.followers.publish(events.EndpointResolved(self.named(key), endpoint))

    def _unresolved(self, key: PublicKey, reason: str) -> None:
        self.followers.publish(events.EndpointUnresolved(self.named(key), reason))


def endpoints_of(peers: Iterable[ConfigPeer]) -> list[ConfigEndpoint]:
    return [peer.endpoint for peer in peers if peer.endpoint is not None]


def first_of(answers: Answers) -> Callable[[ConfigEndpoint], Endpoint | None]:
    return lambda endpoint: next(iter(answers.get(endpoint, [])), None)
