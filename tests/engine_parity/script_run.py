"""Execution of scripts. Two engines agree if their traces are equal.

`run` executes a script on a `Subject` and returns the trace: what was sent, written, reported, dropped and counted
after each command. `EngineSubject` is a subject made of any engine without its threads, by default the portable one.

    run(draw(seed), EngineSubject()) == run(draw(seed), EngineSubject(other))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tests.engine_parity.script import LOCAL_PORT, MTU, START, Command, Script
from wyrmhole.engine.contract import Engine, EngineFailed, TunChanged
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.net.bind import Payload, SendOutcome, datagrams_of
from wyrmhole.net.tun import TunOffloads
from wyrmhole.protocol.data_plane import DataPlane, PeerId, Report
from wyrmhole.simulation.world.edges import ListBind, ListTun
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import Endpoint, SockAddr

Value = object
Entry = tuple[str, tuple[Value, ...]]
Trace = list[tuple[Entry, ...]]
"""The observations after each command."""


class Subject(Protocol):
    """An engine between a TUN and a bind in memory. Taking sends, writes or reports removes them."""

    plane: DataPlane

    def set_time(self, now: int) -> None:
        """Set the engine's clock."""

    def set_mtu(self, mtu: int) -> None: ...

    def set_offloads(self, tso: bool, uso: bool) -> None:
        """Set which super-packets the TUN accepts."""

    def fail_sends(self, count: int) -> None:
        """Let the bind drop the next `count` sends."""

    def fail_writes(self, count: int) -> None:
        """Let the TUN refuse the next `count` writes."""

    def inject(self, frame: bytes) -> None:
        """Let the engine read this frame from the TUN (with a 10-byte virtio header) and handle it."""

    def arrive(self, data: bytes, sender: Endpoint, segment: int, source: bytes, tos: int) -> None:
        """Let the engine receive this datagram, or train of datagrams of `segment` bytes, and handle it."""

    def take_sent(self) -> list[tuple[SockAddr, bytes, bytes | None, int]]:
        """Return (destination, datagram, source, tos) of each datagram since the last call. Trains are split."""

    def take_written(self) -> list[bytes]:
        """Return the frames written to the TUN since the last call, including refused ones."""

    def take_reports(self) -> list[Report]: ...

    def drops(self) -> dict[str, int]:
        """Return the counts by names of DropReason, without zeros."""

    def peer_drops(self, peer: PeerId) -> dict[str, int]:
        """Return the same counts for one peer."""

    def close(self) -> None: ...


class _Tun(ListTun):
    """A TUN that records whole frames."""

    def __init__(self, written: list[bytes]) -> None:
        super().__init__(lambda packet: None, MTU)
        self._written = written

    def write(self, parts: Sequence[Buffer]) -> bool:
        self._written.append(b"".join(parts))
        if self.failing:
            self.failing -= 1
            return False
        return True


class _Bind(ListBind):
    """A bind that records datagrams with their source and type of service."""

    def __init__(self, sent: list[tuple[SockAddr, bytes, bytes | None, int]]) -> None:
        super().__init__(lambda sockaddr, data, arrives: None, b"local")
        self._sent = sent

    def receive(self, fileno: int) -> Received | None:
        received = super().receive(fileno)
        if received is not None:
            received.source, received.tos = self.address, self.tos
        return received

    tos = 0

    def send(
        self, data: Payload, segment_size: int, sockaddr: SockAddr, source: bytes | None, tos: int = 0
    ) -> SendOutcome:
        self._sent += [(sockaddr, datagram, source, tos) for datagram in datagrams_of(data, segment_size)]
        dropped = self.failing > 0
        self.failing -= dropped
        return SendOutcome.DROPPED if dropped else SendOutcome.SENT


class Steppable(Engine, Protocol):
    """An engine without threads. All engines here have `turn` beside the contract."""

    def turn(self, timeout_ms: int = 0) -> None: ...


def _portable(clock: Callable[[], int]) -> Steppable:
    return PortableEngine(clock, threaded=False)


class EngineSubject:
    """A subject that turns an engine by hand. `make` makes an engine without threads, given a clock."""

    def __init__(self, make: Callable[[Callable[[], int]], Steppable] = _portable) -> None:
        self._now = START
        self._sent: list[tuple[SockAddr, bytes, bytes | None, int]] = []
        self._written: list[bytes] = []
        self._tun = _Tun(self._written)
        self._bind = _Bind(self._sent)
        self._engine = make(lambda: self._now)
        self._engine.attach_tun(self._tun)
        self._engine.attach_bind(self._bind, LOCAL_PORT)
        self._engine.report_refusals(True)
        self.plane: DataPlane = self._engine

    def set_time(self, now: int) -> None:
        self._now = now

    def set_mtu(self, mtu: int) -> None:
        self._engine.set_mtu(mtu)

    def set_offloads(self, tso: bool, uso: bool) -> None:
        self._tun.offloads = TunOffloads(tso, uso)
        self._engine.attach_tun(self._tun)

    def fail_sends(self, count: int) -> None:
        self._bind.failing = count

    def fail_writes(self, count: int) -> None:
        self._tun.failing = count

    def inject(self, frame: bytes) -> None:
        self._tun.inject(frame)
        self._engine.turn()

    def arrive(self, data: bytes, sender: Endpoint, segment: int, source: bytes, tos: int) -> None:
        self._bind.address, self._bind.tos = source, tos
        self._bind.arrive(data, sender.sockaddr, segment)
        self._engine.turn()

    def take_sent(self) -> list[tuple[SockAddr, bytes, bytes | None, int]]:
        sent = list(self._sent)
        self._sent.clear()
        return sent

    def take_written(self) -> list[bytes]:
        written = list(self._written)
        self._written.clear()
        return written

    def take_reports(self) -> list[Report]:
        found = self._engine.poll_reports(1 << 16)
        return [report for report in found if not isinstance(report, (TunChanged, EngineFailed))]

    def drops(self) -> dict[str, int]:
        """Return the counts of drop reasons and oddities, because engines must agree on both."""
        odd = {oddity.value: count for oddity, count in self._engine.oddities().items()}
        return odd | {reason.value: count for reason, count in self._engine.drops().items()}

    def peer_drops(self, peer: PeerId) -> dict[str, int]:
        return {reason.value: count for reason, count in self._engine.peer_drops(peer).items()}

    def close(self) -> None:
        self._engine.close()
        self._tun.close()
        self._bind.close()


# Running


def run(script: Script, subject: Subject) -> Trace:
    """Execute the script, close the subject, and return the trace."""
    peers: list[PeerId] = []
    trace: Trace = []
    try:
        for command in script.commands:
            _carry_out(command, subject, peers)
            trace.append(_observe(subject, peers))
    finally:
        subject.close()
    return trace


def first_difference(script: Script, one: Trace, other: Trace) -> str | None:
    """Describe the first difference between two traces of a script, or return None if they are equal."""
    for number, (command, left, right) in enumerate(zip(script.commands, one, other, strict=True)):
        for mine, theirs in zip(left, right, strict=False):
            if mine != theirs:
                command_text = f"script {script.seed}, command {number}, {command.name}{str(command.arguments)[:120]}"
                return f"{command_text}: {mine[0]} {str(mine[1])[:300]} differs from {str(theirs[1])[:300]}"
    return None


def _carry_out(command: Command, subject: Subject, peers: list[PeerId]) -> None:
    plane, arguments = subject.plane, command.arguments
    if hasattr(subject, command.name):
        getattr(subject, command.name)(*arguments)
        return
    getattr(plane, command.name)(*arguments)
    if command.name == "add_peer" and arguments[0] not in peers:
        peers.append(arguments[0])  # type: ignore[arg-type]


def _observe(subject: Subject, peers: list[PeerId]) -> tuple[Entry, ...]:
    plane = subject.plane
    marks = [(peer, plane.marks(peer)) for peer in peers]
    counters = [(peer, plane.counters(peer)) for peer in peers]
    return (
        ("sent", tuple(subject.take_sent())),
        ("written", tuple(subject.take_written())),
        ("reports", tuple(subject.take_reports())),
        ("drops", tuple(sorted(subject.drops().items()))),
        ("peer_drops", tuple((peer, tuple(sorted(subject.peer_drops(peer).items()))) for peer in peers)),
        ("counters", tuple((peer, each.tx_bytes, each.rx_bytes) for peer, each in counters)),
        (
            "marks",
            tuple(
                (peer, each.data_sent_since, each.data_received_since, each.last_data_received, each.last_traversal)
                for peer, each in marks
            ),
        ),
    )
