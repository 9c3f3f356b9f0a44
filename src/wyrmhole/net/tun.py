"""Tun: the plaintext edge. Knows frames, MTU and link state, and nothing of WireGuard.

A frame is a 10-byte virtio-net header (see wire.virtio) and an IP packet or TCP/UDP super-packet. A device
without offloads still speaks frames: its headers are all zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from wyrmhole.wire.buffer import Buffer


class TunEvent(Enum):
    UP = "up"
    DOWN = "down"
    MTU = "mtu"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class TunOffloads:
    """What the kernel accepted: TCP super-packets and UDP super-packets, in both directions."""

    tso: bool
    uso: bool


@dataclass(frozen=True, slots=True)
class KernelQueue:
    """A descriptor of a TUN that an engine may duplicate, to read and write it by itself."""

    fileno: int
    has_header: bool
    """Frames have a virtio header; else the descriptor takes and gives bare packets."""


@runtime_checkable
class KernelTun(Protocol):
    """A Tun whose descriptors are the kernel's; memory twins are not."""

    def kernel_queues(self) -> Sequence[KernelQueue]:
        """One for each worker that may use it."""

    def suspect_end(self) -> None:
        """Reading said that the interface is gone; the next `poll_events` finds out."""


@runtime_checkable
class LendableTun(Protocol):
    """A Tun that an engine reads and writes through, by a descriptor that is the engine's own."""

    def lend(self) -> Tun:
        """The same device under another descriptor, which the caller closes. Raises OSError.

        Closing either leaves the other usable until the interface goes.
        """


class Tun(Protocol):
    @property
    def name(self) -> str:
        """The interface's present name (it may be renamed)."""

    @property
    def mtu(self) -> int:
        """The interface's present MTU, asked of the kernel, also after a move to another network namespace."""

    @property
    def offloads(self) -> TunOffloads:
        """May shrink at run time, when the kernel refuses a coalesced write."""

    def fileno(self) -> int: ...

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Read one frame without blocking, returns its length; 0: nothing there, or the interface is down.
        Raises OSError only when the device is gone (EBADFD)."""

    def write(self, parts: Sequence[Buffer]) -> bool:
        """Write one frame, gathered from its parts. False: the frame was lost (down, full, refused), and counted.
        A refused super-packet (EINVAL) turns that offload off; the caller writes its packets one by one."""

    def events_fileno(self) -> int:
        """A descriptor to poll for reading; -1: none. Then call `poll_events`."""

    def poll_events(self) -> list[TunEvent]:
        """What changed since the last call. The first call tells the present state (UP or DOWN)."""

    def close(self) -> None: ...
