"""The contract between the device and an engine, which the portable and the native engine implement.

An engine is a `DataPlane` (protocol.data_plane defines what the device installs and what the engine reports) with a
life cycle: it is attached to a Tun and, while the interface is up, to a Bind. It runs its own threads and owns the
buffers; no method lends memory. All methods must be called from the control thread, and none blocks for longer than
one batch of packets.
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
    """The data path stopped permanently, for this reason; the device closes."""

    reason: str


EngineReport = Report | TunChanged | EngineFailed


class Engine(DataPlane, Protocol):
    """An engine; see the module."""

    kind: EngineKind
    shares_interpreter: bool
    """Whether its threads need the interpreter for each packet, so that other Python code delays packets."""

    def attach_tun(self, tun: Tun) -> None:
        """Start to move packets and to report changes of the interface (`TunChanged`)."""

    def attach_bind(self, bind: Bind, port: int) -> None:
        """Use a bind that is open on the port. It replaces the former one, which the caller closes; sessions stay."""

    def detach_bind(self) -> None:
        """Release the bind. When this returns, the engine no longer uses it, and the caller may close it."""

    def set_mtu(self, mtu: int) -> None:
        """Set the inner MTU, which padding never exceeds."""

    def commit(self) -> None:
        """Carry out the calls made since the last commit. One commit for a group of calls saves wake-ups of the engine.
        Calls may also take effect before it."""

    def when_applied(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on any thread, when all earlier calls are in effect. Commits."""

    def close(self) -> None:
        """Stop, join the threads, wipe keys. Idempotent. The caller closes the tun and the bind."""

    def fileno(self) -> int:
        """Return a descriptor (an eventfd or an epoll set) that is readable when reports wait."""

    def poll_reports(self, limit: int = 256) -> list[EngineReport]:
        """Take up to `limit` reports, oldest first, handshake messages last. Clears `fileno` when none are left."""

    def drops(self) -> Mapping[DropReason, int]:
        """Return the number of packets dropped since the start, by reason."""

    def peer_drops(self, peer: PeerId) -> Mapping[DropReason, int]:
        """Return the number of dropped packets to or from the peer, by reason. Packets that were dropped before they
        were authenticated are not included."""

    def report_refusals(self, on: bool) -> None:
        """Switch reports of refusals (`Refused`) on or off; initially they are off."""

    def oddities(self) -> Mapping[Oddity, int]:
        """Return the number of packets since the start that were odd but delivered nevertheless, by oddity."""
