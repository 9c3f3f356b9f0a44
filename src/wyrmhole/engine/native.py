"""The native engine: the Rust packet path behind the contract of `engine.contract`.

The Rust half (rust/) moves packets in threads that never hold the interpreter. Calls that change its tables take effect
before they return. Rare events are handled here, on the control thread, with the Python edges: the state of the TUN's
interface, changed routes, broken sockets. The edges' descriptors and the one that announces reports are polled together
as one epoll descriptor, which is `fileno`. The workers and this half poll and use their own duplicates of descriptors,
because the program may close its side of an edge at any time.

For edges other than the kernel's (in memory), workers call back into Python, so that one suite runs on both engines.
"""

from __future__ import annotations

import contextlib
import os
import select
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, ParamSpec

from wyrmhole.engine import _native
from wyrmhole.engine.contract import Engine, EngineFailed, EngineKind, EngineReport, TunChanged
from wyrmhole.engine.polled import Polled, eventfds
from wyrmhole.net.bind import Bind, KernelBind, doubts_trains
from wyrmhole.net.tun import KernelTun, Tun, TunEvent
from wyrmhole.protocol.data_plane import (
    Active,
    Answered,
    DataPlane,
    HandshakeDatagram,
    KeyConfirmed,
    KeypairParams,
    KeypairsDropped,
    KeyWanted,
    Marks,
    PeerCounters,
    PeerId,
    Refused,
    Roamed,
    SendFailed,
    SessionLimits,
    Source,
    Stranger,
    TrainsLost,
)
from wyrmhole.protocol.drops import DropReason, Oddity
from wyrmhole.protocol.primitives import wipe
from wyrmhole.wire.endpoint import Endpoint
from wyrmhole.wire.prefix import Prefix

INTERFACE = 5
"""The extension module's interface version that this file expects."""

SOURCES_PER_POLL = 64
"""Sticky sources that one poll checks after a route changed; a check takes about 10 us."""

_SAME_ARGUMENTS: dict[str, Callable[..., EngineReport]] = {
    "key_wanted": KeyWanted,
    "key_confirmed": KeyConfirmed,
    "active": Active,
    "trains_lost": TrainsLost,
    "failed": EngineFailed,
    "send_failed": SendFailed,
}


def is_boottime(clock: Callable[[], int]) -> bool:
    """Return whether the clock declares by an attribute that it reads CLOCK_BOOTTIME. The workers then read it
    directly."""
    return bool(getattr(clock, "is_boottime", False))


Parameters = ParamSpec("Parameters")


def _passed_on(
    method: Callable[Concatenate[Engine, Parameters], None],
) -> Callable[Concatenate[NativeEngine, Parameters], None]:
    """Implement a call of the contract by the extension's method with the same name and arguments."""
    name = method.__name__

    def call(self: NativeEngine, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> None:
        getattr(self._native, name)(*arguments, **named)

    return call


class _WeakProxy:
    """A proxy through which workers use an attribute of the engine. It holds the engine by a weak reference, because
    the garbage collector does not see references held by Rust, and would never free a cycle through them."""

    def __init__(self, engine: NativeEngine, name: str) -> None:
        self._engine = weakref.ref(engine)
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(self._target(), attribute)

    def __call__(self) -> int:
        result: int = self._target()()
        return result

    def _target(self) -> Any:
        engine = self._engine()
        if engine is None:
            raise ReferenceError("the engine was freed")
        return getattr(engine, self._name)


class NativeEngine:
    """The native engine; see engine.contract.

    `clock` returns boottime nanoseconds. `aead` is auto, aws-lc or vector. With `spins`, workers spin for up to 100 us
    before they sleep, depending on how long they waited recently.

    Raises ImportError if the extension was built from other sources, ValueError if the AEAD backend is not available.
    """

    kind = EngineKind.NATIVE
    answers_initiations = True
    shares_interpreter = False

    def __init__(
        self,
        clock: Callable[[], int],
        *,
        workers: int = 1,
        threaded: bool = True,
        aead: str = "auto",
        spins: bool = True,
    ) -> None:
        if _native.INTERFACE != INTERFACE:
            raise ImportError("the native engine was built from other sources: reinstall wyrmhole")
        self._clock = clock
        borrowed = None if is_boottime(clock) else _WeakProxy(self, "_clock")
        self._native = _native.Engine(borrowed, workers, threaded, aead, spins)
        self._threaded = threaded
        self._tun: Tun | None = None
        self._events_fd = -1
        self._bind: Bind | None = None
        self._pid = os.getpid()
        self._port = 0
        self._route_fds: tuple[int, ...] = ()
        self._stale: list[tuple[PeerId, tuple[str, int, int], Source]] = []
        self._waiting: deque[EngineReport] = deque()
        self._questions: dict[int, Callable[[], None]] = {}
        self._last_question = 0
        self._watch = select.epoll()
        (self._pending,) = eventfds(1)
        self._polled = Polled(self._watch)
        self._watched: dict[int, Callable[[int], None]] = {}
        self._closed = False
        self._watch_fd(self._native.fileno(), lambda fd: None)
        self._watch_fd(self._pending, self._clear_pending)

    @property
    def aead(self) -> str:
        """Return the name of the library that seals and opens."""
        return self._native.aead()

    # Life cycle

    def attach_tun(self, tun: Tun) -> None:
        if self._closed:
            return
        self._tun = tun
        if isinstance(tun, KernelTun):
            tso, uso = tun.offloads.tso, tun.offloads.uso
            self._native.attach_tun([(queue.fileno, queue.has_header, tso, uso) for queue in tun.kernel_queues()])
        else:
            self._native.attach_foreign_tun(_WeakProxy(self, "_tun"))
        self._events_fd = tun.events_fileno()
        if self._events_fd >= 0:
            self._watch_fd(self._events_fd, lambda fd: self._handle_tun_events())
        self._handle_tun_events()
        if self._waiting:
            # An interface that is already up causes no further event that would wake the control thread.
            os.eventfd_write(self._pending, 1)

    def attach_bind(self, bind: Bind, port: int) -> None:
        if self._closed:
            return
        if doubts_trains(bind):
            self._native.doubt_trains()
        if isinstance(bind, KernelBind):
            self._attach_sockets(bind, bind, port)
        else:
            self._unwatch_bind()
            self._bind, self._port = bind, port
            self._native.attach_foreign_bind(_WeakProxy(self, "_bind"), port)

    def detach_bind(self) -> None:
        self._unwatch_bind()
        self._native.detach_bind()
        self._bind = None

    set_mtu = _passed_on(Engine.set_mtu)
    report_refusals = _passed_on(Engine.report_refusals)

    def commit(self) -> None:
        """Calls take effect before they return."""

    def when_applied(self, callback: Callable[[], None]) -> None:
        """Calls take effect before they return; the callback confirms that all workers still run their turns."""
        if self._closed:
            return
        self._last_question += 1
        if self._native.ask_workers(self._last_question):
            self._questions[self._last_question] = callback
        else:
            callback()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._native.close()
        self._release()
        self._tun = self._bind = None

    def _release(self) -> None:
        self._polled.close()
        self._watch.close()
        os.close(self._pending)

    def __del__(self) -> None:
        """Release an engine that was not closed; its workers end by themselves. Do nothing in a forked child, which
        shares the poll set."""
        if not getattr(self, "_closed", True) and os.getpid() == self._pid:
            self._closed = True
            self._release()

    def fileno(self) -> int:
        return self._watch.fileno()

    def turn(self, timeout_ms: int = 0, *, queue_depth: int = 0) -> None:
        """Move the waiting packets on this thread and check the edges, for engines without threads. Initiations are
        answered as if `queue_depth` others waited too."""
        self._native.turn(timeout_ms)
        self._native.answer_waiting(queue_depth)
        self._check_edges()

    def poll_reports(self, limit: int = 256) -> list[EngineReport]:
        if self._closed:
            return []
        self._check_edges()
        taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        for report in self._native.poll_reports(limit - len(taken)):
            taken.extend(self._translate(report))
        if self._waiting or self._stale:
            os.eventfd_write(self._pending, 1)
        return taken

    def drops(self) -> Mapping[DropReason, int]:
        return {DropReason(name): count for name, count in self._native.drops().items()}

    def peer_drops(self, peer: PeerId) -> Mapping[DropReason, int]:
        return {DropReason(name): count for name, count in self._native.peer_drops(peer).items()}

    def oddities(self) -> Mapping[Oddity, int]:
        return {Oddity(name): count for name, count in self._native.oddities().items()}

    # DataPlane: changes

    set_mac1_key = _passed_on(DataPlane.set_mac1_key)
    set_cookie_secret = _passed_on(DataPlane.set_cookie_secret)
    set_identity = _passed_on(DataPlane.set_identity)
    set_peer_cookie = _passed_on(DataPlane.set_peer_cookie)
    end_initiation = _passed_on(DataPlane.end_initiation)
    add_peer = _passed_on(DataPlane.add_peer)
    remove_peer = _passed_on(DataPlane.remove_peer)
    clear_source = _passed_on(DataPlane.clear_source)
    forget_keypairs = _passed_on(DataPlane.forget_keypairs)
    expire_sending_keys = _passed_on(DataPlane.expire_sending_keys)
    expect_key = _passed_on(DataPlane.expect_key)
    flush_staged = _passed_on(DataPlane.flush_staged)
    send_to_peer = _passed_on(DataPlane.send_to_peer)
    send_keepalive = _passed_on(DataPlane.send_keepalive)
    note_handshake = _passed_on(DataPlane.note_handshake)
    forget_unanswered = _passed_on(DataPlane.forget_unanswered)
    forget_received = _passed_on(DataPlane.forget_received)

    def begin_initiation(self, local_index: int) -> bool:
        return self._native.begin_initiation(local_index)

    def answer_initiations(self, private_key: bytes | None, limits: SessionLimits) -> int:
        messages = limits.rekey_after_messages, limits.reject_after_messages
        return self._native.answer_initiations(private_key, (limits.reject_after, limits.send_for, *messages))

    def insert_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        self._native.insert_allowed_ip(peer, prefix.network_bytes, prefix.length)

    def remove_allowed_ip(self, peer: PeerId, prefix: Prefix) -> None:
        self._native.remove_allowed_ip(peer, prefix.network_bytes, prefix.length)

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        self._native.set_endpoint(peer, None if endpoint is None else _parts(endpoint), source)

    def install_keypair(self, peer: PeerId, params: KeypairParams) -> None:
        self._native.install_keypair(
            peer,
            (params.local_index, params.remote_index),
            (params.send_key, params.receive_key),
            params.is_initiator,
            (params.rekey_send_at, params.rekey_receive_at, params.reject_at, params.send_until),
            (params.rekey_after_messages, params.reject_after_messages),
        )
        wipe(params.send_key)
        wipe(params.receive_key)

    def send_to(self, endpoint: Endpoint, source: Source | None, datagram: bytes) -> None:
        self._native.send_to(_parts(endpoint), source, datagram)

    # DataPlane: queries

    def marks(self, peer: PeerId) -> Marks:
        return Marks(*self._native.marks(peer, False))

    def release_activity(self, peer: PeerId) -> Marks:
        return Marks(*self._native.marks(peer, True))

    def counters(self, peer: PeerId) -> PeerCounters:
        return PeerCounters(*self._native.counters(peer))

    # Reports

    def _translate(self, report: tuple[Any, ...]) -> Iterable[EngineReport]:
        kind, *values = report
        if kind == "handshake":
            data, endpoint, source, queue_depth = values
            return (HandshakeDatagram(data, Endpoint(*endpoint), source, queue_depth=queue_depth),)
        if kind == "refused":
            name, endpoint, peer, inner = values
            return (Refused(DropReason(name), Endpoint(*endpoint), peer, inner),)
        if kind == "answered":
            peer, endpoint, index, at, identity = values
            return (Answered(peer, Endpoint(*endpoint), index, identity, at),)
        if kind == "stranger":
            return (Stranger(values[0], Endpoint(*values[1])),)
        if kind == "roamed":
            return (Roamed(values[0], Endpoint(*values[1])),)
        if kind == "keypairs_dropped":
            return (KeypairsDropped(values[0], tuple(values[1])),)
        if kind == "applied":
            self._handle_applied(values[0])
            return ()
        if kind == "tun_broken":
            return self._handle_broken_tun()
        if kind == "socket_broken":
            return self._handle_broken_socket(values[0])
        return (_SAME_ARGUMENTS[kind](*values),)

    def _handle_applied(self, number: int) -> None:
        """Call the callbacks of this question and all earlier ones: workers answer in order."""
        for answered in [question for question in self._questions if question <= number]:
            self._questions.pop(answered)()

    # Edges

    def _watch_fd(self, fd: int, act: Callable[[int], None]) -> None:
        self._polled.add(fd)
        self._watched[fd] = act

    def _unwatch_fd(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._polled.discard(fd)

    def _clear_pending(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)

    def _check_edges(self) -> None:
        for own, _ in self._watch.poll(0):
            fd = self._polled.lent(own)
            if fd is not None:
                self._watched[fd](fd)
        if self._bind is not None and self._bind.take_stale_sources():
            self._native.forget_paths()
            self._stale = self._native.sources()
        for _ in range(min(SOURCES_PER_POLL, len(self._stale))):
            self._check_source(*self._stale.pop())

    def _check_source(self, peer: PeerId, endpoint: tuple[str, int, int], source: Source) -> None:
        if self._bind is not None and not self._bind.source_is_valid(Endpoint(*endpoint).sockaddr, source):
            self._native.forget_source(peer, source)

    def _handle_tun_events(self) -> None:
        tun = self._tun
        if tun is None:
            return
        for event in tun.poll_events():
            self._waiting.append(TunChanged(event))
            if event is TunEvent.UP:
                self._native.resume_tun()
            elif event is TunEvent.DELETED:
                self._tun_gone()
                return

    def _handle_broken_tun(self) -> Iterable[EngineReport]:
        if isinstance(self._tun, KernelTun):
            self._tun.suspect_end()
        self._handle_tun_events()
        if self._tun is not None and not isinstance(self._tun, KernelTun):
            self._waiting.append(TunChanged(TunEvent.DELETED))
            self._tun_gone()
        events, self._waiting = self._waiting, deque()
        return events

    def _tun_gone(self) -> None:
        tun, self._tun = self._tun, None
        if tun is not None:
            self._unwatch_fd(self._events_fd)
            self._native.detach_tun()

    def _attach_sockets(self, bind: Bind, kernel: KernelBind, port: int) -> None:
        groups = [
            [(socket.fileno, socket.is_v6, socket.sends_trains) for socket in group]
            for group in kernel.kernel_sockets()
        ]
        self._native.attach_bind(groups, port)
        self._unwatch_bind()
        self._bind, self._port = bind, port
        sockets = {fileno for group in groups for fileno, _, _ in group}
        self._route_fds = tuple(set(bind.filenos()) - sockets)
        for fd in self._route_fds:
            # Without notifications of changes, a source is kept until a send from it fails.
            with contextlib.suppress(OSError):
                self._watch_fd(fd, self._note_routes)

    def _note_routes(self, fd: int) -> None:
        if self._bind is not None:
            self._bind.receive(fd)

    def _handle_broken_socket(self, fd: int) -> Iterable[EngineReport]:
        """Let the bind receive: it gets the same errors, and puts another socket or a timer under the same number."""
        bind = self._bind
        if bind is not None and isinstance(bind, KernelBind):
            bind.receive(fd)
            self._attach_sockets(bind, bind, self._port)
        return ()

    def _unwatch_bind(self) -> None:
        for fd in self._route_fds:
            self._unwatch_fd(fd)
        self._route_fds = ()


def _parts(endpoint: Endpoint) -> tuple[str, int, int]:
    return endpoint.host, endpoint.port, endpoint.scope_id
