"""The portable engine: pure Python, one thread, both directions.

This file implements the contract; `engine.loop` moves the packets, and `engine.mailbox` connects the two threads. Calls
that change something are queued and applied in order between two turns. Queries are answered at once. Without a thread,
calls take effect at once, and `turn` moves the waiting packets: this is how tests and the simulator run an engine.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from wyrmhole.datapath.gate import Gate
from wyrmhole.datapath.refusals import Refusals
from wyrmhole.datapath.tables import Tables
from wyrmhole.engine.contract import EngineKind, EngineReport
from wyrmhole.engine.inspection import EnginePeerState, EngineState, engine_state, peer_state
from wyrmhole.engine.loop import Loop
from wyrmhole.engine.mailbox import Mailbox
from wyrmhole.engine.polled import eventfds
from wyrmhole.net.bind import Bind
from wyrmhole.net.tun import Tun
from wyrmhole.protocol.data_plane import PeerId, SessionLimits
from wyrmhole.protocol.drops import DropReason, Oddity

SWITCH_INTERVAL = 50e-6
"""The switch interval in seconds. It is set for the whole process, but never increased. The thread releases the
interpreter in each system call, five times per turn. With Python's default of 5 ms until a busy thread hands it back,
a packet would wait 25 ms while the control thread answers a flood of handshakes."""

Part = TypeVar("Part")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _posted(
    part: Callable[[PortableEngine], Part], method: Callable[Concatenate[Part, Parameters], object]
) -> Callable[Concatenate[PortableEngine, Parameters], None]:
    """Implement a call of the contract that changes something: post it to this method of one of the engine's parts."""
    name = method.__name__

    def call(self: PortableEngine, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> None:
        self._post(partial(getattr(part(self), name), *arguments, **named))

    return call


def _answered(
    method: Callable[Concatenate[Tables, Parameters], Result],
) -> Callable[Concatenate[PortableEngine, Parameters], Result]:
    """Implement a query of the contract: answer it at once with this method of the tables."""
    name = method.__name__

    def call(self: PortableEngine, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        result: Result = getattr(self._tables, name)(*arguments, **named)
        return result

    return call


def _tables(engine: PortableEngine) -> Tables:
    return engine._tables


def _gate(engine: PortableEngine) -> Gate:
    return engine._tables.gate


def _refusals(engine: PortableEngine) -> Refusals:
    return engine._tables.refusals


def _loop(engine: PortableEngine) -> Loop:
    return engine._loop


class PortableEngine:
    """The portable engine; see engine.contract. `clock` returns boottime nanoseconds."""

    kind = EngineKind.PORTABLE
    answers_initiations = False
    shares_interpreter = True

    def __init__(self, clock: Callable[[], int], *, threaded: bool = True) -> None:
        self._threaded = threaded
        self._tables = Tables()
        self._wake, self._notify = eventfds(2)
        self._mailbox = Mailbox(self._wake)
        self._loop = Loop(clock, self._tables, self._mailbox, self._notify)
        self._thread: threading.Thread | None = None
        self._closed = False

    # Life cycle

    def attach_tun(self, tun: Tun) -> None:
        self._call(self._loop.attach_tun, tun)
        if self._threaded and self._thread is None:
            sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
            self._thread = threading.Thread(target=self._loop.run, name="wyrmhole-engine", daemon=True)
            self._thread.start()

    def attach_bind(self, bind: Bind, port: int) -> None:
        self._call(self._loop.attach_bind, bind, port)

    def detach_bind(self) -> None:
        self._call(self._loop.attach_bind, None, 0)

    def set_mtu(self, mtu: int) -> None:
        self._call(self._tables.set_mtu, mtu)

    def commit(self) -> None:
        if not self._closed:
            self._mailbox.commit()

    def when_applied(self, callback: Callable[[], None]) -> None:
        self._post(callback)
        self.commit()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.is_stopping = True
        if self._thread is not None:
            self._mailbox.ring()
            self._thread.join()
            self._thread = None
        for peer in list(self._tables.peers):
            self._tables.remove_peer(peer)
        self._loop.close()
        self._tables.gate.close()
        os.close(self._wake)
        os.close(self._notify)

    def _post(self, call: Callable[..., object], *arguments: object) -> None:
        if self._closed:
            return
        if self._thread is None:
            self._loop.carry_out(call, *arguments)
        else:
            self._mailbox.post(call, *arguments)

    def _call(self, call: Callable[..., object], *arguments: object) -> None:
        """Post a call and wait until it was applied. Raises what the call raises."""
        if self._thread is None:
            self._post(call, *arguments)
        elif not self._closed:
            self._mailbox.wait_for(self._thread.is_alive, call, *arguments)

    def turn(self, timeout_ms: int | None = 0) -> None:
        """Wait for work, at most `timeout_ms` (None: without limit), then do one turn, for engines without a thread."""
        self._loop.turn(timeout_ms)

    # Reports and counters

    def fileno(self) -> int:
        return self._notify

    def poll_reports(self, limit: int = 256) -> list[EngineReport]:
        return [] if self._closed else self._loop.poll_reports(limit)

    @property
    def has_reports(self) -> bool:
        """Whether `fileno` is readable."""
        return self._loop.is_announced

    def drops(self) -> Mapping[DropReason, int]:
        # Copied in one step, because the other thread changes it.
        return {reason: count for reason, count in dict(self._tables.drops).items() if count}

    def oddities(self) -> Mapping[Oddity, int]:
        return dict(self._tables.oddities)

    report_refusals = _posted(_refusals, Refusals.switch)
    peer_drops = _answered(Tables.peer_drops)

    # DataPlane: changes

    def answer_initiations(self, private_key: bytes | None, limits: SessionLimits) -> int:
        """Do nothing: the control thread answers initiations, because this engine would need the interpreter too."""
        return 0

    def set_identity(self, peer: PeerId, public_key: bytes, preshared_key: bytes | None) -> None: ...

    def set_peer_cookie(self, peer: PeerId, cookie: bytes, until: int) -> None: ...

    def begin_initiation(self, local_index: int) -> bool:
        self._post(partial(self._tables.gate.begin_initiation, local_index))
        return True

    set_mac1_key = _posted(_tables, Tables.set_mac1_key)
    set_cookie_secret = _posted(_gate, Gate.set_cookie_secret)
    end_initiation = _posted(_gate, Gate.end_initiation)
    add_peer = _posted(_tables, Tables.add_peer)
    remove_peer = _posted(_tables, Tables.remove_peer)
    insert_allowed_ip = _posted(_tables, Tables.insert_allowed_ip)
    remove_allowed_ip = _posted(_tables, Tables.remove_allowed_ip)
    set_endpoint = _posted(_tables, Tables.set_endpoint)
    clear_source = _posted(_tables, Tables.clear_source)
    install_keypair = _posted(_loop, Loop.install_keypair)
    forget_keypairs = _posted(_tables, Tables.forget_keypairs)
    expire_sending_keys = _posted(_tables, Tables.expire_sending_keys)
    expect_key = _posted(_tables, Tables.expect_key)
    flush_staged = _posted(_tables, Tables.flush_staged)
    send_to_peer = _posted(_loop, Loop.send_to_peer)
    send_to = _posted(_loop, Loop.send_to)
    send_keepalive = _posted(_loop, Loop.send_keepalive)
    note_handshake = _posted(_tables, Tables.note_handshake)
    forget_unanswered = _posted(_tables, Tables.forget_unanswered)
    forget_received = _posted(_tables, Tables.forget_received)

    # DataPlane: queries

    marks = _answered(Tables.marks)
    release_activity = _answered(Tables.release_activity)
    counters = _answered(Tables.counters)

    # For tests and the simulator

    def inspect(self) -> EngineState:
        """Return a snapshot of the state. This and the following methods must only be called without a thread."""
        return engine_state(self._tables)

    def inspect_peer(self, peer: PeerId) -> EnginePeerState:
        return peer_state(self._tables.peers[peer])

    def owner_of(self, destination: bytes) -> PeerId | None:
        """Return the peer to which this inner address is routed."""
        found = self._tables.allowed_ips.lookup(destination)
        return None if found is None else found.id

    def queued_handshakes(self) -> list[bytes]:
        """Return the handshake messages that wait to be taken as reports."""
        return [data for queue in self._tables.reports.handshakes.values() for data, _, _ in queue]
