"""What an engine makes of a script: two engines agree when their traces are equal.

`run` carries a script out on a `Subject`, anything with a handful of methods, and gives the trace: for each command
what was sent, written, reported, dropped and counted. `EngineSubject` is any engine without its threads, the portable
one unless told.

    run(draw(seed), EngineSubject()) == run(draw(seed), EngineSubject(other))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tests.engine_parity.script import LOCAL_PORT, MTU, START, Command, Script
from wyrmhole.engine.contract import Engine, EngineFailed, TunChanged
from wyrmhole.engine.portable import PortableEngine
from wyrmhole.net.bind import SendOutcome, datagrams_of
from wyrmhole.net.tun import TunOffloads
from wyrmhole.protocol.data_plane import DataPlane, PeerId, Report
from wyrmhole.simulation.world.edges import ListBind, ListTun
from wyrmhole.wire.buffer import Buffer
from wyrmhole.wire.datagram import Received
from wyrmhole.wire.endpoint import Endpoint, SockAddr

Value = object
Entry = tuple[str, tuple[Value, ...]]
Trace = list[tuple[Entry, ...]]
"""For each command: what could be seen after it."""


class Subject(Protocol):
    """An engine between a TUN and a bind in memory. Reports and sends are taken away by looking at them."""

    plane: DataPlane

    def set_time(self, now: int) -> None:
        """The engine's clock shows this from here on."""

    def set_mtu(self, mtu: int) -> None: ...

    def set_offloads(self, tso: bool, uso: bool) -> None:
        """What the TUN accepts to be written from here on."""

    def fail_sends(self, count: int) -> None:
        """The bind drops so many of the next sends."""

    def fail_writes(self, count: int) -> None:
        """The TUN refuses so many of the next writes."""

    def inject(self, frame: bytes) -> None:
        """The TUN gives this frame (10-byte virtio header first); the engine handles it and sends what it makes."""

    def arrive(self, data: bytes, sender: Endpoint, segment: int, source: bytes, tos: int) -> None:
        """The bind gives this datagram, or train of datagrams of `segment` bytes; the engine handles it."""

    def take_sent(self) -> list[tuple[SockAddr, bytes, bytes | None, int]]:
        """(destination, datagram, source, tos) of each datagram since the last call, trains cut up."""

    def take_written(self) -> list[bytes]:
        """The frames given to the TUN since the last call, refused ones included."""

    def take_reports(self) -> list[Report]: ...

    def drops(self) -> dict[str, int]:
        """Counts by the names of DropReason, zeros left out."""

    def peer_drops(self, peer: PeerId) -> dict[str, int]:
        """The same for one peer."""

    def close(self) -> None: ...


class _Tun(ListTun):
    """Gives whole frames to `on_write`."""

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
    """Notes what is sent with its source and type of service."""

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
        self,
        data: Buffer | Sequence[Buffer],
        segment_size: int,
        sockaddr: SockAddr,
        source: bytes | None,
        tos: int = 0,
    ) -> SendOutcome:
        self._sent += [(sockaddr, datagram, source, tos) for datagram in datagrams_of(data, segment_size)]
        dropped = self.failing > 0
        self.failing -= dropped
        return SendOutcome.DROPPED if dropped else SendOutcome.SENT


class Steppable(Engine, Protocol):
    """An engine without threads: every engine of ours has `turn` beside the contract."""

    def turn(self, timeout_ms: int = 0) -> None: ...


def _portable(clock: Callable[[], int]) -> Steppable:
    return PortableEngine(clock, threaded=False)


class EngineSubject:
    """An engine's steps, moved by hand. `make` makes one without threads by a clock."""

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
        """By cause, with what was odd and not dropped: both are counters that engines must agree on."""
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
    """Carry the script out, and close the subject. Equal traces: the engines agree."""
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
    """Where two traces of a script part, in words; None: nowhere."""
    for number, (command, left, right) in enumerate(zip(script.commands, one, other, strict=True)):
        for mine, theirs in zip(left, right, strict=False):
            if mine != theirs:
                where = f"script {script.seed}, command {number}, {command.what}{str(command.arguments)[:120]}"
                return f"{where}: {mine[0]} {str(mine[1])[:300]} against {str(theirs[1])[:300]}"
    return None


def _carry_out(command: Command, subject: Subject, peers: list[PeerId]) -> None:
    plane, arguments = subject.plane, command.arguments
    if hasattr(subject, command.what):
        getattr(subject, command.what)(*arguments)
        return
    getattr(plane, command.what)(*arguments)
    if command.what == "add_peer" and arguments[0] not in peers:
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
