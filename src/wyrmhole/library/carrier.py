"""The tunnel's outside: a Device on a stack's port, its peers as handles, their endpoints as names, its events.

It knows nothing of sockets inside. Everything is called on the loop that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace

from wyrmhole.control.config.change import add_change, set_change, sync_change
from wyrmhole.control.config.file import Config, ConfigInterface, ConfigPeer
from wyrmhole.control.config.values import ConfigEndpoint
from wyrmhole.device.assemble import make_device
from wyrmhole.device.config import DeviceChange, PeerChange
from wyrmhole.device.status import PeerStatus
from wyrmhole.errors import DeviceError, TunnelError
from wyrmhole.library import events
from wyrmhole.library.common import explain
from wyrmhole.library.configuring import IpAddress, check_peer, prefixes_around
from wyrmhole.library.endpoints import EndpointNames
from wyrmhole.library.one_key import KeyClaim, claim
from wyrmhole.library.peers import Peer, PeerStats
from wyrmhole.library.stacks.stack import PacketPort
from wyrmhole.protocol import events as protocol_events
from wyrmhole.protocol.constants import SECOND
from wyrmhole.protocol.drops import DropReason, by_name
from wyrmhole.protocol.keys import PublicKey
from wyrmhole.wire.endpoint import Endpoint

Answers = dict[ConfigEndpoint, list[Endpoint]]

log = logging.getLogger(__name__)


class Carrier:
    def __init__(self, port: PacketPort, engine_kind: str) -> None:
        """Raises TunnelError for an engine that is not there."""
        try:
            self.device = make_device(port, engine=engine_kind, on_event=self._handle_event)
        except DeviceError as error:
            raise TunnelError(0, str(error)) from error
        self.endpoints = EndpointNames(self._unanswered, self._endpoint_of, self._move, on_failure=self._unresolved)
        self._claim: KeyClaim | None = None
        self._names: dict[PublicKey, str | None] = {}
        self._followers: weakref.WeakSet[events.Events] = weakref.WeakSet()

    # Life

    async def start(self, config: Config) -> None:
        """Returns when packets can go. Raises ConfigError, socket.gaierror, TunnelError."""
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
        """End at once, in one step that nothing can interrupt. Idempotent. The loop may be closed already."""
        if self._claim is not None:
            self._claim.release()
        for step in (self.endpoints.close, self.device.close_now, *(each.end for each in list(self._followers))):
            with contextlib.suppress(RuntimeError):
                step()

    # Peers

    async def resolve(self, config: Config) -> Answers:
        """Where the peers are; none for a name that has no address now. Raises socket.gaierror when there is no peer to
        talk to: none without an endpoint, none with an address, none that is known from before."""
        answers, failures = await self.endpoints.resolve_some(
            endpoints_of(config.peers), is_enough=lambda found: self._can_talk(config, found)
        )
        if failures and not self._can_talk(config, answers):
            raise next(iter(failures.values()))
        for endpoint, failure in failures.items():
            log.warning("%s; the tunnel works without this peer, and goes on asking", failure.strerror)
            answers[endpoint] = []
        return answers

    def _can_talk(self, config: Config, answers: Answers) -> bool:
        return any(
            peer.endpoint is None or answers.get(peer.endpoint) or self._endpoint_of(peer.public_key) is not None
            for peer in config.peers
        )

    def sync(self, config: Config, answers: Answers) -> None:
        """Be what the config says; peers that stay keep their sessions, and so does the port when none is given.
        Raises ConfigError, TunnelError; nothing changed then."""
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
        """Raises ValueError, ConfigError, socket.gaierror."""
        own = self.device.private_key
        check_peer(peer, None if own is None else own.public_key())
        config = Config(ConfigInterface(), [peer])
        answers = await self.endpoints.resolve_all(endpoints_of([peer]))
        self._configure(add_change(config, first_of(answers)))
        self._note_peers(config, answers)
        return self.handle(peer.public_key)

    def remove_peer(self, key: PublicKey) -> None:
        self.handle(key)
        self._configure(DeviceChange(peers=(PeerChange(key, remove=True),)))
        self._forget(key)

    def handle(self, key: PublicKey) -> Peer:
        """Raises KeyError."""
        if not self.device.has_peer(key):
            raise KeyError(f"the tunnel has no peer {key}")
        return Peer(self, key, self._names.get(key))

    def stats_of(self, key: PublicKey) -> PeerStats:
        """Raises KeyError."""
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

    def leads_to(self, address: IpAddress) -> bool:
        """Whether some peer's allowed ips contain the address."""
        return self._owner_of(address) is not None

    def _owner_of(self, address: IpAddress) -> PublicKey | None:
        """By longest prefix."""
        return next(filter(None, map(self.device.owner, prefixes_around(address))), None)

    def _configure(self, change: DeviceChange) -> None:
        """Also while the interface is down."""
        if self.device.is_closed:
            raise TunnelError(errno.EBADF, "the tunnel is closed: open another one")
        self.device.configure(change)

    def _note_peers(self, config: Config, answers: Answers) -> None:
        for peer in config.peers:
            if peer.name is not None or peer.public_key not in self._names:
                self._names[peer.public_key] = peer.name
            if peer.endpoint is not None:
                self.endpoints.watch(peer.public_key, peer.endpoint, answers[peer.endpoint])

    def _forget(self, key: PublicKey) -> None:
        self.endpoints.forget(key)
        self._tell(events.PeerRemoved(Peer(self, key, self._names.pop(key, None))))

    # Sessions

    async def wait_handshake(self, key: PublicKey | None, timeout: float | None) -> Peer:
        """Return when this peer, or any, has a session; begins a handshake where there is none. The peer that has.
        Raises TimeoutError, KeyError for a peer that is not there or is removed meanwhile, TunnelError when there is no
        peer or the tunnel ends meanwhile."""
        self._check_wanted(key)
        happenings = self.follow()
        for each in self.device.peer_keys() if key is None else [key]:
            if self._has_session(each):
                return self.handle(each)
            self.device.ensure_session(each)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                async for event in happenings:
                    self._check_wanted(key)
                    if key not in (None, event.peer.public_key):
                        continue
                    if isinstance(event, events.Handshake):
                        return event.peer
                    if isinstance(event, events.HandshakeFailed | events.EndpointChanged):
                        self.device.ensure_session(event.peer.public_key)
        except TimeoutError:
            if not limit.expired():
                raise
            wanted = self.device.peer_keys() if key is None else [key]
            raise TimeoutError(f"no handshake within {timeout:g} s: {self._why_none(wanted)}") from None
        raise TunnelError(errno.EBADF, "the tunnel was closed before a handshake")

    def _check_wanted(self, key: PublicKey | None) -> None:
        """Raises KeyError, TunnelError for nobody to wait for."""
        if key is not None:
            self.handle(key)
        elif not self.device.peer_keys():
            raise TunnelError(errno.ENOTCONN, "the tunnel has no peer to wait for: add one first")

    async def handshake(self, key: PublicKey, timeout: float | None) -> None:
        """A new session with this peer. Raises TimeoutError, KeyError, TunnelError when the tunnel ends meanwhile."""
        self.handle(key)
        happenings = self.follow()
        self.device.request_handshake(key)
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                async for event in happenings:
                    if isinstance(event, events.Handshake) and event.peer.public_key == key:
                        return
                    if isinstance(event, events.HandshakeFailed) and event.peer.public_key == key:
                        self.device.request_handshake(key)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"no new handshake within {timeout:g} s: {self._why_none([key])}") from None
        raise TunnelError(errno.EBADF, "the tunnel was closed before a handshake")

    def _has_session(self, key: PublicKey) -> bool:
        peer = self.device.peer(key)
        return peer is not None and peer.session_age is not None

    # Explanations

    def _why_none(self, keys: Iterable[PublicKey]) -> str:
        """Why there is no new session with these peers."""
        peers = [peer for key in keys if (peer := self.device.peer(key)) is not None]
        found = [explain.no_new_session(peer, self._called(peer.public_key)) for peer in peers]
        more = [f"and {len(found) - explain.MAX_REASONS} more peers"] if len(found) > explain.MAX_REASONS else []
        return "; ".join(found[: explain.MAX_REASONS] + more) or "the peer was removed"

    def _called(self, key: PublicKey) -> str:
        return self._names.get(key) or key.base64()

    def _status_of_owner(self, address: explain.IpAddress) -> PeerStatus | None:
        owner = self._owner_of(address)
        return None if owner is None else self.device.peer(owner)

    def no_session(self, address: explain.IpAddress) -> str | None:
        """Why packets do not reach the peer that owns an address; None when they do, or nobody does."""
        owner = self._status_of_owner(address)
        return None if owner is None else explain.no_session(owner, self._called(owner.public_key))

    def explain(self, address: explain.IpAddress) -> str:
        """Why an address inside may not answer: what is known about the peer that owns it."""
        owner = self._status_of_owner(address)
        if owner is not None:
            foreign = self.device.drops().get(DropReason.BAD_SOURCE, 0)
            return explain.state_of(owner, self._called(owner.public_key), foreign)
        keys = self.device.peer_keys()
        if not keys:
            return "the tunnel has no peer: add a [Peer] to its configuration"
        peers = filter(None, map(self.device.peer, keys))
        return explain.outside(address, (prefix for peer in peers for prefix in peer.allowed_ips))

    # What happens

    def follow(self) -> events.Events:
        follower = events.Events()
        self._followers.add(follower)
        return follower

    def _handle_event(self, event: protocol_events.Event) -> None:
        """Pass on what a program may act on; the steps of a handshake are for the log."""
        refusals = protocol_events.HandshakeRefused | protocol_events.PacketRefused | protocol_events.CookieReplySent
        if isinstance(event, refusals):
            return
        peer = Peer(self, event.peer, self._names.get(event.peer))
        match event:
            case protocol_events.HandshakeCompleted():
                self._tell(events.Handshake(peer, event.as_initiator))
            case protocol_events.HandshakeGaveUp():
                self._tell(events.HandshakeFailed(peer))
            case protocol_events.EndpointChanged():
                self._tell(events.Roamed(peer, event.endpoint))
            case protocol_events.SessionExpired():
                self._tell(events.Expired(peer))
            case protocol_events.PeerSilent():
                self._tell(events.PeerSilent(peer, event.endpoint, event.initiations, event.problem is not None))
            case protocol_events.PeerBack():
                self._tell(events.PeerBack(peer, event.silent_for / SECOND))
            case protocol_events.EndpointFlapping():
                self._tell(events.EndpointFlapping(peer, event.endpoints))

    def _tell(self, event: events.Event) -> None:
        for follower in list(self._followers):
            follower.put(event)

    # Endpoints

    def _unanswered(self, key: PublicKey) -> int:
        peer = self.device.peer(key)
        return 0 if peer is None else peer.attempts

    def _endpoint_of(self, key: PublicKey) -> Endpoint | None:
        peer = self.device.peer(key)
        return None if peer is None else peer.endpoint

    def _move(self, key: PublicKey, endpoint: Endpoint) -> None:
        self._configure(DeviceChange(peers=(PeerChange(key, update_only=True, endpoint=endpoint),)))
        self._tell(events.EndpointChanged(Peer(self, key, self._names.get(key)), endpoint))

    def _unresolved(self, key: PublicKey, reason: str) -> None:
        self._tell(events.EndpointUnresolved(Peer(self, key, self._names.get(key)), reason))


def endpoints_of(peers: Iterable[ConfigPeer]) -> list[ConfigEndpoint]:
    return [peer.endpoint for peer in peers if peer.endpoint is not None]


def first_of(answers: Answers) -> Callable[[ConfigEndpoint], Endpoint | None]:
    return lambda endpoint: next(iter(answers.get(endpoint, [])), None)
