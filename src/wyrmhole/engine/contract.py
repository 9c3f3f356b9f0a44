"""The contract between the device and an engine: what both the portable and the native engine do.

An engine is a `DataPlane` (see protocol.data_plane: what the device installs, what is reported) with a life: it is
attached to a Tun and, while the interface is up, to a Bind. It runs its own thread(s) and owns the buffers; nothing
in this contract lends memory across it. Every method may be called from the control thread only; none blocks for
longer than one batch of packets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from wyrmhole.net.bind import Bind
from wyrmhole.net.tun import Tun, TunEvent
from wyrmhole.protocol.data_plane import DataPlane, PeerId, Report
from wyrmhole.protocol.drops import DropReason, Oddity


class EngineKind(Enum):
    PORTABLE = "portable"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class TunChanged:
    """The interface came up, went down, changed its MTU, or is gone."""

    event: TunEvent


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The data path stopped for good; the device ends, with this reason."""

    reason: str


EngineReport = Report | TunChanged | EngineFailed


class Engine(DataPlane, Protocol):
    kind: EngineKind
    shares_interpreter: bool
    """Whether its threads need the interpreter for each packet, so that other Python code delays packets."""

    def attach_tun(self, tun: Tun) -> None:
        """Start to move packets. Reports of the tun (`TunChanged`) begin."""

    def attach_bind(self, bind: Bind, port: int) -> None:
        """Use a bind that is open on the port. It replaces the former one, which the caller closes; sessions stay."""

    def detach_bind(self) -> None:
        """When this returns, the engine no longer touches the bind; the caller may close it."""

    def set_mtu(self, mtu: int) -> None:
        """The inner MTU: padding never goes beyond it."""

    def commit(self) -> None:
        """Begin to carry out the calls made since the last commit. One for a group of calls spares the engine as many
        wake-ups; calls may take effect before it, never later than soon after it."""

    def when_applied(self, tell: Callable[[], None]) -> None:
        """Call `tell` once, on any thread, when all calls made before this one are in effect. Commits."""

    def close(self) -> None:
        """Stop, join the threads, wipe keys. Idempotent. The tun and the bind stay the caller's to close."""

    def fileno(self) -> int:
        """Readable when reports wait (an eventfd)."""

    def poll_reports(self, limit: int = 256) -> list[EngineReport]:
        """Take waiting reports, oldest first, handshake datagrams last; clears `fileno` when none are left."""

    def drops(self) -> Mapping[DropReason, int]:
        """How many packets died, by cause, since the start."""

    def peer_drops(self, peer: PeerId) -> Mapping[DropReason, int]:
        """How many packets to or from the peer died, by cause. Those that did not prove whose they are do not count."""

    def report_refusals(self, on: bool) -> None:
        """Whether `Refused` is reported; off at first."""

    def oddities(self) -> Mapping[Oddity, int]:
        """How many packets went their way although something was odd about them, by cause, since the start."""
